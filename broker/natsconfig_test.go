package broker_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/bcrypt"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testcert"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// config writes a nats-server configuration that listens on a free port.
func config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte("host: 127.0.0.1\nport: -1\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// connect dials the node's port like a client.
func connect(t *testing.T, n *broker.Node, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(n.ClientURL(), append(opts, nats.NoReconnect())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// works appends and reads back.
func works(t *testing.T, nc *nats.Conn) {
	t.Helper()
	r := appendTx(t, nc, "cantus.append.key.k", "x")
	if r.Error != nil {
		t.Fatal(r.Error)
	}
	if m := ask(t, nc, subjects.Names{}.Get(r.Partition), fmt.Sprintf(`{"txid":%d}`, r.Txid)); string(m.Data) != "x" {
		t.Fatalf("got %q", m.Data)
	}
}

func TestNATSConfigAuthorization(t *testing.T) {
	testkit.NotShort(t, "many nodes are started")
	hash, err := bcrypt.GenerateFromPassword([]byte("p"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, config, account string
		in, out               []nats.Option
	}{
		{"user and password", `authorization { user: "u", password: "p" }`, "",
			[]nats.Option{nats.UserInfo("u", "p")}, []nats.Option{nats.UserInfo("u", "q")}},
		{"token", `authorization { token: "secret" }`, "",
			[]nats.Option{nats.Token("secret")}, []nats.Option{nats.Token("other")}},
		{"a hashed token", `authorization { token: "` + string(hash) + `" }`, "",
			[]nats.Option{nats.Token("p")}, []nats.Option{nats.Token(string(hash))}},
		{"users", `authorization { users: [ {user: "u", password: "p"}, {user: "v", password: "w", permissions: {publish: "none"}} ] }`, "",
			[]nats.Option{nats.UserInfo("u", "p")}, nil},
		{"default permissions", `authorization { default_permissions: {publish: "cantus.>", subscribe: ["_INBOX.>"]}, users: [ {user: "u", password: "p"} ] }`, "",
			[]nats.Option{nats.UserInfo("u", "p")}, []nats.Option{nats.UserInfo("u", "")}},
		{"an account", `accounts { LOG: { users: [ {user: "u", password: "p"} ] }, OTHER: { users: [ {user: "v", password: "w"} ] } }`, "LOG",
			[]nats.Option{nats.UserInfo("u", "p")}, nil},
		{"a user for those without", `accounts { LOG: { users: [ {user: "u", password: "p"} ] } }` + "\nno_auth_user: u", "LOG",
			nil, []nats.Option{nats.UserInfo("u", "q")}},
		{"a hashed password", `authorization { user: "u", password: "` + string(hash) + `" }`, "",
			[]nats.Option{nats.UserInfo("u", "p")}, []nats.Option{nats.UserInfo("u", "wrong")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, c.config), Account: c.account})
			works(t, nc) // the node's own connections are let in
			if c.in != nil || strings.Contains(c.config, "no_auth_user") {
				works(t, connect(t, n, c.in...))
			}
			if c.out != nil {
				if nc, err := nats.Connect(n.ClientURL(), c.out...); err == nil {
					nc.Close()
					t.Error("anybody is let in")
				}
			}
			if c.name == "an account" {
				other := connect(t, n, nats.UserInfo("v", "w"))
				if _, err := other.Request("cantus.append.0", nil, patience); !errors.Is(err, nats.ErrNoResponders) {
					t.Errorf("another account: %v", err)
				}
			}
		})
	}
}

func TestNATSConfigTLS(t *testing.T) {
	authority := testcert.NewAuthority(t)
	cert, key := authority.Files("server", time.Now().Add(time.Hour))
	for name, more := range map[string]string{"": "", "handshake first": "handshake_first: true"} {
		t.Run("TLS "+name, func(t *testing.T) {
			n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q, timeout: 5\n %s }", cert, key, more))})
			works(t, nc)
			opts := []nats.Option{nats.Secure(&tls.Config{RootCAs: authority.Pool(), MinVersion: tls.VersionTLS12})}
			if more != "" {
				opts = append(opts, nats.TLSHandshakeFirst())
			}
			works(t, connect(t, n, opts...))
		})
	}
}

// A stream that captures the feed has each transaction once, although all of
// them are published to it a second time.
func TestJetStreamCapturesTheFeed(t *testing.T) {
	n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, fmt.Sprintf("jetstream { store_dir: %q }", t.TempDir()))})
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "FEED", Subjects: []string{"cantus.feed.>"}, Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := nc.SubscribeSync("cantus.feed.>")
	if err != nil {
		t.Fatal(err)
	}
	nodeConn, err := broker.NodeConn(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nodeConn.Close)
	node, err := jetstream.New(nodeConn)
	if err != nil {
		t.Fatal(err)
	}
	const count = 60
	for i := range count {
		appendTx(t, nc, subjects.Names{}.Append(i%2), fmt.Sprint(i))
	}
	for range count {
		m, err := watch.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		again := nats.NewMsg(m.Subject) // as another leader would
		again.Header, again.Data = m.Header, m.Data
		ack, err := node.PublishMsg(t.Context(), again)
		if err != nil || !ack.Duplicate {
			t.Fatalf("published again: %+v, %v", ack, err)
		}
	}
	eventually(t, "all captured", func() bool { // a repeat is known before its first is stored
		info, err := stream.Info(t.Context())
		return err == nil && info.State.Msgs == count
	})
	next := [2]uint64{} // partitions have no order between them
	for seq := range uint64(count) {
		m, err := stream.GetMsg(t.Context(), seq+1)
		if err != nil {
			t.Fatal(err)
		}
		p, err := strconv.Atoi(m.Header.Get(subjects.HeaderPartition))
		if err != nil {
			t.Fatal(err)
		}
		if next[p]++; m.Header.Get(subjects.HeaderTxid) != fmt.Sprint(next[p]) || string(m.Data) != fmt.Sprint(2*(next[p]-1)+uint64(p)) {
			t.Fatalf("message %d: %+v, want txid %d", seq+1, m, next[p])
		}
	}
}

func TestSmallMaxPayload(t *testing.T) {
	n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, "max_payload: 20000")})
	e := wantRefusal(t, ask(t, nc, "cantus.append.0", strings.Repeat("x", 19_000)), subjects.TooLarge)
	if limit := fmt.Sprint(20_000 - 1024); !strings.Contains(e.Message, limit) {
		t.Errorf("the message %q does not name %s", e.Message, limit)
	}
	feed, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}
	// The largest one is returned by every kind of read.
	if r := appendTx(t, nc, "cantus.append.0", strings.Repeat("x", 20_000-1024)); r.Txid != 1 {
		t.Fatalf("%+v", r.Error)
	}
	if m, err := feed.NextMsg(patience); err != nil || len(m.Data) != 20_000-1024 {
		t.Fatal(err)
	}
	if len(collect(t, nc, "cantus.read.0", "").transactions) != 1 {
		t.Fatal("it is not read")
	}
	// Refusals may be larger than what they refuse, and must arrive too.
	name := strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 60)+".", 4), ".")
	var headers []string
	for i := range 60 {
		headers = append(headers, write, fmt.Sprint(i, ".", name))
	}
	if r := appendTx(t, nc, "cantus.append.0", "", append(headers, mark, "1")...); r.Txid != 2 {
		t.Fatalf("%+v", r.Error)
	}
	if e := wantRefusal(t, ask(t, nc, "cantus.append.0", "", append(headers, mark, "1")...), subjects.Conflict); e.Txid != 2 {
		t.Errorf("%+v", e)
	}
	conflict := item("", write, ">", mark, "0")
	var r subjects.BatchReply
	request(t, nc, message("cantus.batch.0", strings.Repeat(string(conflict), 100)), &r)
	if len(r.Results) != 100 || r.Results[99].Error.Txid != 2 {
		t.Fatalf("%d results", len(r.Results))
	}
	wantRefusal(t, ask(t, nc, "cantus.batch.0", strings.Repeat(string(item("")), 1000)), subjects.TooLarge)
	works(t, connect(t, n))
}

func TestBadNATSConfigs(t *testing.T) {
	dir := t.TempDir()
	n, _ := openNode(t, dir, broker.Options{})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, config, account string
		words                 []string
	}{
		{"not a configuration", "listen: {", "", []string{"nats.conf"}},
		{"an unknown field", "no_such_thing: 1", "", []string{"no_such_thing"}},
		{"an account that is not there", `accounts { LOG: { users: [ {user: "u", password: "p"} ] } }`, "OTHER", []string{"OTHER"}},
		{"an account without users", `accounts { LOG: {} }`, "LOG", []string{"LOG", "users"}},
		{"a tiny max_payload", "max_payload: 100", "", []string{"max_payload", "100"}},
		{"websockets with a password of their own", `websocket { port: -1, no_tls: true, authorization { user: w, password: p } }`, "",
			[]string{"websockets", "allowed_connection_types"}},
		{"MQTT with a token of its own", "server_name: n\njetstream {}\nmqtt { port: -1, authorization { token: t } }", "", []string{"MQTT", "users"}},
		{"a token behind proxies", `authorization { token: secret, proxy_required: true }`, "", []string{"token", "proxies"}},
		{"an operator without credentials", operator(t), "", []string{"operator", "credentials"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustNotOpen(t, dir, broker.Options{NATSConfig: config(t, c.config), Account: c.account}, nil, c.words...)
		})
	}
	mustNotOpen(t, dir, broker.Options{NATSConfig: filepath.Join(dir, "missing.conf")}, os.ErrNotExist, "missing.conf")
	mustNotOpen(t, dir, broker.Options{NATSConfig: config(t, ""), Credentials: filepath.Join(dir, "missing.creds")}, nil, "missing.creds")
	works(t, func() *nats.Conn { _, nc := openNode(t, dir, broker.Options{NATSConfig: config(t, "")}); return nc }())
}

// operator returns a configuration in operator mode with a memory resolver.
func operator(t *testing.T) string {
	t.Helper()
	key, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.NewOperatorClaims(public).Encode(key)
	if err != nil {
		t.Fatal(err)
	}
	return "operator: " + token + "\nresolver: MEMORY\n"
}

// Operator mode with credentials: the node is a user of the account that it
// serves.
func TestOperatorMode(t *testing.T) {
	opts, file := operatorMode(t)
	n, nc := openNode(t, t.TempDir(), opts)
	works(t, nc)
	works(t, connect(t, n, nats.UserCredentials(file)))
}

// operatorMode returns options of a node in operator mode, and its credentials
// file.
func operatorMode(t *testing.T) (opts broker.Options, file string) {
	t.Helper()
	seed := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		t.Helper()
		k, err := create()
		if err != nil {
			t.Fatal(err)
		}
		public, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return k, public
	}
	operatorKey, operatorID := seed(nkeys.CreateOperator)
	accountKey, accountID := seed(nkeys.CreateAccount)
	userKey, userID := seed(nkeys.CreateUser)
	encode := func(c jwt.Claims, by nkeys.KeyPair) string {
		t.Helper()
		token, err := c.Encode(by)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	account := encode(jwt.NewAccountClaims(accountID), operatorKey)
	conf := config(t, fmt.Sprintf("operator: %s\nresolver: MEMORY\nresolver_preload: { %s: %s }\n",
		encode(jwt.NewOperatorClaims(operatorID), operatorKey), accountID, account))
	userSeed, err := userKey.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(encode(jwt.NewUserClaims(userID), accountKey), userSeed)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "node.creds")
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	return broker.Options{NATSConfig: conf, Credentials: file, Account: accountID}, file
}

// Options.ClientListen is for where no file says more.
func TestListenBesideAConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte("server_name: other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: path, ClientListen: "127.0.0.1:0"})
	if !strings.HasPrefix(n.ClientURL(), "nats://127.0.0.1:") || strings.HasSuffix(n.ClientURL(), ":4222") {
		t.Errorf("it listens on %s", n.ClientURL())
	}
	if nc.ConnectedServerName() != "other" {
		t.Errorf("it is called %s", nc.ConnectedServerName())
	}
	works(t, connect(t, n))
	var c subjects.ClusterInfo
	if err := json.Unmarshal(ask(t, nc, "cantus.info", "").Data, &c); err != nil || c.Nodes[0].Name != "n1" {
		t.Errorf("%+v, %v", c, err)
	}
}

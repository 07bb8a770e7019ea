package broker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/cantuslog/cantus/broker"
)

// A node whose NATS configuration does not let it serve says so when it starts,
// with the setting or the subject, and does not claim to be ready.
func TestNATSConfigThatDoesNotLetTheNodeServe(t *testing.T) {
	for _, c := range []struct {
		name, config string
		account      string
		words        []string
	}{
		{"max_subscriptions", "max_subscriptions: 20", "", []string{"refuses", "subscription to", "maximum subscriptions exceeded"}},
		{"fewer than the node's own", "max_subscriptions: 2", "", []string{"refuses", "maximum subscriptions exceeded"}},
		{"max_subscription_tokens", "max_sub_tokens: 3", "", []string{"refuses", "cantus.", "tokens"}},
		{"max_subs of the account", `accounts { LOG: { limits: { max_subs: 20 }, users: [ {user: "u", password: "p"} ] } }`, "LOG", []string{"refuses", "maximum subscriptions"}},
		{"max_connections", "max_connections: 3", "", []string{"max_connections 3", "8"}},
		{"max_control_line", "max_control_line: 512", "", []string{"max_control_line 512", "1024"}},
		{"max_pending", "max_pending: 2000000", "", []string{"max_pending 2000000"}},
		{"write_deadline", `write_deadline: "1ms"`, "", []string{"write_deadline 1ms", "100ms"}},
		{"a mapping of a partition", `mappings { "cantus.append.1": "elsewhere" }`, "", []string{"maps cantus.append.1 elsewhere"}},
		{"a mapping of a wildcard", `mappings { "cantus.*.0": "elsewhere.$1" }`, "", []string{"maps cantus.*.0 elsewhere"}},
		{"a mapping of keys", `mappings { "cantus.append.key.vip": "cantus.append.0" }`, "", []string{"maps cantus.append.key.vip elsewhere"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustNotOpen(t, t.TempDir(), broker.Options{NATSConfig: config(t, c.config), Account: c.account, Partitions: 4}, nil, c.words...)
		})
	}
	_, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, `max_subscriptions: 100, mappings { "orders": "cantus.append.0" }`)})
	works(t, nc)
	if r := appendTx(t, nc, "orders", "x"); r.Error != nil {
		t.Error(r.Error)
	}
}

// operated is a NATS configuration in operator mode, of which the account's
// limits change.
type operated struct {
	t                     *testing.T
	operator, account     nkeys.KeyPair
	operatorJWT           string
	accountID, file, conf string
}

func newOperated(t *testing.T) *operated {
	t.Helper()
	o := &operated{t: t, conf: filepath.Join(t.TempDir(), "nats.conf")}
	var operatorID string
	o.operator, operatorID = o.key(nkeys.CreateOperator)
	o.account, o.accountID = o.key(nkeys.CreateAccount)
	o.operatorJWT = o.encode(jwt.NewOperatorClaims(operatorID), o.operator)
	user, userID := o.key(nkeys.CreateUser)
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(o.encode(jwt.NewUserClaims(userID), o.account), seed)
	if err != nil {
		t.Fatal(err)
	}
	o.file = filepath.Join(t.TempDir(), "node.creds")
	if err := os.WriteFile(o.file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	o.write(nil)
	return o
}

func (o *operated) key(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
	o.t.Helper()
	k, err := create()
	if err != nil {
		o.t.Fatal(err)
	}
	public, err := k.PublicKey()
	if err != nil {
		o.t.Fatal(err)
	}
	return k, public
}

func (o *operated) encode(c jwt.Claims, by nkeys.KeyPair) string {
	o.t.Helper()
	token, err := c.Encode(by)
	if err != nil {
		o.t.Fatal(err)
	}
	return token
}

// write writes the configuration with an account that change has modified.
func (o *operated) write(change func(*jwt.AccountClaims)) {
	o.t.Helper()
	claims := jwt.NewAccountClaims(o.accountID)
	if change != nil {
		change(claims)
	}
	text := fmt.Sprintf("host: 127.0.0.1\nport: -1\noperator: %s\nresolver: MEMORY\nresolver_preload: { %s: %s }\n",
		o.operatorJWT, o.accountID, o.encode(claims, o.operator))
	if err := os.WriteFile(o.conf, []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
}

func (o *operated) options() broker.Options {
	return broker.Options{NATSConfig: o.conf, Credentials: o.file, Account: o.accountID}
}

// A reply subject can be so long that the line of an answer to it exceeds the
// server's limit: it must not cost the node its connection.
func TestReplySubjectTooLong(t *testing.T) {
	n, nc := one(t, broker.Options{Prefix: "c", ClientListen: "127.0.0.1:0"})
	// The sizes take more space in an answer's line than a read's subject in
	// its own.
	if r := appendTx(t, nc, "c.append.0", strings.Repeat("x", 900_000), "X", strings.Repeat("x", 20_000)); r.Error != nil {
		t.Fatal(r.Error)
	}
	raw := dialRaw(t, n.ClientURL())
	const line = 4096
	for _, subject := range []string{"c.read.0", "c.replica.read.0"} {
		for most := line - len(subject+"  0"); most > line-32; most-- {
			raw.send(t, fmt.Sprintf("PUB %s %s 0\r\n\r\n", subject, strings.Repeat("r", most)))
		}
	}
	raw.send(t, "PING\r\n")
	for raw.line(t) != "PONG" {
	}
	if _, err := nc.Request("c.info.0", nil, patience); err != nil {
		t.Fatal(err)
	}
	if said := broker.Objections(n); said != 0 {
		t.Errorf("the server has objected %d times to what the node says", said)
	}
}

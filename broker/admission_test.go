package broker_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// feeds reports whether a client may publish what only nodes do. The client
// must be able to append.
func feeds(t *testing.T, nc *nats.Conn) bool {
	t.Helper()
	works(t, nc)
	if err := errors.Join(nc.Publish("cantus.packed.0", nil), nc.FlushTimeout(patience)); err != nil {
		t.Fatal(err)
	}
	return !errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}

// quiet keeps a permission error from being printed.
var quiet = nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})

// A server without users admits clients that send a name or a token, as any
// NATS server does, and does not tell them to authenticate.
func TestNamesWithoutUsers(t *testing.T) {
	n, _ := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, ""), Partitions: 1})
	// Clients use the first INFO. Later ones, which the server sends for other
	// reasons, do not take no_auth_user into account.
	raw, err := net.Dial("tcp", strings.TrimPrefix(n.ClientURL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if info, err := bufio.NewReader(raw).ReadString('\n'); err != nil || !strings.HasPrefix(info, "INFO ") || strings.Contains(info, `"auth_required":true`) {
		t.Errorf("a client is greeted with %q, %v", info, err)
	}
	for name, as := range map[string]nats.Option{
		"nothing": nats.Name("x"), "a name": nats.UserInfo("somebody", "p"), "a token": nats.Token("t"),
	} {
		nc := connect(t, n, as, quiet)
		if feeds(t, nc) {
			t.Errorf("a client that gives %s can feed", name)
		}
	}
}

// leafOf starts a NATS server that is a leaf node of a node, and connects to
// it.
func leafOf(t *testing.T, n *broker.Node, as *url.Userinfo) *nats.Conn {
	t.Helper()
	at := &url.URL{Scheme: "nats-leaf", Host: broker.LeafAddress(n), User: as}
	leaf, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
		LeafNode: server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{at}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	leaf.Start()
	t.Cleanup(func() { leaf.Shutdown(); leaf.WaitForShutdown() })
	if !leaf.ReadyForConnections(patience) {
		t.Fatal("the leaf node does not start")
	}
	nc, err := nats.Connect(leaf.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	eventually(t, "the leaf node asks the node", func() bool {
		_, err := nc.Request("cantus.info", nil, patience)
		return err == nil
	})
	return nc
}

// received returns a message that has arrived, nil if there is none.
func received(sub *nats.Subscription) *nats.Msg {
	m, err := sub.NextMsg(1)
	if err != nil {
		return nil
	}
	return m
}

// A leaf node's clients append, read and follow the feed, and can't publish on
// it.
func TestLeafNodes(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		as     *url.Userinfo
	}{
		"anybody": {"", nil},
		"a token": {"authorization { token: secret }", url.User("secret")},
		"users": {`authorization { users: [ {user: u, password: p, allowed_connection_types: ["LEAFNODE"]} ] }`,
			url.UserPassword("u", "p")},
	} {
		t.Run(name, func(t *testing.T) {
			n, nc := openNode(t, t.TempDir(), broker.Options{Partitions: 1,
				NATSConfig: config(t, "leafnodes { host: 127.0.0.1, port: -1 }\n"+c.config)})
			behind := leafOf(t, n, c.as)
			heard, err := behind.SubscribeSync("cantus.packed.0")
			if err != nil {
				t.Fatal(err)
			}
			here, err := nc.SubscribeSync("cantus.>")
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the feed comes through", func() bool {
				works(t, behind)
				return received(heard) != nil
			})
			if err := behind.Publish("cantus.packed.0", []byte("forged")); err != nil {
				t.Fatal(err)
			}
			works(t, behind) // comes behind what was published
			if err := nc.FlushTimeout(patience); err != nil {
				t.Fatal(err)
			}
			for m := received(here); m != nil; m = received(here) {
				if string(m.Data) == "forged" {
					t.Fatal("a leaf node can feed")
				}
			}
		})
	}
}

// A reload adds the permissions to the new configuration, also for connections
// that are open.
func TestReloadKeepsPermissions(t *testing.T) {
	const wide = `permissions: {publish: ">", subscribe: ">"}`
	conf := config(t, `authorization { users: [ {user: u, password: p}, {user: gone, password: p} ] }`)
	opts := broker.Options{NATSConfig: conf, Partitions: 1}
	n, _ := openNode(t, t.TempDir(), opts)
	u, gone := connect(t, n, nats.UserInfo("u", "p"), quiet), connect(t, n, nats.UserInfo("gone", "p"))
	reload(t, n, opts, `authorization { users: [ {user: u, password: p, `+wide+`}, {user: v, password: p, `+wide+`} ] }`)
	eventually(t, "a user that is gone is disconnected", gone.IsClosed)
	for name, nc := range map[string]*nats.Conn{"u": u, "v": connect(t, n, nats.UserInfo("v", "p"), quiet)} {
		if feeds(t, nc) {
			t.Errorf("%s can feed after a reload", name)
		}
	}
	again, err := n.Conn(quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if feeds(t, again) {
		t.Error("the application can feed after a reload")
	}
}

// A token can be added and changed while the node runs. A reload that asks for
// what can't change changes nothing.
func TestReloadOfATokenAndUsers(t *testing.T) {
	conf := config(t, "")
	opts := broker.Options{NATSConfig: conf, Partitions: 1}
	n, inside := openNode(t, t.TempDir(), opts)
	outside := connect(t, n)
	works(t, outside)

	reload(t, n, opts, `authorization { token: first }`)
	eventually(t, "a client without a token is disconnected", outside.IsClosed)
	works(t, inside)
	first := connect(t, n, nats.Token("first"), quiet)
	if feeds(t, first) {
		t.Error("a holder of the token can feed")
	}

	for text, word := range map[string]string{
		`authorization { users: [ {user: u, password: p} ] }`: "from a token to users: that takes a restart",
		"": "from a token to no users: that takes a restart",
		"authorization { token: second }\nmax_subscriptions: 400": "MaxSubs",
	} {
		rewrite(t, conf, text)
		if err := n.Reload(opts); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v, want %q", text, err, word)
		}
	}
	works(t, first)
	if nc, err := nats.Connect(n.ClientURL(), nats.Token("second")); err == nil {
		nc.Close()
		t.Error("a token of a refused configuration is taken")
	}

	reload(t, n, opts, `authorization { token: second }`)
	eventually(t, "a client with the old token is disconnected", first.IsClosed)
	works(t, connect(t, n, nats.Token("second")))
	works(t, inside)
}

// rewrite writes a new version of a configuration.
func rewrite(t *testing.T, conf, text string) {
	t.Helper()
	if err := os.WriteFile(conf, []byte("host: 127.0.0.1\nport: -1\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func reload(t *testing.T, n *broker.Node, opts broker.Options, text string) {
	t.Helper()
	rewrite(t, opts.NATSConfig, text)
	if err := n.Reload(opts); err != nil {
		t.Fatal(err)
	}
}

// When it starts, a node logs which clients it can't keep off its subjects.
func TestGapsAreNamed(t *testing.T) {
	operators, _ := operatorMode(t)
	for want, opts := range map[string]broker.Options{
		"":                            {NATSConfig: config(t, `leafnodes { host: 127.0.0.1, port: -1 }`)},
		"users of operators and JWTs": operators,
		"leaf nodes that the leafnodes block authorizes": {NATSConfig: config(t, `leafnodes { host: 127.0.0.1, port: -1, authorization { user: u, password: p } }`)},
		"servers that this one is a leaf node of":        {NATSConfig: config(t, `leafnodes { remotes: [ {url: "nats-leaf://127.0.0.1:1"} ] }`)},
	} {
		var log logged
		opts.Logger = log.logger()
		openNode(t, t.TempDir(), opts)
		if want == "" && log.has("not_for=") || want != "" && !log.has(fmt.Sprintf("not_for=%q", want)) {
			t.Errorf("the log does not say just %q", want)
		}
	}
	var log logged
	openNode(t, t.TempDir(), broker.Options{Logger: log.logger(),
		NATSConfig: config(t, "leafnodes { host: 127.0.0.1, port: -1 }\nauthorization { users: [ {user: u, password: p} ] }")})
	if !log.has("LEAFNODE") {
		t.Error("the log does not say what a leaf node's user needs")
	}
}

// The limits that a reload changes take effect at once. One that is out of
// range changes nothing.
func TestReloadOfLimits(t *testing.T) {
	const free = 1 << 30
	opts := broker.Options{Partitions: 1, MinFreeBytes: free / 2, QueueBytes: 8 << 20}
	broker.FreeSpace(&opts, func() int64 { return free })
	n, nc := openNode(t, t.TempDir(), opts)
	works(t, nc)
	opts.MinFreeBytes, opts.QueueBytes = 2*free, 1<<20
	if err := n.Reload(opts); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, ask(t, nc, "cantus.append.0", "x"), subjects.StorageFull)
	if got := broker.QueueSizes(n, 0); got != [3]int{1 << 20, 1 << 20, 1 << 20} {
		t.Errorf("queues of %v bytes", got)
	}
	bad := opts
	bad.MinFreeBytes, bad.QueueBytes = free/2, 1
	if err := n.Reload(bad); !errors.Is(err, broker.ErrOptions) || !strings.Contains(err.Error(), "queue bytes is 1") {
		t.Errorf("a queue of one byte: %v", err)
	}
	wantRefusal(t, ask(t, nc, "cantus.append.0", "x"), subjects.StorageFull)
	opts.MinFreeBytes = free / 2
	if err := n.Reload(opts); err != nil {
		t.Fatal(err)
	}
	works(t, nc)
}

// A mapping that is removed from the configuration ends, even if it was the
// only one: requests go to the partition again, and nothing else does.
func TestAReloadRemovesMappings(t *testing.T) {
	file := config(t, "")
	n, _ := openNode(t, t.TempDir(), broker.Options{Partitions: 2, NATSConfig: file})
	reload := func(text string) error {
		if err := os.Rename(config(t, text), file); err != nil {
			t.Fatal(err)
		}
		return n.Reload(broker.Options{NATSConfig: file})
	}
	if err := reload("mappings { cantus.append.0: elsewhere, orders: cantus.append.1 }"); err != nil {
		t.Fatal(err)
	}
	nc := connect(t, n)
	eventually(t, "the node says that its requests are mapped away", func() bool {
		return strings.Contains(broker.Unready(n), "cantus.append.0")
	})
	appendTx(t, nc, "orders", "mapped")
	if err := reload(""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is ready again", n.Ready)
	appendTx(t, nc, "cantus.append.0", "not mapped")
	appendTx(t, nc, "cantus.append.key.alice", "by key")
	if _, err := nc.Request("orders", nil, patience); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a subject that is mapped no more: %v", err)
	}
}

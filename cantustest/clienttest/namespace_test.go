package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// namespaceAccounts give each service its usual prefix, in an account of its
// own.
const namespaceAccounts = `accounts {
  LOG {
    exports: [
      { service: "cantus.ns.*.append.>", account_token_position: 0 }, { service: "cantus.ns.*.batch.*" }, { service: "cantus.ns.*.get.*" }
      { service: "cantus.ns.*.info" }, { service: "cantus.ns.*.info.*" }, { service: "cantus.ns.*.cursor.>" }, { service: "cantus.ns.*.cursors.*" }
      { service: "cantus.ns.*.read.*", response_type: stream }, { service: "cantus.ns.*.replica.read.*", response_type: stream }
      { stream: "cantus.ns.*.packed.*" }, { stream: "cantus.ns.*.feed.>" }, { stream: "cantus.ns.*.advisory.leader" }
    ]
    users: [ { user: ops, password: p } ]
  }
  ORDERS { users: [ { user: orders, password: p } ], imports: [ %s ] }
  BILLING { users: [ { user: billing, password: p } ], imports: [ %s ] }
}
`

// imports are those of a service: what its namespace has, under the usual
// names.
func imports(namespace string) string {
	var all []string
	for _, s := range []string{"append.>", "batch.*", "get.*", "info", "info.*", "cursor.>", "cursors.*", "read.*", "replica.read.*"} {
		all = append(all, fmt.Sprintf(`{ service: { account: LOG, subject: "cantus.ns.%s.%s" }, to: "cantus.%s" }`, namespace, s, s))
	}
	for _, s := range []string{"packed.*", "feed.>", "advisory.leader"} {
		all = append(all, fmt.Sprintf(`{ stream: { account: LOG, subject: "cantus.ns.%s.%s" }, to: "cantus.%s" }`, namespace, s, s))
	}
	return strings.Join(all, "\n    ")
}

// setNamespace makes or changes a namespace.
func setNamespace(t *testing.T, nc *nats.Conn, r subjects.NamespaceRequest) {
	t.Helper()
	body, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "the namespace is set", func() bool {
		m, err := nc.Request("cantus.admin.cluster.namespace", body, patience)
		if err != nil && !errors.Is(err, nats.ErrNoResponders) {
			t.Fatal(err)
		}
		if err == nil && strings.Contains(string(m.Data), "error") {
			t.Fatalf("%s", m.Data)
		}
		return err == nil
	})
}

// TestNamespaces runs what a service does in two namespaces of one node, by
// their prefixes and through accounts. Neither sees the other, and both see
// partitions from 0 on.
func TestNamespaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nats.conf")
	conf := fmt.Sprintf(namespaceAccounts, imports("orders"), imports("billing"))
	conf = strings.ReplaceAll(conf, ", account_token_position: 0", "")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, broker.Options{Partitions: 5, NATSConfig: file, Account: "LOG", ClientListen: "127.0.0.1:0"})
	ops := connect(t, n)
	setNamespace(t, ops, subjects.NamespaceRequest{Name: "orders", Partitions: []int{3, 1}})
	setNamespace(t, ops, subjects.NamespaceRequest{Name: "billing", Partitions: []int{4, 0}})
	as := func(user string) *nats.Conn {
		nc, err := nats.Connect(n.ClientURL(), nats.UserInfo(user, "p"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	clients := map[string]*client.Client{}
	for name, nc := range map[string]*nats.Conn{"orders": as("orders"), "billing": as("billing")} {
		clients[name] = newClient(t, nc, client.Options{})
		clients[name+", by prefix"] = newClient(t, ops, client.Options{Prefix: "cantus.ns." + name})
	}
	for i, who := range []string{"orders", "billing, by prefix"} {
		useService(t, clients[who], fmt.Sprint("service ", i))
	}
	raw(t, as("orders"), "cantus")
	raw(t, ops, "cantus.ns.billing")
	for _, pair := range [][2]string{{"orders", "orders, by prefix"}, {"billing, by prefix", "billing"}} {
		for p := range 2 {
			a, b := readAll(t, clients[pair[0]], p), readAll(t, clients[pair[1]], p)
			if len(a) == 0 || len(a) != len(b) || string(a[0].Payload) != string(b[0].Payload) {
				t.Errorf("%v read %d and %d transactions", pair, len(a), len(b))
			}
		}
	}
	if got := string(readAll(t, clients["billing"], 0)[0].Payload); got != "service 1" {
		t.Errorf("billing begins with %q", got)
	}
	// Under the cluster's names there are the same transactions, for operators,
	// and nothing can be appended.
	m, err := ops.Request("cantus.get.4", []byte(`{"txid":1}`), patience)
	if err != nil || string(m.Data) != "service 1" || m.Header.Get("Cantus-Partition") != "4" {
		t.Errorf("%+v, %v", m, err)
	}
	for _, subject := range []string{"cantus.append.4", "cantus.batch.4", "cantus.ns.orders.append.2", "cantus.ns.shipping.info"} {
		if _, err := ops.Request(subject, nil, patience); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("%s: %v", subject, err)
		}
	}
	if _, err := as("orders").Request("cantus.append.2", nil, patience); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a partition that the namespace does not have: %v", err)
	}
}

// raw does what the client does not: append by key, read from a replica, list
// cursors and subscribe to the plain feed.
func raw(t *testing.T, nc *nats.Conn, prefix string) {
	t.Helper()
	feed, err := nc.SubscribeSync(prefix + ".feed.1.tx")
	if err != nil {
		t.Fatal(err)
	}
	inbox, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	next := func(s *nats.Subscription) *nats.Msg {
		t.Helper()
		m, err := s.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m, err := nc.Request(prefix+".append.key.alice", []byte("by key"), patience)
	if err != nil || !strings.HasPrefix(string(m.Data), `{"partition":1,"txid":311,`) {
		t.Fatalf("%s.append.key.alice: %+v, %v", prefix, m, err)
	}
	if m := next(feed); string(m.Data) != "by key" || m.Subject != prefix+".feed.1.tx" || !strings.HasSuffix(m.Header.Get("Nats-Msg-Id"), ".1.311") {
		t.Errorf("the feed has %+v", m)
	}
	for _, verb := range []string{".replica.read.1", ".read.1"} {
		if err := nc.PublishRequest(prefix+verb, inbox.Subject, []byte(`{"from":311}`)); err != nil {
			t.Fatal(err)
		}
		if m := next(inbox); string(m.Data) != "by key" || m.Header.Get("Cantus-Partition") != "1" {
			t.Errorf("%s: %+v", verb, m)
		}
		if m := next(inbox); m.Header.Get("Status") != "204" {
			t.Errorf("%s: %+v", verb, m)
		}
	}
	if m, err := nc.Request(prefix+".cursors.1", nil, patience); err != nil || !strings.Contains(string(m.Data), `{"partition":1,"cursors":[{"name":"mailer","txid":7`) {
		t.Errorf("%+v, %v", m, err)
	}
}

// useService does what services do, in partitions 0 and 1.
func useService(t *testing.T, c *client.Client, first string) {
	t.Helper()
	ctx := soon(t)
	partitions, err := c.Partitions(ctx)
	if err != nil || partitions != 2 {
		t.Fatalf("there are %d partitions, %v", partitions, err)
	}
	if r := mustAppend(t, c, client.Request{Payload: []byte(first), WriteLocks: []string{"a.b"}}); r.Txid != 1 || r.Partition != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := c.Append(ctx, &client.Request{Payload: []byte("x"), WriteLocks: []string{"a.>"}}); !errors.Is(err, client.ErrConflict) {
		t.Errorf("a conflict: %v", err)
	}
	appendMany(t, c, 1, 300)
	p, err := c.Partition(ctx, "alice")
	if err != nil || p != 1 { // 2267157479 modulo 2
		t.Errorf("alice is in partition %d, %v", p, err)
	}
	tx, err := c.LastWriter(ctx, 0, "a.b")
	if err != nil || tx.Txid != 1 || tx.Partition != 0 {
		t.Errorf("%+v, %v", tx, err)
	}
	k, err := c.Cursor(1, "mailer")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Set(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if at, err := k.Get(ctx); err != nil || at.Txid != 7 || at.HighWaterMark != 300 {
		t.Errorf("%+v, %v", at, err)
	}
	// The feed, after what was read.
	following, stop := context.WithCancel(ctx)
	defer stop()
	seen := make(chan uint64, 1000)
	f, err := c.NewFollower(client.Positions{1: 290}, func(_ context.Context, tx *client.Transaction) error {
		seen <- tx.Txid
		return nil
	}, client.FollowOptions{IdleTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(following) }()
	for want := uint64(291); want <= 310; want++ {
		if want > 300 {
			mustAppend(t, c, client.Request{Partition: 1, Payload: []byte("tail")})
		}
		if got := <-seen; got != want {
			t.Fatalf("the follower saw %d, not %d", got, want)
		}
	}
	if r := f.Progress(1).Rejected; r > 0 {
		t.Errorf("%d messages of the feed were rejected", r)
	}
	stop()
	<-ended
}

// Package dcb_test decides what no single name stands for, as the examples of
// dcb.events do: each decision has a query of its own, and is appended unless
// something that the query selects is new by then. Each test decides from
// several goroutines at once, and then goes through the log with a model that
// knows all of it.
package dcb_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

// errRefused is what a rule returns that does not allow something.
var errRefused = errors.New("refused by the rule")

// newClients returns clients of one node, each with a connection of its own.
func newClients(t *testing.T, count int) []*client.Client {
	t.Helper()
	n, err := broker.Open(testkit.Soon(t), t.TempDir(), broker.Options{Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return clientsOf(t, count, n)
}

// clientsOf returns clients of nodes, by turns.
func clientsOf(t *testing.T, count int, nodes ...*broker.Node) (all []*client.Client) {
	t.Helper()
	for i := range count {
		nc, err := nodes[i%len(nodes)].Conn(nats.MaxReconnects(-1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		c, err := client.New(nc, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		all = append(all, c)
	}
	return all
}

// decide makes a decision about events of type E. rule fills in the request, or
// returns an error.
func decide[S, E any](ctx context.Context, c *client.Client, items []subjects.QueryItem, fold func(s S, kind string, e E) S, rule func(S, *client.Request) error) error {
	_, err := client.Decide(ctx, c, items, func(s S, tx *client.Transaction) (S, error) {
		var e E
		err := json.Unmarshal(tx.Payload, &e)
		return fold(s, tx.Kind, e), err
	}, rule, client.DecideOptions{MaxAttempts: 1000})
	return err
}

// about returns an item of a query: one of the kinds, with all of the locks.
func about(kinds []string, locks ...string) subjects.QueryItem {
	return subjects.QueryItem{Kinds: kinds, Locks: locks}
}

// set fills in a request with an event.
func set(req *client.Request, kind string, event any, locks ...string) error {
	payload, err := json.Marshal(event)
	req.Set(kind, payload)
	req.AppendLock(locks...)
	return err
}

// outcomes counts decisions.
type outcomes struct {
	t *testing.T

	mu              sync.Mutex
	passed, refused int
}

// count counts a decision by what it returned.
func (o *outcomes) count(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil:
		o.passed++
	case errors.Is(err, errRefused):
		o.refused++
	default:
		o.t.Error(err)
	}
}

// race makes one decision from each client at once, and returns how many
// passed. All others were refused by the rule.
func race(t *testing.T, clients []*client.Client, decision func(i int, c *client.Client) error) (passed int) {
	t.Helper()
	o := &outcomes{t: t}
	var running sync.WaitGroup
	for i, c := range clients {
		running.Go(func() { o.count(decision(i, c)) })
	}
	running.Wait()
	return o.passed
}

// replay goes through the whole log, and returns how many transactions it has.
// allowed applies one of them to a model, and reports whether the rules allow
// it in the state before.
func replay[E any](t *testing.T, c *client.Client, allowed func(kind string, e E) bool) (count int) {
	t.Helper()
	f, err := c.Query(testkit.Soon(t), 0, client.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tx := range f.Transactions {
		var e E
		if err := json.Unmarshal(tx.Payload, &e); err != nil {
			t.Fatal(err)
		}
		if !allowed(tx.Kind, e) {
			t.Errorf("the rules do not allow txid %d, computed at %d: %s %s", tx.Txid, tx.HighWaterMark, tx.Kind, tx.Payload)
		}
	}
	return len(f.Transactions)
}

//go:build !race

// The race detector finds a race in nats-server 2.15.3 here: a reload that
// changes an account's limits reads the limit of subscriptions without a lock
// (client.maxSubsExceeded).

package broker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// TestAccountThatChanges takes from an account what the node needs of it, and
// gives it back: the node is not ready meanwhile, and says why.
func TestAccountThatChanges(t *testing.T) {
	o := newOperated(t)
	n, nc := openNode(t, t.TempDir(), o.options())
	works(t, nc)
	for _, c := range []struct {
		name   string
		change func(*jwt.AccountClaims)
		words  []string
	}{
		{"subscriptions", func(a *jwt.AccountClaims) { a.Limits.Subs = 8 }, []string{"refuses", "maximum subscriptions exceeded"}},
		{"a mapping", func(a *jwt.AccountClaims) {
			a.Mappings = jwt.Mapping{"cantus.append.0": {{Subject: "elsewhere", Weight: 100}}}
		}, []string{"maps cantus.append.0 elsewhere"}},
	} {
		o.write(c.change)
		if err := n.Reload(o.options()); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		eventually(t, c.name+" makes the node unready", func() bool {
			why := broker.Unready(n)
			return !n.Ready() && strings.Contains(why, c.words[0]) && strings.Contains(why, c.words[len(c.words)-1])
		})
		o.write(nil)
		if err := n.Reload(o.options()); err != nil {
			t.Fatalf("%s, back: %v", c.name, err)
		}
		eventually(t, c.name+": ready again", n.Ready)
		again, err := n.Conn()
		if err != nil {
			t.Fatal(err)
		}
		works(t, again) // appends by key too: the account has lost the mapping
		again.Close()
	}

	// Smaller messages: the node goes by what its account allows.
	o.write(func(a *jwt.AccountClaims) { a.Limits.Payload = 20_000 })
	n, nc = reopen(t, n, broker.Dir(n), o.options())
	e := wantRefusal(t, ask(t, nc, "cantus.append.0", strings.Repeat("x", 19_000)), subjects.TooLarge)
	if limit := fmt.Sprint(20_000 - 1024); !strings.Contains(e.Message, limit) {
		t.Errorf("the message %q does not name %s", e.Message, limit)
	}
	works(t, nc)
	_ = n
}

// An account that is replaced loses the mappings of appends by key, those of
// namespaces too, and gets them back. A mapping that takes away what a
// namespace is asked makes the node unready.
func TestAccountThatChangesUnderANamespace(t *testing.T) {
	o := newOperated(t)
	n, nc := openNode(t, t.TempDir(), o.options())
	setNamespace(t, nc, `{"name":"orders","partitions":[1]}`)
	if m := askNamespace(t, nc, "cantus.ns.orders.append.key.alice", "first"); !strings.Contains(string(m.Data), `{"partition":0,"txid":1`) {
		t.Errorf("%s", m.Data)
	}
	o.write(func(a *jwt.AccountClaims) {
		a.Mappings = jwt.Mapping{"cantus.ns.orders.append.0": {{Subject: "elsewhere", Weight: 100}}}
	})
	if err := n.Reload(o.options()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mapping makes the node unready", func() bool {
		return !n.Ready() && strings.Contains(broker.Unready(n), "maps cantus.ns.orders.append.0 elsewhere")
	})
	o.write(nil)
	if err := n.Reload(o.options()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready again", n.Ready)
	again, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if m := askNamespace(t, again, "cantus.ns.orders.append.key.alice", "second"); !strings.Contains(string(m.Data), `{"partition":0,"txid":2`) {
		t.Errorf("%s", m.Data)
	}
}

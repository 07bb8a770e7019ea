package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// TestOverlapInFlight sends two transactions back to back on one connection,
// the second while the first is still on its way to the disk. Their locks
// overlap without being spelled alike, and both were computed at the same
// mark: one of the two must win, and only one.
func TestOverlapInFlight(t *testing.T) {
	t.Parallel()
	rounds := testkit.Sized(10, 100, 100)
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	for name, pair := range map[string][2]string{
		"point, then its subtree":        {"r%d.a.b", "r%d.a.>"},
		"subtree, then a point in it":    {"r%d.a.>", "r%d.a.b"},
		"subtree, then a wider one":      {"r%d.a.b.>", "r%d.a.>"},
		"subtree, then a narrower one":   {"r%d.a.>", "r%d.a.b.>"},
		"point, then everything":         {"r%d.a", ">"},
		"everything, then a point":       {">", "r%d.a"},
		"point, then the same":           {"r%d.a", "r%d.a"},
		"subtree, then the same":         {"r%d.>", "r%d.>"},
		"deep point, then a far subtree": {"r%d.a.b.c.d.e.f.g", "r%d.>"},
	} {
		t.Run(name, func(t *testing.T) {
			for round := range rounds {
				first, second := pair[0], pair[1]
				if first != ">" {
					first = fmt.Sprintf(first, round)
				}
				if second != ">" {
					second = fmt.Sprintf(second, round)
				}
				mark := mustInfo(t, c, 0).HighWaterMark
				answers := pipeline(t, c,
					workload.NewAppend(0, "first", "Cantus-Write-Lock", first, "Cantus-High-Water-Mark", fmt.Sprint(mark)),
					workload.NewAppend(0, "second", "Cantus-Write-Lock", second, "Cantus-High-Water-Mark", fmt.Sprint(mark)))
				checkOneWins(t, round, mark, answers, second)
			}
		})
	}
	newest := newLockHistory(drain(t, c, 0))
	if len(newest.byLock) == 0 {
		t.Error("no locks recorded")
	}
}

// checkOneWins checks that the first is committed and the second refused
// because of it: requests of one connection are handled in order.
func checkOneWins(t *testing.T, round int, mark uint64, answers []workload.Reply, second string) {
	t.Helper()
	won, lost := answers[0], answers[1]
	if won.Error != nil || won.Txid != mark+1 {
		t.Fatalf("round %d: the first was answered %v, want txid %d", round, won, mark+1)
	}
	e := lost.Error
	if e == nil || e.Code != 409 || e.Reason != "conflict" || e.Txid != won.Txid || e.Lock != second || len(e.Conflicts) != 1 {
		t.Fatalf("round %d: the second was answered %v %+v, want a conflict with %d on %s", round, lost, e, won.Txid, second)
	}
	if lost.HighWaterMark < won.Txid {
		t.Fatalf("round %d: refused for txid %d while the high-water mark was %d", round, won.Txid, lost.HighWaterMark)
	}
}

// TestApartInFlight is the opposite: locks that look alike but do not overlap,
// and read locks of the same name, all commit.
func TestApartInFlight(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	for name, pair := range map[string][4]string{
		"a point is not in its own subtree": {"Write", "a.b", "Write", "a.b.>"},
		"a common prefix of letters":        {"Write", "ab.c", "Write", "a.>"},
		"siblings":                          {"Write", "a.b.>", "Write", "a.c.>"},
		"letter case":                       {"Write", "a", "Write", "A"},
		"two readers":                       {"Read", "a.b", "Read", "a.>"},
		"a reader, then a writer":           {"Read", "a.b", "Write", "a.>"},
		"two appenders":                     {"Append", "a.b", "Append", "a.>"},
		"a writer, then an appender":        {"Write", "a.b", "Append", "a.>"},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				mark := fmt.Sprint(mustInfo(t, c, 1).HighWaterMark)
				for i, answer := range pipeline(t, c,
					workload.NewAppend(1, "first", "Cantus-"+pair[0]+"-Lock", pair[1], "Cantus-High-Water-Mark", mark),
					workload.NewAppend(1, "second", "Cantus-"+pair[2]+"-Lock", pair[3], "Cantus-High-Water-Mark", mark)) {
					if answer.Error != nil {
						t.Fatalf("request %d was answered %v", i, answer)
					}
				}
			}
		})
	}
}

// pipeline sends all requests before it receives the first answer, and returns
// the answers in the order of the requests.
func pipeline(t *testing.T, c *workload.Client, msgs ...*nats.Msg) []workload.Reply {
	t.Helper()
	subs := make([]*nats.Subscription, len(msgs))
	for i, m := range msgs {
		m.Reply = nats.NewInbox()
		sub, err := c.Conn.SubscribeSync(m.Reply)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe() // it fails only on a closed connection
		subs[i] = sub
	}
	for _, m := range msgs {
		if err := c.Conn.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	answers := make([]workload.Reply, len(msgs))
	until := time.Now().Add(patience)
	for i, sub := range subs {
		m, err := sub.NextMsg(time.Until(until))
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if answers[i], err = workload.DecodeReply(m); err != nil {
			t.Fatal(err)
		}
	}
	return answers
}

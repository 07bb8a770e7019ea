package broker_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// Sixteen clients compete for the same lock. Each computes its transaction from
// the state that it knows, "the last one plus one". Two transactions that both
// committed from the same state would have the same number.
func TestHotLock(t *testing.T) {
	n, nc := one(t, broker.Options{})
	const clients, each = 16, 25
	var all sync.WaitGroup
	for range clients {
		conn, err := n.Conn()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		all.Go(func() {
			seen := uint64(0)
			for done := 0; done < each; {
				r, err := tryAppend(conn, strconv.FormatUint(seen+1, 10), write, "hot", mark, strconv.FormatUint(seen, 10))
				switch {
				case err != nil:
					t.Error(err)
					return
				case r.Error == nil:
					if r.Txid != seen+1 {
						t.Errorf("txid %d was computed from %d", r.Txid, seen)
					}
					seen, done = r.Txid, done+1
				case r.Error.Reason != subjects.Conflict || r.Error.Txid <= seen:
					t.Errorf("at %d: %v", seen, r.Error)
					return
				default:
					seen = r.Error.Txid
				}
			}
		})
	}
	all.Wait()
	ms := checkLog(t, nc, 0)
	if len(ms) != clients*each {
		t.Fatalf("%d transactions", len(ms))
	}
	for i, m := range ms {
		if string(m.Data) != strconv.Itoa(i+1) {
			t.Fatalf("txid %d was computed as %s", i+1, m.Data)
		}
	}
}

func tryAppend(nc *nats.Conn, payload string, headers ...string) (r subjects.Reply, err error) {
	for deadline := time.Now().Add(patience); ; {
		m, err := nc.RequestMsg(message("cantus.append.0", payload, headers...), patience)
		if err != nil {
			return r, err
		}
		r = subjects.Reply{}
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return r, err
		}
		// A loaded machine keeps requests waiting for so long that later ones
		// are refused.
		if r.Error == nil || r.Error.Reason != subjects.Busy || time.Now().After(deadline) {
			return r, nil
		}
	}
}

// Plain then subtree, literal then subtree, subtree then a wider one: each pair
// is pipelined on one connection from the same state, and one of the two wins.
func TestOverlapInFlight(t *testing.T) {
	_, nc := one(t, broker.Options{})
	at := uint64(0)
	for round := range 100 {
		base := fmt.Sprint("r", round)
		for _, pair := range [][2]string{{base + ".a", base + ".>"}, {base + ".b.c", base + ".b.>"}, {base + ".d.>", ">"}, {base + ".e", base + ".e"}} {
			sub, err := nc.SubscribeSync(nc.NewRespInbox())
			if err != nil {
				t.Fatal(err)
			}
			for _, lock := range pair {
				m := message("cantus.append.0", lock, write, lock, mark, strconv.FormatUint(at, 10))
				m.Reply = sub.Subject
				if err := nc.PublishMsg(m); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 2 {
				m, err := sub.NextMsg(patience)
				if err != nil {
					t.Fatal(err)
				}
				var r subjects.Reply
				if err := json.Unmarshal(m.Data, &r); err != nil {
					t.Fatal(err)
				}
				if i == 0 && r.Txid != at+1 || i == 1 && (r.Error == nil || r.Error.Txid != at+1) {
					t.Fatalf("%v: answer %d is %s", pair, i, m.Data)
				}
			}
			at++
			_ = sub.Unsubscribe()
		}
	}
}

// Appends of all sizes, reads and a feed at once: the server reads from the
// node only while the node reads from it, and neither may wait for the other.
func TestLargeMessagesBothWays(t *testing.T) {
	testkit.NotShort(t, "it appends and reads some hundred megabytes")
	n, nc := one(t, broker.Options{})
	feed, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := feed.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 200_000)
	var all sync.WaitGroup
	const writers, each = 8, 12
	for range writers {
		conn, err := n.Conn()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		all.Go(func() {
			for range each {
				if r, err := tryAppend(conn, string(payload)); err != nil || r.Error != nil {
					t.Error(err, r.Error)
				}
			}
		})
		all.Go(func() {
			for range each {
				if m, err := conn.Request("cantus.get.0", []byte(`{"lock":"x"}`), patience); err != nil {
					t.Error(m, err)
				}
				collect(t, conn, "cantus.read.0", `{"max_bytes":2000000}`)
			}
		})
	}
	all.Wait()
	for range writers * each {
		if _, err := feed.NextMsg(patience); err != nil {
			t.Fatal(err)
		}
	}
	if i := info(t, nc, 0); i.HighWaterMark != writers*each {
		t.Fatalf("%d transactions", i.HighWaterMark)
	}
}

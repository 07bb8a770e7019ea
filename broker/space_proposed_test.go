package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

const (
	// lastRoom leaves a store space for what was proposed before it was full.
	lastRoom = 54 << 20
	// noRoom leaves it no space.
	noRoom = 1 << 20
)

// writers append continuously, each of them one transaction at a time.
type writers struct {
	stop            chan struct{}
	running         sync.WaitGroup
	done, full      atomic.Int64
	unknown         atomic.Int64 // and busy, which follows
	leaderless      atomic.Int64 // without space there may be no leader: its first entry needs some
	mu              sync.Mutex
	refused, silent []string
}

func startWriters(t *testing.T, c *nodes, node string) *writers {
	w := &writers{stop: make(chan struct{})}
	nc := c.conn(node)
	for range 8 {
		w.running.Go(func() {
			for {
				select {
				case <-w.stop:
					return
				default:
				}
				m, err := nc.Request("cantus.append.0", []byte("x"), patience)
				w.note(m, err)
			}
		})
	}
	t.Cleanup(func() { w.end(t) })
	return w
}

func (w *writers) note(m *nats.Msg, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var r subjects.Reply
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		w.leaderless.Add(1)
	case err != nil:
		w.silent = append(w.silent, err.Error())
	case json.Unmarshal(m.Data, &r) != nil:
		w.refused = append(w.refused, string(m.Data))
	case r.Error == nil:
		w.done.Add(1)
	case r.Error.Reason == subjects.StorageFull:
		w.full.Add(1)
	case r.Error.Reason == subjects.Unavailable:
		w.leaderless.Add(1)
	case r.Error.Reason == subjects.Unknown, r.Error.Reason == subjects.Busy:
		w.unknown.Add(1)
	default:
		w.refused = append(w.refused, r.Error.Error())
	}
}

// without reports whether appends find no space, or no leader since there is
// none.
func (w *writers) without() bool { return w.full.Load() > 20 || w.leaderless.Load() > 20 }

// end stops them. Each request must have been answered: as done, as refused
// because there is no space or no leader, or as unknown while it waits for
// space.
func (w *writers) end(t *testing.T) {
	t.Helper()
	select {
	case <-w.stop:
		return
	default:
		close(w.stop)
	}
	w.running.Wait()
	if len(w.silent) > 0 || len(w.refused) > 0 {
		t.Errorf("without an answer: %q; refused: %q", w.silent, w.refused)
	}
}

// TestFullFollowersTakeWhatWasProposed fills both followers' disks under load.
// What the leader had proposed before it knew is committed, other appends are
// refused as storage_full, and a trim succeeds. Without a byte left, the trim
// is refused and says what to do, and what waits is committed when there is
// space. It takes some seconds: the free space is checked each second.
func TestFullFollowersTakeWhatWasProposed(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	d := disks{}
	for _, name := range c.names {
		d[name] = &atomic.Int64{}
		d[name].Store(1 << 40)
	}
	c.change = func(name string, o *broker.Options) {
		broker.StoreSpace(o, d[name].Load)
		broker.PointEvery(o, 16)
	}
	c.start(c.names...)
	c.awaitPlaced("n1")
	leader := c.leader(0, "n1")
	nc := c.conn(leader)
	fillTo(t, nc, 200)
	followers := func(free int64) {
		for _, name := range c.names {
			if name != leader {
				d[name].Store(free)
			}
		}
	}
	allFull := func(full bool) {
		t.Helper()
		for _, name := range c.names {
			if name != leader {
				eventually(t, fmt.Sprintf("%s full is %v", name, full), func() bool { return broker.Full(c.node(name)) == full })
			}
		}
	}

	w := startWriters(t, c, leader)
	followers(lastRoom)
	allFull(true)
	eventually(t, "storage_full", func() bool { return w.full.Load() > 20 })
	done := w.done.Load()
	w.end(t)
	if now := w.done.Load(); now > done+8 {
		t.Errorf("%d were taken after the first that was refused", now-done)
	}
	before := info(t, nc, 0).HighWaterMark
	if r := trim(t, nc, `{"before":150}`); r.FirstTxid != 101 {
		t.Errorf("the trim leaves %+v", r)
	}
	same := func() {
		t.Helper()
		eventually(t, "all have trimmed", func() bool {
			lengths := map[int]bool{}
			for _, name := range c.names {
				has, _, err := broker.Contents(c.node(name), 0)
				lengths[len(has)] = err == nil
			}
			return len(lengths) == 1
		})
		c.checkSame(0, c.names...)
	}
	same()

	followers(1 << 40)
	allFull(false)
	last := keep(t, nc, 0, "x", "room")
	if last != before+1 {
		t.Errorf("txid %d after %d", last, before)
	}
	w = startWriters(t, c, leader)
	eventually(t, "appends", func() bool { return w.done.Load() > 50 })
	followers(noRoom)
	allFull(true)
	w.end(t) // what is in flight is answered without an outcome
	eventually(t, "the leader knows, if there is one", func() bool {
		m, err := nc.Request(subjects.Names{}.PartitionInfo(0), nil, patience)
		return errors.Is(err, nats.ErrNoResponders) || err == nil && strings.Contains(string(m.Data), `"storage_full":"`)
	})
	others := startWriters(t, c, leader)
	eventually(t, "storage_full", others.without)
	others.end(t)
	var r subjects.TrimReply
	m, err := nc.Request(subjects.Names{}.Admin("trim", "0"), []byte(`{"before":180}`), patience)
	if err == nil {
		err = json.Unmarshal(m.Data, &r)
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders), err == nil && r.Error != nil && r.Error.Reason == subjects.Unavailable:
		// The leader has lost its term, and the next one needs room for its
		// first entry.
	case err == nil && r.Error != nil && r.Error.Reason == subjects.Unknown && strings.Contains(r.Error.Message, "free space there"):
		// It was proposed before the leader knew: it is done once there is room.
	case err != nil || r.Error != nil && (r.Error.Reason != subjects.StorageFull || !strings.Contains(r.Error.Message, "free space there")):
		t.Errorf("a trim without room: %v, %+v", err, r.Error)
	}
	followers(1 << 40)
	allFull(false)
	keep(t, nc, 0, "x", "room again")
	same()

	w = startWriters(t, c, leader)
	eventually(t, "appends", func() bool { return w.done.Load() > 50 })
	followers(noRoom)
	allFull(true)
	eventually(t, "storage_full", w.without)
	close(w.stop)
	c.stop(leader) // although what is in flight does not commit
	w.running.Wait()
}

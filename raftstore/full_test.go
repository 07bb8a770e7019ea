package raftstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// messages is a log handler that keeps the messages.
type messages struct {
	slog.Handler
	mu  sync.Mutex
	all []string
}

func (m *messages) Enabled(context.Context, slog.Level) bool { return true }

func (m *messages) Handle(_ context.Context, r slog.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, r.Message)
	return nil
}

// count returns how many messages contain a text.
func (m *messages) count(text string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, message := range m.all {
		if strings.Contains(message, text) {
			n++
		}
	}
	return n
}

// openWith opens the replica with changed options.
func (n *node) openWith(change func(*raftstore.Options)) {
	n.c.t.Helper()
	o := n.options()
	change(&o)
	g, err := raftstore.Open(o)
	if err != nil {
		n.c.t.Fatalf("open %s: %v", n.name, err)
	}
	n.group = g
}

// onGates replaces the nodes' file systems by ones that can be filled.
func (c *cluster) onGates() map[string]*journaltest.Gate {
	c.t.Helper()
	gates := map[string]*journaltest.Gate{}
	for _, n := range c.nodes {
		gates[n.name] = journaltest.NewGate()
		n.closeNetwork()
		n.closeStore()
		n.fs = gates[n.name]
		n.openStore()
		n.openNetwork()
	}
	return gates
}

const (
	large     = 3 << 20                        // bytes for which a new journal has to make a segment
	notStored = "failed to append to logs"     // a follower's message
	rejected  = "rejected, sending older logs" // a leader's message, before it backs off
)

// A leader whose entries were not committed follows another one, and has no
// room for that one's entries. It takes them once there is room.
func TestAConflictingSuffixIsReplacedOnceThereIsRoom(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	gates := c.onGates()
	c.openAll()
	want := c.putMany(0, 10, 10)
	old := c.leader()
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])

	c.disconnect(old.name)
	for i := range 10 {
		if _, err := old.group.Propose(fmt.Append(nil, "lost ", i)).Wait(); err == nil {
			t.Fatal("it was committed without a majority")
		}
	}
	for i := range 3 {
		want = append(want, fmt.Sprint("kept ", i, strings.Repeat("x", large)))
		c.put(want[len(want)-1])
	}
	heard := &messages{Handler: slog.DiscardHandler}
	old.closeGroup()
	old.openWith(func(o *raftstore.Options) { o.Logger = slog.New(heard) })
	gates[old.name].Fill(true)
	c.reconnect(old.name)
	until(t, "it has failed to store them", func() bool { return heard.count(notStored) > 0 })
	gates[old.name].Fill(false)
	for _, n := range c.nodes {
		if n != old {
			applied(t, want, n)
		}
	}
	ends(t, want[10:], old) // it may have begun with a snapshot of those before
	if n := len(old.distinct()); n != len(want) {
		t.Errorf("%s has applied %d entries, want %d", old.name, n, len(want))
	}
	sameLog(t, c.nodes["n1"].log(), c.nodes["n2"].log())
	sameLog(t, c.nodes["n1"].log(), c.nodes["n3"].log())
}

// A leader does not back off from followers that have no room, for longer each
// time, and does not search for older entries: it tries the same ones again.
func TestRaftDoesNotBackOffFromAFullFollower(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	gates := c.onGates()
	heard := &messages{Handler: slog.DiscardHandler}
	var full atomic.Int64
	for _, n := range c.nodes {
		n.openWith(func(o *raftstore.Options) {
			o.Voters, o.Logger = c.names, slog.New(heard)
			o.PeerFull = func(string) { full.Add(1) }
		})
	}
	want := c.putMany(0, 10, 10)
	leader := c.leader()
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	before := heard.count(rejected)
	for _, n := range c.others(leader) {
		gates[n.name].Fill(true)
	}
	p := leader.group.Propose([]byte(strings.Repeat("x", large)))
	until(t, "the followers have failed to store it again", func() bool { return heard.count(notStored) > 4 })
	if leader.group.Leading() && full.Load() == 0 {
		t.Error("the leader's owner was not told that a peer is full")
	}
	for _, n := range c.others(leader) {
		gates[n.name].Fill(false)
	}
	if _, err := p.Wait(); err != nil {
		c.mayFail(err)
	}
	if n := heard.count(rejected) - before; n > 0 {
		t.Errorf("raft saw %d rejections, and backs off", n)
	}
}

// A follower that has no room learns which of its entries are committed all the
// same, also after a restart.
func TestAFullFollowerLearnsTheCommitIndex(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	want := c.putMany(0, 10, 10)
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	n := c.others(leader)[0]
	n.closeGroup()
	c.put("one that it lacks")
	var full atomic.Bool
	full.Store(true)
	n.openWith(func(o *raftstore.Options) { o.Full = func(int) bool { return full.Load() } })
	applied(t, want, n)
	full.Store(false)
	applied(t, append(want, "one that it lacks"), n)
}

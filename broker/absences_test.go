package broker

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
)

// A node that comes and goes is logged each time at first, and then so that the
// last line says what is so, without filling the log.
func TestANodeThatComesAndGoesDoesNotFillTheLog(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	began := time.Now()
	facts := cluster.Facts{Nodes: map[string]cluster.Member{"n1": {}, "n2": {}}}
	peers := newPeers("self", func() uint64 { return 1 })
	a := &absences{
		self: "n1", log: slog.New(slog.NewTextHandler(&log, nil)), started: began, peers: peers, replicas: &replicaSet{},
		facts: func() (cluster.Facts, <-chan struct{}) { return facts, nil },
		away:  map[string]time.Time{}, said: map[string]said{}, led: map[int]time.Time{},
	}
	now := began
	hear := func() { peers.accept(announcement{Name: "n2", Instance: fmt.Sprint(now)}, 1, now) }
	lines := func() []string { return strings.Split(strings.TrimSpace(log.String()), "\n") }
	hear()
	a.look(now)
	for range 5 {
		now = now.Add(2 * aliveTime)
		a.look(now)
		hear()
		a.look(now)
	}
	if got := lines(); len(got) != maxSaid || !strings.Contains(got[0], "level=WARN msg=\"node is away\" node=n2 since=") || !strings.HasSuffix(got[1], "msg=\"node is back\" node=n2 after=5s") {
		t.Errorf("logged %d lines:\n%s", len(got), &log)
	}
	now = now.Add(2 * aliveTime)
	a.look(now) // it is away, which is not logged yet
	since := now.Add(-2 * aliveTime).UTC().Format(time.RFC3339)
	now = now.Add(time.Minute)
	a.look(now)
	if got := lines(); len(got) != maxSaid+1 || !strings.HasSuffix(got[maxSaid], "msg=\"node is away\" node=n2 since="+since) {
		t.Errorf("logged %d lines:\n%s", len(got), &log)
	}
	a.look(now)
	delete(facts.Nodes, "n2")
	a.look(now)
	if got := lines(); len(got) != maxSaid+1 || len(a.away)+len(a.said) > 0 {
		t.Errorf("logged %d lines, and %v and %v are left:\n%s", len(got), a.away, a.said, &log)
	}
}

// A node that has started knows only what it has heard of since then: others
// may have been away for long.
func TestHowLongSomebodyWasAwayBeforeTheStartIsNotSaid(t *testing.T) {
	t.Parallel()
	began := time.Now()
	facts := cluster.Facts{Nodes: map[string]cluster.Member{"n1": {}, "n2": {}}}
	peers := newPeers("self", func() uint64 { return 1 })
	a := &absences{
		self: "n1", log: slog.New(slog.DiscardHandler), started: began, peers: peers, replicas: &replicaSet{},
		facts: func() (cluster.Facts, <-chan struct{}) { return facts, nil },
		away:  map[string]time.Time{}, said: map[string]said{}, led: map[int]time.Time{},
	}
	now := began.Add(2 * aliveTime)
	a.look(now)
	if _, away := a.away["n2"]; !away || !a.since("n2").IsZero() || !a.leaderlessSince(0).IsZero() {
		t.Errorf("n2 is away %v, since %v; there is no leader since %v", away, a.since("n2"), a.leaderlessSince(0))
	}
	heard := now
	peers.accept(announcement{Name: "n2", Instance: "i"}, 1, heard)
	a.led[0] = heard
	a.look(now)
	a.look(now.Add(2 * aliveTime))
	if !a.since("n2").Equal(heard) || !a.leaderlessSince(0).Equal(heard) {
		t.Errorf("n2 is away since %v, there is no leader since %v; want %v", a.since("n2"), a.leaderlessSince(0), heard)
	}
}

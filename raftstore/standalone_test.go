package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// A standalone replica that has stepped down because its disk was full leads
// again soon after there is room, although its timeouts are long.
func TestAStandaloneReplicaLeadsAgainOnceThereIsRoom(t *testing.T) {
	testkit.NotShort(t, "it waits for elections and time-outs")
	fs := journaltest.NewGate()
	g := openGroup(t, openStore(t, t.TempDir(), wal.Options{FS: fs, SegmentSize: 1 << 16}), &machine{})
	fs.Fill(true)
	term, large := g.Term(), string(make([]byte, 4<<10))
	for err := error(nil); err == nil || g.Leading() || g.Term() < term+2; { // until it has no room for its vote either
		if _, err = g.Propose([]byte(large)).Wait(); t.Context().Err() != nil {
			t.Fatal("the disk does not get full")
		}
	}
	fs.Fill(false)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for err := g.Barrier(ctx); err != nil; err = g.Barrier(ctx) {
		select {
		case <-g.Leadership():
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the replica does not lead again")
		}
	}
	propose(t, g, "x")
}

// Snapshots are taken after enough entries, even if others are taken in
// between.
func TestSnapshotsComeAfterEnoughEntries(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	m := &machine{}
	g, err := raftstore.Open(raftstore.Options{
		Node: "n1", Voters: []string{"n1"}, Log: s.Log(0), FSM: m, SnapshotEntries: 10, SnapshotInterval: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	lead(t, g)
	for n := range 100 {
		propose(t, g, fmt.Sprint(n))
		if n == 50 {
			if err := g.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for m.covered() <= 90 { // the last snapshot covers all but ten at most
		select {
		case <-t.Context().Done():
			t.Fatalf("the last snapshot covers %d of 100", m.covered())
		case <-time.After(time.Millisecond):
		}
	}
	if err := errors.Join(g.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}

package raftstore

import (
	"context"
	"testing"
	"time"
)

// A ping is answered by a replica that leads, by one that does not, and by a
// closed group. It is not while Raft's loop does not go on.
func TestPing(t *testing.T) {
	g, fs := isolated(t, 100*time.Millisecond, "n1")
	follower, _ := isolated(t, 100*time.Millisecond, "n1", "n2")
	follower.Ping(t.Context())
	eventually(t, "the replica leads", func() bool { return g.Leading() && g.raft.AppliedIndex() > 0 })
	g.Ping(t.Context())

	held, open := fs.Hold()
	defer open(nil)
	barrier := g.raft.Barrier(0) // raft's main goroutine waits until it is synced
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if g.Ping(ctx); ctx.Err() == nil {
		t.Error("the loop is blocked, and answers")
	}
	open(nil)
	if err := barrier.Error(); err != nil {
		t.Fatal(err)
	}
	g.Ping(t.Context())
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g.Ping(t.Context())
}

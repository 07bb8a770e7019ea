package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
)

// wantOtherHistory checks the error of a consumer that has more from a cluster
// than the one that answers.
func wantOtherHistory(t *testing.T, err error, after, common uint64, had string) {
	t.Helper()
	var e *client.HistoryError
	if !errors.As(err, &e) || !errors.Is(err, client.ErrOtherHistory) || !errors.Is(err, client.ErrAhead) {
		t.Fatalf("the error is %v", err)
	}
	if e.After != after || e.Common != common || e.Had != had || e.Cluster == had || e.Cluster == "" {
		t.Fatalf("the error is %+v", e)
	}
}

// recorded is what a handler was given.
type recorded struct {
	mu       sync.Mutex
	payloads []string
}

func (r *recorded) handle(_ context.Context, tx *client.Transaction) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.payloads = append(r.payloads, fmt.Sprint(tx.Txid, " ", string(tx.Payload)))
	return nil
}

func (r *recorded) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.payloads)
}

// A consumer follows while its cluster is replaced by one that was restored
// from a backup: one that is not ahead of the backup goes on in the new
// cluster, and one that is ahead is told.
func TestFollowersOfARestoredCluster(t *testing.T) {
	for name, ahead := range map[string]bool{"not ahead": false, "ahead": true} {
		t.Run(name, func(t *testing.T) {
			l := cantustest.New(t, cantustest.Options{})
			c := l.NewClient(t, client.Options{})
			appendNamed(t, c, "old", 5)
			b, err := l.Backup(soon(t))
			if err != nil {
				t.Fatal(err)
			}
			if ahead {
				appendNamed(t, c, "lost", 2)
			}
			last := uint64(5)
			if ahead {
				last = 7
			}
			var got recorded
			f, err := c.NewFollower(client.Positions{0: 0}, got.handle, client.FollowOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(soon(t))
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- f.Run(ctx) }()
			if err := f.Wait(soon(t), 0, last); err != nil {
				t.Fatal(err)
			}
			testkit.Until(t, "the follower knows its cluster", func() bool { return f.Cluster(0) != "" })
			old := f.Cluster(0)
			if err := l.Restore(soon(t), b); err != nil {
				t.Fatal(err)
			}
			other := l.NewClient(t, client.Options{})
			appendNamed(t, other, "new", 4)
			if ahead {
				wantOtherHistory(t, <-done, 7, 5, old)
				wantOtherHistory(t, f.Progress(0).Err, 7, 5, old)
				if all := got.all(); len(all) != 7 {
					t.Fatalf("handled %q", all)
				}
				wantOtherHistory(t, f.Run(soon(t)), 7, 5, old) // nor later
				if err := f.Move(0, 5); err != nil {
					t.Fatal(err)
				}
				go func() { done <- f.Run(ctx) }() // from a state that both have
			}
			testkit.Until(t, "the follower goes on", func() bool { return f.Applied(0) == 9 })
			testkit.Until(t, "the follower knows its new cluster", func() bool { return f.Cluster(0) != old })
			all := got.all()
			if want := []string{"6 new 0", "7 new 1", "8 new 2", "9 new 3"}; !slices.Equal(all[len(all)-4:], want) {
				t.Errorf("handled %q", all)
			}
			cancel()
			<-done
		})
	}
}

func appendNamed(t *testing.T, c *client.Client, name string, n int) {
	t.Helper()
	for i := range n {
		mustAppend(t, c, client.Request{Payload: fmt.Append(nil, name, " ", i)})
	}
}

// A consumer that starts gives the cluster that its position is from.
func TestAPositionIsFromACluster(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	appendNamed(t, c, "old", 5)
	b, err := l.Backup(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	old := clusterOf(t, c)
	if err := l.Restore(soon(t), b); err != nil {
		t.Fatal(err)
	}
	c = l.NewClient(t, client.Options{})
	appendNamed(t, c, "new", 4)
	now := clusterOf(t, c)
	for _, p := range []struct {
		after   uint64
		cluster string
		common  uint64
		refused bool
	}{
		{0, "other", 0, false}, {3, old, 0, false}, {5, old, 0, false}, {6, old, 5, true}, {9, old, 5, true}, {90, old, 5, true},
		{3, "other", 0, true}, {9, now, 0, false}, {9, "", 0, false},
	} {
		f, err := c.NewFollower(client.Positions{0: p.after}, (&recorded{}).handle, client.FollowOptions{Clusters: map[int]string{0: p.cluster}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(soon(t))
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		err = c.CheckHistory(soon(t), 0, p.after, p.cluster)
		if p.refused {
			wantOtherHistory(t, err, p.after, p.common, p.cluster)
			wantOtherHistory(t, <-done, p.after, p.common, p.cluster)
		} else {
			if err != nil {
				t.Errorf("%+v: %v", p, err)
			}
			if err := f.Wait(soon(t), 0, 9); err != nil {
				t.Errorf("%+v: %v", p, err)
			}
		}
		cancel()
	}
}

// clusterOf returns the id of a client's cluster.
func clusterOf(t *testing.T, c *client.Client) string {
	t.Helper()
	f, err := c.NewFollower(client.Positions{0: 0}, (&recorded{}).handle, client.FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(soon(t))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	testkit.Until(t, "the follower knows its cluster", func() bool { return f.Cluster(0) != "" })
	cancel()
	<-done
	return f.Cluster(0)
}

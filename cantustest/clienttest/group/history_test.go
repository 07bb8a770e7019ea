package group_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/group"
)

// A member that has handled more than the backup from which the cluster was
// restored handles nothing of its other history.
func TestAMemberOfARestoredCluster(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	add := func(n int) {
		t.Helper()
		for range n {
			if _, err := l.NewClient(t, client.Options{}).Append(soon(t), &client.Request{Payload: []byte("p")}); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(5)
	handled := make(chan uint64, 100)
	ctx, cancel := context.WithCancel(soon(t))
	defer cancel()
	stopped := make(chan error, 1)
	done := make(chan error, 1)
	opts := group.Options{Lease: quick}
	opts.Follow.OnStop = func(_ int, err error) {
		select {
		case stopped <- err:
		default:
		}
	}
	go func() {
		done <- group.Join(ctx, c, "workers", func(_ context.Context, tx *client.Transaction) error {
			handled <- tx.Txid
			return nil
		}, opts)
	}()
	for want := uint64(1); want <= 5; want++ {
		if got := <-handled; got != want {
			t.Fatalf("handled %d, want %d", got, want)
		}
	}
	b, err := l.Backup(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	add(3)
	for want := uint64(6); want <= 8; want++ {
		if got := <-handled; got != want {
			t.Fatalf("handled %d, want %d", got, want)
		}
	}
	if err := l.Restore(soon(t), b); err != nil {
		t.Fatal(err)
	}
	add(10)
	<-stopped
	cancel()
	var other *client.HistoryError
	if err := <-done; !errors.As(err, &other) || other.After != 8 || other.Common != 5 {
		t.Errorf("the member ended with %v", err)
	}
	if len(handled) > 0 {
		t.Errorf("it has handled transaction %d of another history", <-handled)
	}
}

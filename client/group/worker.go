package group

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/client"
)

// worker handles one partition while its lease is held.
type worker struct {
	partition int
	cancel    context.CancelCauseFunc
	deadline  *time.Timer
	done      chan struct{}
	err       error // of work, valid once done is closed
	handled   handled
}

// handled is what a member has handled of a partition: the last transaction,
// and the cluster that it is from. In a cluster that has another history than
// that, the member handles nothing more.
type handled struct {
	txid    uint64
	cluster string // "" if it is not known
}

// begin starts to handle a partition, of which the member has handled something
// before, until the lease expires, which extend delays, or stop is called.
func (m *member) begin(partition int, until time.Time, before handled) *worker {
	ctx, cancel := context.WithCancelCause(context.Background())
	w := &worker{partition: partition, cancel: cancel, done: make(chan struct{}), handled: before}
	w.deadline = time.AfterFunc(time.Until(until), func() { cancel(ErrLost) })
	go func() {
		defer close(w.done)
		w.err = m.work(ctx, w)
	}()
	return w
}

func (w *worker) extend(until time.Time) { w.deadline.Reset(time.Until(until)) }

// stop cancels the handling; finished reports whether it has ended.
func (w *worker) stop(cause error) {
	w.deadline.Stop()
	w.cancel(cause)
}

func (w *worker) finished() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// failure returns what stopped a finished worker, nil if it lost its lease
// or was stopped.
func (w *worker) failure() error {
	if errors.Is(w.err, ErrLost) || errors.Is(w.err, context.Canceled) {
		return nil
	}
	return w.err
}

// failed reports whether a finished worker has a failure.
func (w *worker) failed() bool { return w.failure() != nil }

// work follows the partition from the group's position on, and advances that
// position.
func (m *member) work(ctx context.Context, w *worker) error {
	if err := m.client.CheckHistory(ctx, w.partition, w.handled.txid, w.handled.cluster); err != nil {
		return err
	}
	k, err := m.client.Cursor(w.partition, m.name)
	if err != nil {
		return err
	}
	at, err := k.Get(ctx)
	if err != nil {
		return err
	}
	f, err := m.client.NewFollower(client.Positions{w.partition: at.Txid}, m.handle, m.opts.Follow)
	if err != nil {
		return err
	}
	p := &progress{cursor: k, follower: f, partition: w.partition, committed: at.Txid}
	following, end := context.WithCancelCause(ctx)
	committing := make(chan struct{})
	go func() {
		defer close(committing)
		if err := p.commit(following, m.opts.CommitInterval); err != nil {
			end(err)
		}
	}()
	err = f.Run(following)
	if cluster := f.Cluster(w.partition); cluster != "" {
		w.handled = handled{f.Applied(w.partition), cluster}
	}
	end(nil)
	<-committing
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opts.Lease/3)
	defer cancel()
	return errors.Join(err, p.move(last))
}

// progress advances the group's position in a partition.
type progress struct {
	cursor    *client.Cursor
	follower  *client.Follower
	partition int
	committed uint64
}

// commit advances the position every so often, until ctx ends. It returns an
// error if another member has moved the position.
func (p *progress) commit(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(max(every, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if err := p.move(ctx); errors.Is(err, ErrLost) {
			return err // other errors are retried
		}
	}
}

// move sets the position to what was handled.
func (p *progress) move(ctx context.Context) error {
	applied := p.follower.Applied(p.partition)
	if applied == p.committed {
		return nil
	}
	_, err := p.cursor.Move(ctx, applied, p.committed)
	var mismatch *client.CursorMismatchError
	switch {
	case errors.As(err, &mismatch):
		return fmt.Errorf("%w: the position is at %d, expected %d", ErrLost, mismatch.Position.Txid, p.committed)
	case err != nil:
		return err
	}
	p.committed = applied
	return nil
}

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
	err       error // what stopped the partition, valid once done is closed
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

// failed reports whether a finished worker has stopped with an error.
func (w *worker) failed() bool { return w.err != nil }

// work follows the partition from the group's position on, and advances that
// position. It returns the error that stopped the partition, nil if the lease
// was lost or stop was called.
func (m *member) work(ctx context.Context, w *worker) error {
	k, at, err := m.position(ctx, w)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	var stopped error
	opts := m.opts.Follow
	opts.Group = m.name
	opts.OnStop = func(partition int, err error) {
		stopped = err
		if m.opts.Follow.OnStop != nil {
			m.opts.Follow.OnStop(partition, err)
		}
	}
	f, err := m.client.NewFollower(client.Positions{w.partition: at}, m.handle, opts)
	if err != nil {
		return err
	}
	p := &progress{cursor: k, follower: f, partition: w.partition, committed: at}
	following, end := context.WithCancelCause(ctx)
	committing := make(chan struct{})
	go func() {
		defer close(committing)
		if err := p.commit(following, m.opts.CommitInterval); err != nil {
			end(err)
		}
	}()
	_ = f.Run(following) // what is not in stopped is the end of following
	if cluster := f.Cluster(w.partition); cluster != "" {
		w.handled = handled{f.Applied(w.partition), cluster}
	}
	end(nil)
	<-committing
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opts.Lease/3)
	defer cancel()
	moved := p.move(last)
	if stopped == nil {
		return nil // another member continues from where the position is
	}
	return errors.Join(stopped, moved)
}

// position returns the cursor with the group's position, and where it is. It
// fails if the cluster has another history than what the member has handled.
func (m *member) position(ctx context.Context, w *worker) (*client.Cursor, uint64, error) {
	if err := m.client.CheckHistory(ctx, w.partition, w.handled.txid, w.handled.cluster); err != nil {
		return nil, 0, err
	}
	k, err := m.client.Cursor(w.partition, m.name)
	if err != nil {
		return nil, 0, err
	}
	at, err := k.Get(ctx)
	return k, at.Txid, err
}

// progress advances the group's position in a partition.
type progress struct {
	cursor    *client.Cursor
	follower  *client.Follower
	partition int
	committed uint64
	// unanswered is where the last move that failed would have set the position.
	unanswered uint64
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

// move sets the position to what was handled. An earlier move that ended
// without an answer may have set it: that is not another member's doing.
func (p *progress) move(ctx context.Context) error {
	applied := p.follower.Applied(p.partition)
	for applied != p.committed {
		_, err := p.cursor.Move(ctx, applied, p.committed)
		var mismatch *client.CursorMismatchError
		switch {
		case err == nil:
			p.committed = applied
		case !errors.As(err, &mismatch):
			p.unanswered = applied
			return err
		case mismatch.Position.Txid > p.committed && mismatch.Position.Txid == p.unanswered:
			p.committed = p.unanswered
		default:
			return fmt.Errorf("%w: the position is at %d, expected %d", ErrLost, mismatch.Position.Txid, p.committed)
		}
	}
	return nil
}

package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Handler applies a committed transaction. ctx is derived from that of
// [Follower.Run] and ends with it.
//
// Calls for one partition are sequential; those for different partitions are
// concurrent. A handler may block as long as it likes: its partition waits,
// with at most [FollowOptions.BufferBytes] read ahead, and no other partition
// does. It should return soon after ctx ends, because Run waits for it. It may
// call the client's methods except Close and Drain, and it must not wait for
// its own partition to make progress.
//
// The transactions of an atomic batch come one after another, once all of them
// have arrived. It ends with the one whose Txid is Atomic.Last, or before that
// if the last ones do not pass the filter. The position of the follower is
// never between two of them: after a crash, all come again. A handler that has
// to apply them in one piece is a [BatchHandler].
type Handler func(ctx context.Context, tx *Transaction) error

// BatchHandler applies committed transactions of one partition, at least one,
// in txid order. It gets all that are waiting, so that its costs are shared
// while it is behind. It must apply all of them or none: after an error it gets
// them again, one by one. It must not retain the slice.
//
// An atomic batch is always passed in one piece, also after an error, and also
// if it has more than [FollowOptions.MaxBatch] transactions. With a filter it
// is what passes of it.
type BatchHandler func(ctx context.Context, txs []*Transaction) error

// MovedError is returned by a handler that has applied nothing because its
// state was set to another position. The follower continues after After.
type MovedError struct {
	After uint64
	// Cluster is the id of the cluster that the state is from, "" for the one
	// that was followed.
	Cluster string
}

func (m *MovedError) Error() string { return fmt.Sprintf("client: moved to txid %d", m.After) }

// Decision says how to proceed with a transaction whose handler returned an
// error.
type Decision uint8

// Decisions.
const (
	// DecideStop stops following the partition. Other partitions go on.
	DecideStop Decision = iota
	// DecideRetry calls the handler again after a back-off.
	DecideRetry
	// DecideSkip continues with the next transaction. If the skipped one is
	// needed later, store it first.
	DecideSkip
)

// FollowOptions configures following. The zero value passes on all transactions
// and stops a partition at the first error of its handler.
type FollowOptions struct {
	// Kinds selects the transactions of these kinds.
	Kinds []string
	// Lock selects the transactions that recorded an overlapping lock, as write
	// or append lock.
	Lock string
	// Items selects the transactions to which one of them applies, as those of a
	// [Query] do; at most [subjects.MaxQueryItems]. Without items all of Kinds
	// and Lock are selected.
	Items []subjects.QueryItem
	// HeadersOnly leaves out the payloads.
	HeadersOnly bool
	// Group names the consumers that share the partitions, for a [Tracer].
	// Package group sets it.
	Group string

	// OnError decides about a transaction whose handler returned err, for the
	// attempt-th time in a row. It is called on the goroutine of the handler.
	// If a BatchHandler failed to apply an atomic batch, tx is the first
	// transaction of that, and the decision is about all of it. nil means
	// DecideStop, here and in package sqlview.
	OnError func(tx *Transaction, err error, attempt int) Decision
	// MinBackoff and MaxBackoff bound the wait before a retry. Defaults 50 ms
	// and 5 s.
	MinBackoff, MaxBackoff time.Duration
	// OnRejected is called when messages of the feed were dropped because their
	// signatures do not verify: count is the number since the last call, err
	// the reason of the last one. Nothing is lost, because the follower reads
	// what it missed. OnRejected is called at most once a second for each
	// partition, and must not block.
	OnRejected func(partition int, count uint64, err error)
	// OnStop is called when a partition stops with an error while others go on.
	OnStop func(partition int, err error)

	// MaxBatch limits the transactions passed to a BatchHandler at once.
	// Default 256.
	MaxBatch int

	// BufferBytes limits what is read ahead of a partition's handler. At least
	// 64 KiB; default 4 MiB. A larger transaction, or a larger atomic batch, is
	// buffered alone.
	BufferBytes int
	// Clusters has, for each partition, the id of the cluster that its position
	// is from, as [Follower.Cluster] returns it. If the cluster that is followed
	// does not have all that is before the position, the partition stops with a
	// [*HistoryError]. Without an id a Follower compares only what it has
	// followed itself.
	Clusters map[int]string
	// IdleTimeout is how long the feed may be silent before a read checks that
	// nothing was missed. Default 5 s.
	IdleTimeout time.Duration
}

func (o FollowOptions) withDefaults() (FollowOptions, error) {
	if o.MaxBatch == 0 {
		o.MaxBatch = 256
	}
	if o.MaxBatch < 0 {
		return o, fmt.Errorf("%w: MaxBatch is %d: at least 1", ErrOptions, o.MaxBatch)
	}
	if o.BufferBytes == 0 {
		o.BufferBytes = 4 << 20
	}
	if o.BufferBytes < 64<<10 {
		return o, fmt.Errorf("%w: BufferBytes is %d: at least %d", ErrOptions, o.BufferBytes, 64<<10)
	}
	for _, k := range o.Kinds {
		if err := subjects.CheckKind(k); err != nil {
			return o, fmt.Errorf("%w: Kinds: %w", ErrOptions, err)
		}
	}
	if o.Lock != "" {
		if err := subjects.CheckLock(o.Lock); err != nil {
			return o, fmt.Errorf("%w: Lock: %w", ErrOptions, err)
		}
	}
	if len(o.Items) > subjects.MaxQueryItems {
		return o, fmt.Errorf("%w: Items has %d items: at most %d", ErrOptions, len(o.Items), subjects.MaxQueryItems)
	}
	for i := range o.Items {
		if err := checkItem(fmt.Sprintf("Items[%d]", i), &o.Items[i]); err != nil {
			return o, fmt.Errorf("%w: %w", ErrOptions, err)
		}
	}
	return o, fillDurations(map[string]duration{
		"MinBackoff": {&o.MinBackoff, 50 * time.Millisecond}, "MaxBackoff": {&o.MaxBackoff, 5 * time.Second},
		"IdleTimeout": {&o.IdleTimeout, 5 * time.Second},
	})
}

// readBytes returns the size of a read: a quarter of the buffer, so that
// reading goes on while the handler works.
func (o *FollowOptions) readBytes() int { return min(o.BufferBytes/4, 1<<20) }

// readCount returns how many transactions a read of this size asks for. The
// size does not count their overhead, which dominates for small ones: this
// limits the overhead to the same size.
func readCount(bytes int) int { return min(bytes/transactionCost, maxReadCount) }

// transactionCost is the approximate memory of a transaction beyond its
// message, in bytes.
const transactionCost = 256

func (o *FollowOptions) filtered() bool { return len(o.Kinds)+len(o.Items) > 0 || o.Lock != "" }

// Follower passes the transactions of partitions to a handler. It is a [View]
// of what the handler has applied.
type Follower struct {
	c      *Client
	handle BatchHandler
	single bool // handle gets one transaction at a time, also of an atomic batch
	opts   FollowOptions
	parts  map[int]*followedPartition // not changed after NewFollower
}

// followedPartition is the state of one partition of a Follower. mu guards the
// fields below it.
type followedPartition struct {
	partition  int
	pos        position
	mu         sync.Mutex
	stream     *stream                 // nil before Run
	live       *stream                 // stream while it is followed
	handlerErr error                   // while the handler is retried
	cancel     context.CancelCauseFunc // ends the current stream; nil if there is none
	moveTo     *MovedError             // where the next stream starts, if not at pos
	cluster    string                  // that the state is from, "" if it is not known; live knows better
}

func (p *followedPartition) setHandlerErr(err error) {
	p.mu.Lock()
	p.handlerErr = err
	p.mu.Unlock()
}

// Positions maps partitions to the last txid that was applied. 0 is the start
// of a partition.
type Positions map[int]uint64

// NewFollower returns a Follower of the partitions in after, each from the
// transaction after its position on. It does nothing until Run is called.
func (c *Client) NewFollower(after Positions, handle Handler, opts FollowOptions) (*Follower, error) {
	opts.MaxBatch = 1
	f, err := c.NewBatchFollower(after, func(ctx context.Context, txs []*Transaction) error {
		return handle(ctx, txs[0])
	}, opts)
	if err != nil {
		return nil, err
	}
	f.single = true
	return f, nil
}

// NewBatchFollower is NewFollower with a handler of several transactions.
func (c *Client) NewBatchFollower(after Positions, handle BatchHandler, opts FollowOptions) (*Follower, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	f := &Follower{c: c, handle: handle, opts: opts, parts: map[int]*followedPartition{}}
	for p, txid := range after {
		if p < 0 {
			return nil, fmt.Errorf("%w: partition %d", ErrOptions, p)
		}
		f.parts[p] = &followedPartition{partition: p, pos: position{applied: txid}, cluster: opts.Clusters[p]}
	}
	return f, nil
}

// Follow creates a Follower and runs it.
func (c *Client) Follow(ctx context.Context, after Positions, handle Handler, opts FollowOptions) error {
	f, err := c.NewFollower(after, handle, opts)
	if err != nil {
		return err
	}
	return f.Run(ctx)
}

// Run calls the handler for every transaction of each partition, once, in txid
// order, until ctx ends or all partitions have stopped. Each partition has a
// goroutine. Run returns when no handler runs any more, with the error of ctx,
// if it has ended, and those of the partitions that stopped before: the
// handler's, [ErrTrimmed] or [ErrAhead] as a [*RefusedError], [*HistoryError],
// [ErrNoPartition], [ErrClosed]. Called again, it continues where it stopped;
// after a stop inside an atomic batch, with the first transaction of that. It
// must not be called concurrently.
func (f *Follower) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	stopped := make(chan error, len(f.parts))
	for _, p := range f.parts {
		wg.Go(func() {
			err := f.run(ctx, p)
			if ctx.Err() != nil {
				return
			}
			if f.opts.OnStop != nil && err != nil {
				f.opts.OnStop(p.partition, err)
			}
			stopped <- err
		})
	}
	wg.Wait()
	close(stopped)
	var all []error
	for err := range stopped {
		all = append(all, err)
	}
	if ctx.Err() != nil {
		all = append(all, context.Cause(ctx))
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// run follows one partition, across moves.
func (f *Follower) run(ctx context.Context, p *followedPartition) error {
	for {
		err := f.runStream(ctx, p)
		var moved *MovedError
		if !errors.As(err, &moved) {
			p.pos.stop(err)
			return err
		}
		p.mu.Lock()
		if p.moveTo == nil { // otherwise Move was called since
			p.moveTo = moved
		}
		p.mu.Unlock()
	}
}

// beginStream notes how the new stream is canceled, and sets where it starts.
func (p *followedPartition) beginStream(cancel context.CancelCauseFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel = cancel
	if p.moveTo != nil {
		p.pos.move(p.moveTo.After)
		p.cluster = cmp.Or(p.moveTo.Cluster, p.cluster)
		p.moveTo = nil
	}
}

// advance notes that the handler has applied up to txid, unless it was moved in
// the meantime.
func (p *followedPartition) advance(txid uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moveTo == nil {
		p.pos.advance(txid)
	}
}

func (p *followedPartition) endStream() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel = nil
	if p.live != nil {
		p.cluster, p.live = p.live.currentCluster(), nil
	}
}

// currentCluster returns the cluster that the state is from.
func (p *followedPartition) currentCluster() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live != nil {
		return p.live.currentCluster()
	}
	return p.cluster
}

// runStream follows one partition from its position on, until it ends or is
// moved.
func (f *Follower) runStream(ctx context.Context, p *followedPartition) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.beginStream(cancel)
	defer p.endStream()
	return f.c.withStream(ctx, p.partition, p.pos.get(), p.currentCluster(), f.opts, func(ctx context.Context, s *stream) error {
		p.mu.Lock()
		p.stream, p.live = s, s
		p.mu.Unlock()
		p.pos.resume()
		return deliver(ctx, s, f.opts.MaxBatch, func(txs []*Transaction, upTo uint64) error {
			if err := f.apply(ctx, p, txs); err != nil {
				return err
			}
			p.advance(upTo)
			return nil
		})
	})
}

// withStream opens a stream, runs its timers, and calls use with it. It closes
// the stream when use returns.
func (c *Client) withStream(ctx context.Context, partition int, after uint64, cluster string, opts FollowOptions, use func(context.Context, *stream) error) error {
	s, err := newStream(c, partition, after, cluster, opts)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.closed != nil {
		c.mu.Unlock()
		return c.closed
	}
	c.running.Add(1)
	c.mu.Unlock()
	defer c.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	var timers sync.WaitGroup
	defer timers.Wait()
	defer cancel()
	defer s.close()
	if err := s.open(); err != nil {
		return err
	}
	timers.Go(func() { s.runTimers(ctx) })
	return use(ctx, s)
}

// Move makes the handler of a partition continue after the txid after, because
// its state was set to that position. It cancels the context of a call in
// progress. A handler returns a [*MovedError] instead of calling Move.
func (f *Follower) Move(partition int, after uint64) error { return f.MoveIn(partition, after, "") }

// MoveIn is Move to a state that is from the cluster with the given id.
func (f *Follower) MoveIn(partition int, after uint64, cluster string) error {
	p, ok := f.parts[partition]
	if !ok {
		return fmt.Errorf("partition %d: %w", partition, ErrNotFollowed)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moveTo = &MovedError{after, cluster}
	p.pos.move(after)
	if p.cancel != nil {
		p.cancel(&MovedError{after, cluster})
	}
	return nil
}

// Progress describes how far a Follower is with a partition.
type Progress struct {
	// Applied is the last txid that was applied, skipped or filtered out.
	Applied uint64
	// HighWaterMark is the highest txid known.
	HighWaterMark uint64
	// Buffered is the number of bytes that wait for the handler.
	Buffered int
	// Rejected is the number of messages of the feed that were dropped: see
	// [FollowOptions.OnRejected].
	Rejected uint64
	// Err is the current error of the handler or of reading, or the one that
	// stopped the partition.
	Err error
}

// Lag returns the number of transactions that are known and not applied.
func (p Progress) Lag() uint64 { return p.HighWaterMark - p.Applied }

// Progress returns how far a partition is.
func (f *Follower) Progress(partition int) Progress {
	p, ok := f.parts[partition]
	if !ok {
		return Progress{Err: ErrNotFollowed}
	}
	applied := p.pos.get()
	p.mu.Lock()
	s, handlerErr := p.stream, p.handlerErr
	p.mu.Unlock()
	var g Progress
	if s != nil {
		g = s.progress()
	}
	g.Applied, g.HighWaterMark = applied, max(g.HighWaterMark, applied)
	if handlerErr != nil {
		g.Err = handlerErr
	}
	if err := p.pos.stopped(); err != nil {
		g.Err = err
	}
	return g
}

// Cluster returns the id of the cluster whose log the state is from, up to the
// last applied transaction; "" if that is not known yet. Store it with the
// position, and pass both to the next Follower.
func (f *Follower) Cluster(partition int) string {
	p, ok := f.parts[partition]
	if !ok {
		return ""
	}
	return p.currentCluster()
}

// Positions returns the last applied txid of each partition, to be passed to
// the next Follower.
func (f *Follower) Positions() Positions {
	all := make(Positions, len(f.parts))
	for p, part := range f.parts {
		all[p] = part.pos.get()
	}
	return all
}

// Applied returns the last txid that the handler has applied, 0 for a partition
// that is not followed.
func (f *Follower) Applied(partition int) uint64 {
	if p, ok := f.parts[partition]; ok {
		return p.pos.get()
	}
	return 0
}

// Wait returns nil once the handler has applied the partition up to txid. It
// returns an error if ctx ends or the partition stops before that.
func (f *Follower) Wait(ctx context.Context, partition int, txid uint64) error {
	p, ok := f.parts[partition]
	if !ok {
		return fmt.Errorf("partition %d: %w", partition, ErrNotFollowed)
	}
	return p.pos.wait(ctx, txid)
}

// All returns an iterator over the transactions of a partition after the txid
// after, once each, in order. It waits for new ones, and ends only when the
// loop is left or with an error. It ignores OnError and OnStop of opts. To
// continue later, take for after the last txid of an atomic batch, not one
// inside.
func (c *Client) All(ctx context.Context, partition int, after uint64, opts FollowOptions) iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		opts, err := opts.withDefaults()
		left := errors.New("left")
		if err == nil {
			err = c.withStream(ctx, partition, after, "", opts, func(ctx context.Context, s *stream) error {
				return deliver(ctx, s, 1, func(txs []*Transaction, _ uint64) error {
					for _, tx := range txs {
						if !yield(tx, nil) {
							return left
						}
					}
					return nil
				})
			})
		}
		if !errors.Is(err, left) {
			yield(nil, err)
		}
	}
}

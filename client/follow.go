package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Handler applies a committed transaction. ctx is that of Run, and ends with it.
//
// Calls for one partition follow each other; those for different partitions run
// at the same time. A handler may block for as long as it likes: its partition
// waits, with at most [FollowOptions.BufferBytes] read ahead, and no other
// partition does. It should return soon after ctx ends, because Run waits for it.
// It may call the client's methods, but not Close or Drain, and it must not wait
// for its own partition to get further.
type Handler func(ctx context.Context, tx *Transaction) error

// BatchHandler takes committed transactions of one partition, at least one, in
// txid order: those that wait, so that its own costs are shared while it is
// behind. It does all of them or none: after an error it gets them again, one by
// one. The slice is its own until it returns.
type BatchHandler func(ctx context.Context, txs []*Transaction) error

// MovedError is returned by a handler whose state has been set to another position,
// and has not applied what it was given: the follower goes on behind After.
type MovedError struct{ After uint64 }

func (m *MovedError) Error() string { return fmt.Sprintf("client: moved to txid %d", m.After) }

// Decision says what becomes of a transaction that a handler returned an
// error for.
type Decision uint8

// The decisions.
const (
	// DecideStop ends the following of the partition. Others go on.
	DecideStop Decision = iota
	// DecideRetry gives it to the handler again after a back-off.
	DecideRetry
	// DecideSkip goes on behind it. A handler that has to keep the transaction
	// stores it before it decides this.
	DecideSkip
)

// FollowOptions configures following. The zero value gives all transactions
// and stops a partition at the first error of its handler.
type FollowOptions struct {
	// Kinds lets only transactions of these kinds through.
	Kinds []string
	// Lock lets only those through that recorded an overlapping lock, as write
	// or append lock.
	Lock string
	// HeadersOnly leaves the payloads out.
	HeadersOnly bool

	// OnError decides about a transaction whose handler returned err, for the
	// tries-th time in a row. It runs where the handler does. nil decides
	// DecideStop every time, here and in package sqlview.
	OnError func(tx *Transaction, err error, tries int) Decision
	// MinBackoff and MaxBackoff bound the wait before a retry. Default 50 ms
	// and 5 s.
	MinBackoff, MaxBackoff time.Duration
	// OnRejected is told that messages of the feed were dropped because they are
	// not the cluster's, or can't be verified to be: how many since the last call, and why the
	// last one. Nothing is lost; the stream reads. It is called at most once a
	// second for each partition, and must not block.
	OnRejected func(partition int, count uint64, err error)
	// OnStop is told when a partition stops with an error while others go on.
	OnStop func(partition int, err error)

	// MaxBatch is how many transactions a BatchHandler gets at most. Default 256.
	MaxBatch int

	// BufferBytes bounds what is read ahead of a partition's handler.
	// Default 4 MiB; at least 64 KiB. One larger transaction goes alone.
	BufferBytes int
	// IdleTimeout is how long the feed may be silent before a read makes sure
	// that nothing was missed. Default 5 s.
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
	return o, fillDurations(map[string]duration{
		"MinBackoff": {&o.MinBackoff, 50 * time.Millisecond}, "MaxBackoff": {&o.MaxBackoff, 5 * time.Second},
		"IdleTimeout": {&o.IdleTimeout, 5 * time.Second},
	})
}

// readBytes is how much one read asks for: a quarter of the buffer, so that
// reading goes on while the handler works.
func (o *FollowOptions) readBytes() int { return min(o.BufferBytes/4, 1<<20) }

// readCount is how many transactions a read of so many bytes asks for. Small ones are
// mostly what comes with them, which a read's bytes don't count: as much again at
// the most.
func readCount(bytes int) int { return min(bytes/transactionCost, maxReadCount) }

// transactionCost is about what a transaction takes beside its message, in
// bytes.
const transactionCost = 256

func (o *FollowOptions) filtered() bool { return len(o.Kinds) > 0 || o.Lock != "" }

// Follower gives the transactions of partitions to a handler. It is a View of
// what the handler has applied.
type Follower struct {
	c      *Client
	handle BatchHandler
	opts   FollowOptions
	parts  map[int]*followedPartition // not changed after NewFollower
}

// followed is one partition's part of a Follower.
type followedPartition struct {
	partition  int
	pos        position
	mu         sync.Mutex
	stream     *stream                 // nil before Run
	handlerErr error                   // of the handler, while it is retried
	cancel     context.CancelCauseFunc // ends the present stream; nil while there is none
	moveTo     *uint64                 // where the next stream begins, if not behind pos
}

func (p *followedPartition) setHandlerErr(err error) {
	p.mu.Lock()
	p.handlerErr = err
	p.mu.Unlock()
}

// Positions holds a txid for each of some partitions: the last one that was
// applied. 0 is the beginning of a partition.
type Positions map[int]uint64

// NewFollower prepares to follow the partitions of after, each from behind its
// position.
func (c *Client) NewFollower(after Positions, handle Handler, opts FollowOptions) (*Follower, error) {
	opts.MaxBatch = 1
	return c.NewBatchFollower(after, func(ctx context.Context, txs []*Transaction) error {
		return handle(ctx, txs[0])
	}, opts)
}

// NewBatchFollower is NewFollower with a handler that takes several
// transactions at once.
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
		f.parts[p] = &followedPartition{partition: p, pos: position{applied: txid}}
	}
	return f, nil
}

// Follow is NewFollower and Run.
func (c *Client) Follow(ctx context.Context, after Positions, handle Handler, opts FollowOptions) error {
	f, err := c.NewFollower(after, handle, opts)
	if err != nil {
		return err
	}
	return f.Run(ctx)
}

// Run calls the handler for every transaction of each partition, once, in txid
// order, on a goroutine a partition, until ctx ends or all partitions have
// stopped. It returns when no handler runs any more, with ctx's error or those
// of the partitions: the handler's, ErrTrimmed or ErrAhead as *RefusedError,
// ErrNoPartition, ErrClosed. After it returned, Run goes on where it was. It must not run twice
// at a time.
func (f *Follower) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make(chan error, len(f.parts))
	for _, p := range f.parts {
		wg.Go(func() {
			err := f.run(ctx, p)
			if ctx.Err() == nil && f.opts.OnStop != nil && err != nil {
				f.opts.OnStop(p.partition, err)
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// run follows one partition, wherever it is moved to.
func (f *Follower) run(ctx context.Context, p *followedPartition) error {
	for {
		err := f.runStream(ctx, p)
		var moved *MovedError
		if !errors.As(err, &moved) {
			p.pos.stop(err)
			return err
		}
		p.mu.Lock()
		if p.moveTo == nil { // else Move has said it, later
			p.moveTo = &moved.After
		}
		p.mu.Unlock()
	}
}

// begin notes how the stream that begins is left, and is told where it begins.
func (p *followedPartition) beginStream(cancel context.CancelCauseFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel = cancel
	if p.moveTo != nil {
		p.pos.move(*p.moveTo)
		p.moveTo = nil
	}
}

// advance notes that the handler has applied up to txid, unless it was moved
// meanwhile.
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
}

// runOn follows one partition from where it is.
func (f *Follower) runStream(ctx context.Context, p *followedPartition) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.beginStream(cancel)
	defer p.endStream()
	return f.c.withStream(ctx, p.partition, p.pos.get(), f.opts, func(ctx context.Context, s *stream) error {
		p.mu.Lock()
		p.stream = s
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

// stream runs use with a stream, and its clock beside it.
func (c *Client) withStream(ctx context.Context, partition int, after uint64, opts FollowOptions, use func(context.Context, *stream) error) error {
	s, err := newStream(c, partition, after, opts)
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

// drain gives what comes to do, at most most transactions at once, and up to
// where it was, until do returns an error or the stream ends.
func deliver(ctx context.Context, s *stream, limit int, do func(txs []*Transaction, upTo uint64) error) error {
	var txs []*Transaction
	for {
		queue, err := s.take(ctx)
		if err != nil {
			return err
		}
		size := 0
		for len(queue) > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.c.closing:
				return ErrClosed
			default:
			}
			txs = txs[:0]
			var upTo uint64
			for len(queue) > 0 && len(txs) < limit {
				e := queue[0]
				queue[0], queue = entry{}, queue[1:] // not kept longer than the handler does
				upTo = e.upTo
				size += e.size
				if e.tx != nil {
					txs = append(txs, e.tx)
				}
			}
			if err := do(txs, upTo); err != nil {
				return err
			}
			if size >= s.opts.readBytes() {
				s.handled(size)
				size = 0
			}
		}
		clear(txs)
		s.handled(size)
	}
}

// apply gives transactions to the handler, which may be none, and if it fails
// one by one.
func (f *Follower) apply(ctx context.Context, p *followedPartition, txs []*Transaction) error {
	if len(txs) > 1 {
		err := f.handle(ctx, txs)
		var moved *MovedError
		if err == nil || errors.As(err, &moved) {
			return err
		}
		p.setHandlerErr(err)
	}
	for i, tx := range txs {
		if err := f.applyOne(ctx, p, txs[i:i+1]); err != nil {
			return err
		}
		p.advance(tx.Txid)
	}
	return nil
}

// applyOne calls the handler until it is content, or OnError decides
// otherwise.
func (f *Follower) applyOne(ctx context.Context, p *followedPartition, one []*Transaction) error {
	defer p.setHandlerErr(nil)
	tx := one[0]
	for tries := 1; ; tries++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := f.handle(ctx, one)
		var moved *MovedError
		if err == nil || errors.As(err, &moved) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		decision := DecideStop
		if f.opts.OnError != nil {
			decision = f.opts.OnError(tx, err, tries)
		}
		switch decision {
		case DecideSkip:
			return nil
		case DecideRetry:
		default:
			return fmt.Errorf("partition %d: txid %d: %w", tx.Partition, tx.Txid, err)
		}
		p.setHandlerErr(fmt.Errorf("txid %d, try %d: %w", tx.Txid, tries, err))
		select {
		case <-time.After(backoff(tries, f.opts.MinBackoff, f.opts.MaxBackoff)):
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.c.closing:
			return ErrClosed
		}
	}
}

// Move has the handler of a partition go on behind the txid after, because its
// state was set to that position meanwhile. A call that is under way has its
// ctx ended, and later ones are of that position. A handler itself returns
// *MovedError instead.
func (f *Follower) Move(partition int, after uint64) error {
	p, ok := f.parts[partition]
	if !ok {
		return fmt.Errorf("partition %d: %w", partition, ErrNotFollowed)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moveTo = &after
	p.pos.move(after)
	if p.cancel != nil {
		p.cancel(&MovedError{after})
	}
	return nil
}

// Progress is how far a Follower is with a partition.
type Progress struct {
	// Applied is the last txid that was handled or had not to be.
	Applied uint64
	// HighWaterMark is the highest txid heard of: the lag is what it is above
	// Applied.
	HighWaterMark uint64
	// Buffered is how many bytes wait for the handler.
	Buffered int
	// Rejected is how many messages of the feed were dropped because they are not
	// the cluster's: see FollowOptions.OnRejected.
	Rejected uint64
	// Err says why the handler or reading fails at the moment, or why the
	// partition stopped.
	Err error
}

// Lag is how many transactions are known and not applied.
func (p Progress) Lag() uint64 { return p.HighWaterMark - p.Applied }

// Progress tells how far a partition is.
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

// Positions returns the last txid applied of each partition: what the next
// Follower goes on from.
func (f *Follower) Positions() Positions {
	all := make(Positions, len(f.parts))
	for p, part := range f.parts {
		all[p] = part.pos.get()
	}
	return all
}

// Applied returns the last txid that the handler has applied, 0 for a
// partition that is not followed.
func (f *Follower) Applied(partition int) uint64 {
	if p, ok := f.parts[partition]; ok {
		return p.pos.get()
	}
	return 0
}

// Wait returns nil once the handler has applied the partition up to txid. It
// returns an error when ctx ends, and when the partition has stopped before.
func (f *Follower) Wait(ctx context.Context, partition int, txid uint64) error {
	p, ok := f.parts[partition]
	if !ok {
		return fmt.Errorf("partition %d: %w", partition, ErrNotFollowed)
	}
	return p.pos.wait(ctx, txid)
}

// All returns the transactions of a partition after a txid, once, in order, for
// ever: until the loop is left, or with the error that ends it. OnError and
// OnStop of opts mean nothing here.
func (c *Client) All(ctx context.Context, partition int, after uint64, opts FollowOptions) iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		opts, err := opts.withDefaults()
		left := errors.New("left")
		if err == nil {
			err = c.withStream(ctx, partition, after, opts, func(ctx context.Context, s *stream) error {
				return deliver(ctx, s, 1, func(txs []*Transaction, _ uint64) error {
					if len(txs) > 0 && !yield(txs[0], nil) {
						return left
					}
					return nil
				})
			})
		}
		if err != left { //nolint:errorlint // this very one
			yield(nil, err)
		}
	}
}

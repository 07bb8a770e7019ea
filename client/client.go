package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Client appends transactions to a cluster and follows its partitions.
type Client struct {
	nc          *nats.Conn
	opts        Options
	names       subjects.Names
	inbox       string // answers to appends arrive at inbox + token
	inboxSub    *nats.Subscription
	leaderSub   *nats.Subscription // new-leader advisories
	limiter     *limiter
	window      window // of the reads in progress
	feedKey     feedKey
	idPrefix    string // of generated message ids
	ids         atomic.Uint64
	disconnects atomic.Uint64 // how often the connection was lost
	partitions  atomic.Int64  // the cluster's number of partitions, 0 while unknown

	closing   chan struct{}
	closeOnce sync.Once
	running   sync.WaitGroup // senders, streams, watchConnection
	status    chan nats.Status

	// mu guards the fields below, and those of pending requests.
	mu                 sync.Mutex
	closed             error
	drained            bool // all outcomes were known when the client was closed
	fetchingPartitions bool // fetchPartitions is running
	senders            map[int]*sender
	streams            map[*stream]struct{}
	calls              map[*call]struct{}

	// attemptsMu guards lastToken and attempts.
	attemptsMu sync.Mutex
	lastToken  uint64
	attempts   map[uint64]*attempt

	runs []subjects.BatchRun // reused by onAnswer, which runs on one goroutine
}

// New returns a client that uses nc. The caller keeps ownership of nc: Close
// does not close it. Configure nc with unlimited reconnects; while it is
// disconnected, appends wait.
func New(nc *nats.Conn, opts Options) (*Client, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{
		nc: nc, opts: opts, names: subjects.Names{Prefix: opts.Prefix},
		inbox:    nc.NewInbox() + ".",
		limiter:  newLimiter(opts.MaxInFlight, opts.MaxInFlightBytes),
		idPrefix: rand.Text()[:16] + ".",
		closing:  make(chan struct{}),
		senders:  map[int]*sender{}, streams: map[*stream]struct{}{}, calls: map[*call]struct{}{}, attempts: map[uint64]*attempt{},
	}
	if opts.FeedKey != "" {
		c.feedKey.key, _ = subjects.ParseFeedKey(opts.FeedKey) // withDefaults has checked it
		c.feedKey.pinned = true
	}
	// nats.go runs the callbacks of a subscription on one goroutine, so
	// onAnswer is never called concurrently.
	if c.inboxSub, err = c.subscribe(c.inbox+"*", c.onAnswer); err != nil {
		return nil, fmt.Errorf("subscribe to the inbox: %w", err)
	}
	if c.leaderSub, err = c.subscribe(c.names.Advisory("leader"), c.onLeader); err != nil {
		_ = c.inboxSub.Unsubscribe() // fails only if the connection is closed
		return nil, fmt.Errorf("subscribe to advisories: %w", err)
	}
	c.status = nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	c.running.Go(c.watchConnection)
	return c, nil
}

// subscribe calls handle for each message. It removes the pending limits of
// nats.go: the number of messages is bounded by what the client requested, or
// by handle.
func (c *Client) subscribe(subject string, handle nats.MsgHandler) (*nats.Subscription, error) {
	sub, err := c.nc.Subscribe(subject, handle)
	if err != nil {
		return nil, err
	}
	return sub, sub.SetPendingLimits(-1, -1)
}

// Close ends all appends, followers and goroutines of the client. A transaction
// in flight ends with an [*UnknownOutcomeError] if it may have been appended,
// and with [ErrClosed] otherwise; [Client.Drain] waits for the outcomes first.
// Close is idempotent and must not be called by a handler.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		c.closed = ErrClosed
		close(c.closing)
		c.mu.Unlock()
		c.nc.RemoveStatusListener(c.status)
	})
	c.running.Wait()
	var all error
	for _, sub := range []*nats.Subscription{c.inboxSub, c.leaderSub} {
		if err := sub.Unsubscribe(); err != nil && !isClosed(err) && sub.IsValid() {
			all = errors.Join(all, err)
		}
	}
	return all
}

// untilClosed returns a context that ends when the client is closed or cancel
// is called.
func (c *Client) untilClosed() (ctx context.Context, cancel context.CancelFunc) {
	ctx, cancel = context.WithCancel(context.Background())
	c.running.Go(func() {
		select {
		case <-c.closing:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, cancel
}

// Append appends req and waits for its outcome. If it returns a receipt, the
// transaction is committed. An [*UnknownOutcomeError] means that it may or may
// not be committed; every other error means that it is not committed and will
// not be.
//
// If ctx ends first, the error is that of ctx if no attempt can have appended
// the transaction, and an [*UnknownOutcomeError] otherwise. The other errors
// are [*ConflictError], [*RefusedError], [ErrTimeout], [ErrNoPartition],
// [ErrFull], [ErrDraining] and [ErrClosed].
func (c *Client) Append(ctx context.Context, req *Request) (Receipt, error) {
	f, err := c.AppendAsync(ctx, req)
	if err != nil {
		return Receipt{}, err
	}
	return f.sender.wait(ctx, f)
}

// AppendAsync accepts req and returns before its outcome is known. It blocks
// only while the limits of [Options.MaxInFlight] and [Options.MaxInFlightBytes]
// are reached; ctx bounds that wait and nothing else. An error means that
// nothing will be appended: a [*RefusedError] for a malformed req,
// [ErrNoPartition], [ErrFull], [ErrDraining], [ErrClosed], or the error of ctx.
// AppendAsync does not retain req.
func (c *Client) AppendAsync(ctx context.Context, req *Request) (*Future, error) {
	return c.appendAsync(ctx, req, nil)
}

// appendAsync is AppendAsync in a session, unless that is nil.
func (c *Client) appendAsync(ctx context.Context, req *Request, in *Session) (*Future, error) {
	if c.opts.Tracer == nil {
		return c.accept(ctx, req, in, nil, nil)
	}
	header, end := c.opts.Tracer.Append(ctx, c.opts.Prefix, req)
	f, err := c.accept(ctx, req, in, header, end)
	if err != nil && end != nil {
		end(Receipt{}, err)
	}
	return f, err
}

// accept accepts req with more headers. Once the outcome is known, it is passed
// to end, unless that is nil.
func (c *Client) accept(ctx context.Context, req *Request, in *Session, header nats.Header, end func(Receipt, error)) (*Future, error) {
	if err := cmp.Or(req.check(), in.check(req)); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	s, err := c.sender(req.Partition)
	if err != nil {
		return nil, err
	}
	f := &Future{sender: s, session: in, id: req.ID, size: req.size() + in.headerBytes(), end: end}
	if err := f.addHeader(req, header); err != nil {
		return nil, err
	}
	if f.id == "" && in == nil {
		f.number = c.ids.Add(1)
	}
	if err := c.limiter.acquire(ctx, f.size, c.opts.FailWhenFull, c.closing); err != nil {
		return nil, err
	}
	if err := s.add(req, f); err != nil {
		c.limiter.release(1, f.size)
		return nil, err
	}
	return f, nil
}

// sender returns the sender of a partition. It starts the sender on first use.
func (c *Client) sender(partition int) (*sender, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return nil, c.closed
	}
	if err := c.checkPartition(partition); err != nil {
		return nil, err
	}
	s, ok := c.senders[partition]
	if !ok {
		s = newSender(c, partition)
		c.senders[partition] = s
		c.running.Go(s.run)
	}
	return s, nil
}

// maxBatchBytes returns the current limit on the size of a batch message.
func (c *Client) maxBatchBytes() int {
	if most := int(c.nc.MaxPayload()); most > 0 {
		return min(c.opts.MaxBatchBytes, most)
	}
	return c.opts.MaxBatchBytes
}

func (c *Client) backoff(failures int) time.Duration {
	return backoff(failures, c.opts.MinBackoff, c.opts.MaxBackoff)
}

// limitedWait returns the wait after a number of consecutive failures, the last
// of which was a refusal because a limit allows nothing for a time. What waits
// now is given up within Options.Timeout, and an operator may raise the limit
// meanwhile: so the limit is asked again then.
func (c *Client) limitedWait(wait time.Duration, failures int) time.Duration {
	return min(wait, c.opts.Timeout) + c.backoff(failures)
}

func (c *Client) register(a *attempt) {
	c.attemptsMu.Lock()
	c.lastToken++
	a.token = c.lastToken
	c.attempts[a.token] = a
	c.attemptsMu.Unlock()
}

func (c *Client) unregister(a *attempt) {
	c.attemptsMu.Lock()
	delete(c.attempts, a.token)
	c.attemptsMu.Unlock()
}

func (c *Client) replyTo(token uint64) string { return c.inbox + strconv.FormatUint(token, 36) }

func (c *Client) onAnswer(m *nats.Msg) {
	token, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, c.inbox), 36, 64)
	if err != nil {
		return
	}
	c.attemptsMu.Lock()
	a := c.attempts[token]
	delete(c.attempts, token)
	c.attemptsMu.Unlock()
	if a != nil {
		clear(c.runs[:cap(c.runs)])
		c.runs = a.sender.onAnswer(a, m, c.runs)[:0]
	}
}

// watchConnection reports changes of the connection's status to senders and
// streams.
func (c *Client) watchConnection() {
	for {
		select {
		case s, ok := <-c.status:
			switch {
			case !ok:
				return
			case s == nats.CONNECTED:
				c.onReconnected()
			case s == nats.CLOSED:
				c.onConnectionClosed(fmt.Errorf("%w: %w", ErrClosed, nats.ErrConnectionClosed))
			default:
				c.disconnects.Add(1)
			}
		case <-c.closing:
			return
		}
	}
}

func (c *Client) onReconnected() {
	senders, streams := c.sendersAndStreams()
	for _, s := range senders {
		s.onReconnected(c.disconnects.Load())
	}
	for _, s := range streams {
		s.onReconnected()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.calls {
		if r.disconnects < c.disconnects.Load() {
			r.restart(r.attempts)
		}
	}
}

// onConnectionClosed ends all senders and streams: the connection was closed
// for good.
func (c *Client) onConnectionClosed(err error) {
	c.mu.Lock()
	if c.closed == nil {
		c.closed = err
	}
	c.mu.Unlock()
	senders, streams := c.sendersAndStreams()
	for _, s := range senders {
		s.close(err)
	}
	for _, s := range streams {
		s.end(err)
	}
}

func (c *Client) sendersAndStreams() (senders []*sender, streams []*stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.senders {
		senders = append(senders, s)
	}
	for s := range c.streams {
		streams = append(streams, s)
	}
	return senders, streams
}

package client

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

const (
	// maxReadCount limits the transactions of one read. With it, a read of
	// small transactions takes not much more memory than readBytes.
	maxReadCount = 4096
	// maxAheadBytes limits what is kept of the feed while a read is in
	// progress.
	maxAheadBytes = 1 << 20
)

// stream merges the reads and the feed of a partition into one queue, in txid
// order and without a gap. Messages arrive on goroutines of nats.go, which it
// never blocks; runTimers does what is due by the clock. The consumer calls
// take and handled.
type stream struct {
	c             *Client
	partition     int
	opts          FollowOptions
	inbox         string        // answers to reads arrive at inbox + number of the read
	requestSuffix string        // the end of a request's JSON, the same for all reads
	readSize      int           // bytes that the next read asks for
	ready         chan struct{} // capacity 1: take looks at the queue again
	wake          chan struct{} // capacity 1: runTimers recomputes what is due

	// mu guards the fields below, except verifier.
	mu              sync.Mutex
	next            uint64      // next txid to enqueue
	span            AtomicRange // of the last transaction enqueued
	cluster         string      // from which everything before next is; "" if it is not known
	unconfirmed     bool        // the feed may be another cluster's: a read must end first
	seenTxid        uint64      // highest txid received, by a read or from the feed
	readMark        uint64      // high-water mark at the end of the last read
	queue           []queued
	buffered        int         // bytes in the queue, or taken and not yet handled
	read            *activeRead // in progress, or nil
	reads           uint64
	ahead           []*Transaction // from the feed during a read: consecutive transactions
	aheadSize       int
	lastHeard       time.Time // when the feed last said something, or a read found it up to date
	stalledReads    int       // consecutive reads that made no progress
	failures        int       // consecutive failed reads
	retryAt         time.Time // when to read after a failure, zero if there was none
	lastErr         error     // of the last read, nil if it succeeded
	leaderChanges   int       // advisories since the last complete read
	leaderChangedAt time.Time // when the last advisory came
	leaderCheckAt   time.Time // when to act on it, zero if there is nothing to do
	err             error     // what ended the stream
	sub             *nats.Subscription
	feed            *nats.Subscription // nil until the stream has caught up once

	verifier subjects.FeedVerifier // used by onFeedMessage only
	otherKey bool                  // the verifier's key was another before; used by onFeedMessage only

	recheckAt, recheckedAt time.Time // when to read because of messages that could not be verified (zero: never), and when that was done last
	rejected, reported     uint64    // messages of the feed
	reportedAt             time.Time
	lastRejection          error
}

// queued is a transaction, or the information that there is none for the
// handler up to upTo.
type queued struct {
	tx   *Transaction
	upTo uint64
	size int
}

// activeRead is a read in progress. Each of its messages names the transaction
// that was sent before it.
type activeRead struct {
	subject   string
	from      uint64
	lastHeard time.Time // when its last message came
	cost      int       // bytes acquired from the client's window
	lastTxid  uint64    // last transaction received, 0 if there is none
	gap       error     // says which messages are missing; later ones are ignored
}

func newStream(c *Client, partition int, after uint64, cluster string, opts FollowOptions) (*stream, error) {
	s := &stream{
		c: c, partition: partition, readSize: min(firstRead, opts.readBytes()), opts: opts, next: after + 1, seenTxid: after, cluster: cluster,
		inbox: c.nc.NewInbox() + ".",
		ready: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	q, err := json.Marshal(subjects.ReadRequest{
		Kinds: opts.Kinds, Lock: opts.Lock, Query: opts.Items, HeadersOnly: opts.HeadersOnly, Packed: true,
	})
	if err != nil {
		return nil, err
	}
	s.requestSuffix = "," + strings.TrimPrefix(string(q), "{")
	return s, nil
}

// open subscribes to answers and starts the first read.
func (s *stream) open() error {
	s.c.mu.Lock()
	err := s.c.closed
	if err == nil {
		s.c.streams[s] = struct{}{}
	}
	s.c.mu.Unlock()
	if err != nil {
		return err
	}
	s.c.askFeedKey()
	sub, err := s.c.subscribe(s.inbox+"*", s.onReadMessage)
	if err != nil {
		return fmt.Errorf("subscribe to the inbox: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sub = sub
	s.startRead()
	return nil
}

// close ends the stream and its subscriptions.
func (s *stream) close() {
	s.c.mu.Lock()
	delete(s.c.streams, s)
	s.c.mu.Unlock()
	s.end(ErrClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range []*nats.Subscription{s.sub, s.feed} {
		if sub != nil {
			_ = sub.Unsubscribe() // fails only if the connection is closed
		}
	}
}

// end ends the stream with err. What is queued can still be taken.
func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

func (s *stream) endLocked(err error) {
	if s.err == nil {
		s.err = err
	}
	s.abandonRead()
	s.c.window.cancel(s)
	signal(s.ready)
}

// abandonRead ignores the rest of the read in progress.
func (s *stream) abandonRead() {
	if s.read != nil {
		s.c.window.release(s.read.cost)
		s.read = nil
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// startRead requests the next transactions, unless a read is in progress or the
// handler is too far behind: in that case handled starts the read.
func (s *stream) startRead() {
	if s.read != nil || s.err != nil || s.buffered > 0 && s.buffered+2*s.opts.readBytes() > s.opts.BufferBytes {
		return
	}
	s.retryAt = time.Time{}
	cost, ok := s.c.window.acquire(s, s.readSize+s.readSize/2) // an allowance for headers
	if !ok {
		return // the window wakes runTimers
	}
	now := time.Now()
	if !s.recheckAt.IsZero() {
		s.recheckAt, s.recheckedAt = time.Time{}, now
	}
	s.reads++
	s.read = &activeRead{subject: s.inbox + strconv.FormatUint(s.reads, 36), from: s.next, lastHeard: now, cost: cost}
	body := strconv.AppendUint([]byte(`{"from":`), s.next, 10)
	body = fmt.Appendf(body, `,"max":%d,"max_bytes":%d`, readCount(s.readSize), s.readSize)
	if s.cluster != "" {
		body = fmt.Appendf(body, `,"cluster":%q`, s.cluster)
	}
	err := s.c.nc.PublishRequest(s.c.names.Read(s.partition), s.read.subject, append(body, s.requestSuffix...))
	switch {
	case err == nil:
		signal(s.wake)
	case isClosed(err):
		s.endLocked(fmt.Errorf("%w: %w", ErrClosed, err))
	default:
		s.readFailed(err)
	}
}

// readFailed abandons the read and schedules another one after a back-off.
func (s *stream) readFailed(err error) {
	s.abandonRead()
	s.lastErr = err
	s.failures++
	s.retryAt = time.Now().Add(s.c.backoff(s.failures))
	signal(s.wake)
}

// onReadMessage handles a message of a read.
func (s *stream) onReadMessage(m *nats.Msg) {
	var txs []Transaction
	var previous uint64
	var parseErr, chainErr error
	status := m.Header.Get("Status")
	refused := m.Header.Get(subjects.HeaderErrorCode) != ""
	if status == "" && !refused {
		txs, parseErr = parsePacked(s.partition, m.Data)
		previous, chainErr = strconv.ParseUint(m.Header.Get(subjects.HeaderPrevious), 10, 64)
		parseErr = cmp.Or(parseErr, chainErr)
	}
	now := time.Now()
	s.c.window.noteAnswer(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read == nil || s.read.subject != m.Subject {
		return // of a read that was abandoned
	}
	s.read.lastHeard = now
	switch {
	case refused:
		s.onReadRefused(m)
	case status == subjects.StatusEnd:
		s.onReadEnd(m)
	case status == "503":
		if err := s.c.onNoResponders(s.partition); err != nil {
			s.endLocked(err)
			return
		}
		s.readFailed(ErrNoLeader)
	case parseErr != nil || status != "":
		s.readFailed(fmt.Errorf("read: %w", cmp.Or(parseErr, errNotTransaction)))
	default:
		s.onTransactions(txs, previous, m.Size())
	}
}

// onTransactions handles the transactions of one message of a read. previous is
// the txid that was sent before them, size that of the message. Transactions
// after a gap are ignored: the read goes on to its end, and the next one starts
// at the gap.
func (s *stream) onTransactions(txs []Transaction, previous uint64, size int) {
	r := s.read
	if r.gap != nil || len(txs) == 0 || txs[len(txs)-1].Txid <= r.lastTxid { // the last case is a repetition
		return
	}
	if previous != r.lastTxid {
		r.gap = lostError(r.lastTxid, previous)
		return
	}
	r.lastTxid = txs[len(txs)-1].Txid
	each := bytesEach(size, len(txs))
	for i := range txs {
		switch t := &txs[i]; {
		case t.Txid < s.next:
		case t.Txid == s.next || s.opts.filtered():
			if err := s.span.checkNext(t); err != nil {
				s.readFailed(fmt.Errorf("read: %w", err))
				return
			}
			s.enqueue(t, each)
		default:
			s.readFailed(fmt.Errorf("read: got txid %d, want %d", t.Txid, s.next))
			return
		}
	}
}

// lostError says that messages of a read are missing: received is the
// last txid that came, sent the one that the next message names as its
// predecessor.
func lostError(received, sent uint64) error {
	return fmt.Errorf("read: messages were lost: txid %d was received, %d was sent", received, sent)
}

// bytesEach returns the memory charged to each transaction of a message of size
// bytes.
func bytesEach(size, transactions int) int { return size/max(transactions, 1) + transactionCost }

// enqueue queues a transaction.
func (s *stream) enqueue(t *Transaction, size int) {
	if s.opts.HeadersOnly {
		t.Payload = nil
	}
	s.queue = append(s.queue, queued{t, t.Txid, size})
	s.buffered += size
	s.next, s.span = t.Txid+1, t.span()
	s.seenTxid = max(s.seenTxid, t.Txid)
	if len(s.queue) == 1 {
		signal(s.ready)
	}
}

// highWaterMark returns the highest txid known. A wrong mark in the end of a
// read is replaced by the next read.
func (s *stream) highWaterMark() uint64 { return max(s.seenTxid, s.readMark) }

// skip notes that there is nothing for the handler up to upTo.
func (s *stream) skip(upTo uint64) {
	s.next = upTo + 1
	if n := len(s.queue); n > 0 && s.queue[n-1].tx == nil {
		s.queue[n-1].upTo = upTo
		return
	}
	s.queue = append(s.queue, queued{upTo: upTo})
	if len(s.queue) == 1 {
		signal(s.ready)
	}
}

// onReadEnd handles the end of a read.
func (s *stream) onReadEnd(m *nats.Msg) {
	next, err := strconv.ParseUint(m.Header.Get(subjects.HeaderNext), 10, 64)
	mark, err2 := strconv.ParseUint(m.Header.Get(subjects.HeaderHighWaterMark), 10, 64)
	last, err3 := strconv.ParseUint(m.Header.Get(subjects.HeaderLast), 10, 64)
	switch {
	case err != nil || err2 != nil || err3 != nil:
		s.readFailed(fmt.Errorf("read: malformed end: next %q, mark %q, last %q", m.Header.Get(subjects.HeaderNext),
			m.Header.Get(subjects.HeaderHighWaterMark), m.Header.Get(subjects.HeaderLast)))
		return
	case s.read.gap != nil:
		s.readFailed(s.read.gap)
		return
	case last != s.read.lastTxid:
		s.readFailed(lostError(s.read.lastTxid, last))
		return
	case next > s.next && next > mark+1:
		s.readFailed(fmt.Errorf("read: malformed end: next %d is beyond the high-water mark %d", next, mark))
		return
	case s.span.First <= mark && mark < s.span.Last:
		s.readFailed(fmt.Errorf("read: malformed end: the high-water mark %d is inside the atomic batch %d-%d", mark, s.span.First, s.span.Last))
		return
	}
	if next > s.next && s.opts.filtered() {
		s.skip(next - 1)
	}
	s.readMark = mark
	if cluster := m.Header.Get(subjects.HeaderCluster); cluster != "" {
		s.cluster = cluster
	}
	s.unconfirmed = false
	from := s.read.from
	s.abandonRead()
	s.failures, s.leaderChanges, s.lastErr = 0, 0, nil
	if next <= mark {
		s.readSize = min(2*s.readSize, s.opts.readBytes())
	} else {
		s.readSize = min(firstRead, s.opts.readBytes())
	}
	s.useAhead()
	if s.stalledReads++; s.next > from || s.next > s.highWaterMark() {
		s.stalledReads = 0
	}
	switch {
	case s.stalledReads > 1: // once is normal: the read may have been answered before the feed was ahead of it
		s.failures = s.stalledReads - 2
		s.readFailed(fmt.Errorf("read: no transactions from txid %d on, although the high-water mark is %d", s.next, s.highWaterMark()))
	case s.next <= s.highWaterMark():
		s.startRead()
	case s.feed == nil:
		s.subscribeFeed()
	default:
		s.lastHeard = time.Now()
		signal(s.wake)
	}
}

// onReadRefused handles the refusal of a read.
func (s *stream) onReadRefused(m *nats.Msg) {
	err, final := readRefusal(m, s.partition, s.read.from-1, s.cluster)
	if final {
		s.endLocked(err)
		return
	}
	s.readFailed(err)
}

// onReconnected starts a read: answers and messages of the feed may have been
// lost.
func (s *stream) onReconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abandonRead()
	s.unconfirmed = true
	s.ahead, s.aheadSize = nil, 0
	s.startRead()
}

// onNewLeader handles an advisory of a new leader. The answer to a read, and
// the last messages of the feed, may be lost; and a read that waits for a
// leader need not wait long.
func (s *stream) onNewLeader(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaderChanges++
	s.leaderChangedAt, s.leaderCheckAt = now, now.Add(s.c.backoff(s.leaderChanges))
	signal(s.wake)
}

// checkAfterLeaderChange restarts the read, unless a message of it came after
// the advisory.
func (s *stream) checkAfterLeaderChange() {
	s.leaderCheckAt = time.Time{}
	if s.read != nil && s.read.lastHeard.Before(s.leaderChangedAt) {
		s.abandonRead()
	}
	s.startRead()
}

// take returns what is queued. It waits until something is, or returns the
// error that ended the stream.
func (s *stream) take(ctx context.Context) ([]queued, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		s.mu.Lock()
		queue, err := s.queue, s.err
		s.queue = nil
		s.mu.Unlock()
		if len(queue) > 0 {
			return queue, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
		case <-s.c.closing:
			return nil, ErrClosed
		}
	}
}

// handled releases the memory of transactions that were taken, and reads on if
// there is more.
func (s *stream) handled(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buffered -= bytes
	if s.next <= s.highWaterMark() && s.retryAt.IsZero() {
		s.startRead()
	}
	if !s.recheckAt.IsZero() {
		signal(s.wake)
	}
}

// runTimers does what is due by the clock until ctx ends: it abandons reads
// that went silent, reads again after a failure, and checks a silent feed.
func (s *stream) runTimers(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		timer.Reset(time.Until(s.reportRejected(now, s.tick(now))))
		select {
		case <-timer.C:
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// tick does what is due at now, and returns when the next thing is due.
func (s *stream) tick(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leaderCheckAt.IsZero() && !now.Before(s.leaderCheckAt) {
		s.checkAfterLeaderChange()
	}
	next := s.tickLocked(now)
	if !s.leaderCheckAt.IsZero() && s.leaderCheckAt.Before(next) {
		return s.leaderCheckAt
	}
	return next
}

func (s *stream) tickLocked(now time.Time) time.Time {
	switch {
	case s.err != nil:
	case s.read == nil && s.c.window.hasGrant(s):
		if s.startRead(); s.read == nil { // the handler is too far behind
			s.c.window.cancel(s)
		}
	case s.read != nil:
		lost := s.c.window.lostAt(s.read.lastHeard, s.c.opts.AttemptTimeout)
		if now.Before(lost) {
			return lost
		}
		s.readFailed(ErrNoAnswer)
		return s.retryAt
	case !s.retryAt.IsZero():
		if now.Before(s.retryAt) {
			return s.retryAt
		}
		s.startRead()
	case s.feed != nil && !s.recheckAt.IsZero():
		if now.Before(s.recheckAt) {
			return s.recheckAt
		}
		s.startRead()
	case s.feed != nil && s.next > s.highWaterMark():
		if now.Sub(s.lastHeard) < s.opts.IdleTimeout {
			return s.lastHeard.Add(s.opts.IdleTimeout)
		}
		s.startRead()
	}
	return now.Add(s.c.opts.AttemptTimeout)
}

// progress returns the stream's part of a Progress.
func (s *stream) progress() (p Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p = Progress{HighWaterMark: s.highWaterMark(), Buffered: s.buffered, Rejected: s.rejected, Err: s.lastErr}
	if p.Err == nil {
		p.Err = s.c.feedKey.fetchError()
	}
	return p
}

// currentCluster returns the id of the cluster that everything which was queued
// is from, "" if it is not known yet.
func (s *stream) currentCluster() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

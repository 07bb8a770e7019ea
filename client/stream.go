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
	// mostRead bounds one read. With it a read of small transactions stays
	// near readBytes in memory.
	maxReadCount = 4096
	// aheadBytes bounds what is kept of the feed while a read goes on.
	maxAheadBytes = 1 << 20
)

// stream puts reads and the feed of a partition together to one queue, in txid
// order and without a gap. Messages come in on goroutines of nats.go, which it
// never holds up; keep is its clock.
type stream struct {
	c             *Client
	partition     int
	opts          FollowOptions
	inbox         string // answers to reads come to inbox + number of the read
	requestSuffix string // what all reads have in common, behind from and their size
	readSize      int    // that the next read asks for
	ready         chan struct{}
	wake          chan struct{} // keep looks at its clock anew

	mu              sync.Mutex
	next            uint64 // what comes next into the queue
	seenTxid        uint64 // the highest txid that came, in the queue or on the feed
	readMark        uint64 // the high-water mark, as the last read that ended says it
	queue           []entry
	buffered        int         // bytes in the queue, and taken but not handled yet
	read            *activeRead // that is waited for
	reads           uint64
	ahead           []*Transaction // of the feed, a run without gaps, behind a read
	aheadSize       int
	lastHeard       time.Time // of the feed, or that it has nothing
	stalledReads    int       // reads in a row that ended without getting further
	failures        int       // reads in a row
	retryAt         time.Time // when to read after a failure; zero after none
	lastErr         error     // of the last failure
	leaderChanges   int       // of a new leader, since the last read that ended
	leaderChangedAt time.Time // when the last one came
	leaderCheckAt   time.Time // when to act on it; zero if there is nothing to do
	err             error     // the end
	sub             *nats.Subscription
	feed            *nats.Subscription // nil until the stream was level once

	verifier subjects.FeedVerifier // used by onFeed alone

	recheckAt, recheckedAt time.Time // when to read because of what was not verified; zero for never. And when that last was.
	rejected, reported     uint64    // messages of the feed
	reportedAt             time.Time
	lastRejection          error
}

// entry is a transaction, or the news that there is none for the handler up
// to upto.
type entry struct {
	tx   *Transaction
	upTo uint64
	size int
}

// reading is a read in progress. Each of its messages names the transaction that
// was sent before it.
type activeRead struct {
	subject   string
	from      uint64
	lastHeard time.Time // when its last message came
	cost      int       // of the client's window
	lastTxid  uint64    // txid of the last transaction that came, 0 for none
	gap       error     // what is missing; what comes behind it is not taken
}

func newStream(c *Client, partition int, after uint64, opts FollowOptions) (*stream, error) {
	s := &stream{
		c: c, partition: partition, readSize: min(firstRead, opts.readBytes()), opts: opts, next: after + 1, seenTxid: after,
		inbox: c.nc.NewInbox() + ".",
		ready: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	q, err := json.Marshal(subjects.ReadRequest{
		Kinds: opts.Kinds, Lock: opts.Lock, HeadersOnly: opts.HeadersOnly, Packed: true,
	})
	if err != nil {
		return nil, err
	}
	s.requestSuffix = "," + strings.TrimPrefix(string(q), "{")
	return s, nil
}

// open subscribes and begins to read.
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

// close takes the stream off the wire.
func (s *stream) close() {
	s.c.mu.Lock()
	delete(s.c.streams, s)
	s.c.mu.Unlock()
	s.end(ErrClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range []*nats.Subscription{s.sub, s.feed} {
		if sub != nil {
			_ = sub.Unsubscribe() // fails only where the connection is closed
		}
	}
}

// end ends the stream; what is queued can still be taken.
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

// leaveRead takes no more of the read that is waited for.
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

// startRead asks for what comes next, unless that is under way, or too much
// waits for the handler: then handled will.
func (s *stream) startRead() {
	if s.read != nil || s.err != nil || s.buffered > 0 && s.buffered+2*s.opts.readBytes() > s.opts.BufferBytes {
		return
	}
	s.retryAt = time.Time{}
	cost, ok := s.c.window.acquire(s, s.readSize+s.readSize/2) // headers come with the bytes
	if !ok {
		return // until the clock is kicked
	}
	now := time.Now()
	if !s.recheckAt.IsZero() {
		s.recheckAt, s.recheckedAt = time.Time{}, now
	}
	s.reads++
	s.read = &activeRead{subject: s.inbox + strconv.FormatUint(s.reads, 36), from: s.next, lastHeard: now, cost: cost}
	body := strconv.AppendUint([]byte(`{"from":`), s.next, 10)
	body = fmt.Appendf(body, `,"max":%d,"max_bytes":%d`, readCount(s.readSize), s.readSize)
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

// failed gives the read up, and has another begin after a back-off.
func (s *stream) readFailed(err error) {
	s.abandonRead()
	s.lastErr = err
	s.failures++
	s.retryAt = time.Now().Add(s.c.backoff(s.failures))
	signal(s.wake)
}

// onRead takes a message of a read.
func (s *stream) onReadMessage(m *nats.Msg) {
	var txs []Transaction
	var previous uint64
	var parse, chain error
	status := m.Header.Get("Status")
	refused := m.Header.Get(subjects.HeaderErrorCode) != ""
	if status == "" && !refused {
		txs, parse = parsePacked(s.partition, m.Data)
		previous, chain = strconv.ParseUint(m.Header.Get(subjects.HeaderPrevious), 10, 64)
		parse = cmp.Or(parse, chain)
	}
	now := time.Now()
	s.c.window.noteAnswer(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read == nil || s.read.subject != m.Subject {
		return // of a read that was given up
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
	case parse != nil || status != "":
		s.readFailed(fmt.Errorf("read: %w", cmp.Or(parse, errNotTransaction)))
	default:
		s.onTransactions(txs, previous, m.Size())
	}
}

// took takes transactions of a read, which came in a message of a size, behind the
// previous one. What is behind a hole is left: the read goes on to its end, and the
// next one begins at the hole.
func (s *stream) onTransactions(txs []Transaction, previous uint64, size int) {
	r := s.read
	if r.gap != nil || len(txs) == 0 || txs[len(txs)-1].Txid <= r.lastTxid { // the last is a repeat
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
			s.enqueue(t, each)
		default:
			s.readFailed(fmt.Errorf("read: txid %d came where %d was next", t.Txid, s.next))
			return
		}
	}
}

// lostError says that messages of a read are missing: the last one that came, and the one
// that the next says was before it.
func lostError(came, sent uint64) error {
	return fmt.Errorf("read: up to txid %d came, %d was sent: messages were lost on the way", came, sent)
}

// share is what each of so many transactions takes that came in a message of a size.
func bytesEach(size, transactions int) int { return size/max(transactions, 1) + transactionCost }

// push queues a transaction.
func (s *stream) enqueue(t *Transaction, size int) {
	if s.opts.HeadersOnly {
		t.Payload = nil
	}
	s.queue = append(s.queue, entry{t, t.Txid, size})
	s.buffered += size
	s.next = t.Txid + 1
	s.seenTxid = max(s.seenTxid, t.Txid)
	if len(s.queue) == 1 {
		signal(s.ready)
	}
}

// known is the highest txid known of. A mark that is not true is forgotten with the
// next read.
func (s *stream) highWaterMark() uint64 { return max(s.seenTxid, s.readMark) }

// skip notes that the handler gets nothing up to upto.
func (s *stream) skip(upTo uint64) {
	s.next = upTo + 1
	if n := len(s.queue); n > 0 && s.queue[n-1].tx == nil {
		s.queue[n-1].upTo = upTo
		return
	}
	s.queue = append(s.queue, entry{upTo: upTo})
	if len(s.queue) == 1 {
		signal(s.ready)
	}
}

// ended takes the end of a read.
func (s *stream) onReadEnd(m *nats.Msg) {
	next, err := strconv.ParseUint(m.Header.Get(subjects.HeaderNext), 10, 64)
	mark, err2 := strconv.ParseUint(m.Header.Get(subjects.HeaderHighWaterMark), 10, 64)
	last, err3 := strconv.ParseUint(m.Header.Get(subjects.HeaderLast), 10, 64)
	switch {
	case err != nil || err2 != nil || err3 != nil:
		s.readFailed(fmt.Errorf("read: the end says next %q, mark %q and last %q", m.Header.Get(subjects.HeaderNext),
			m.Header.Get(subjects.HeaderHighWaterMark), m.Header.Get(subjects.HeaderLast)))
		return
	case s.read.gap != nil:
		s.readFailed(s.read.gap)
		return
	case last != s.read.lastTxid:
		s.readFailed(lostError(s.read.lastTxid, last))
		return
	case next > s.next && next > mark+1:
		s.readFailed(fmt.Errorf("read: the end says to go on at %d, behind the high-water mark %d", next, mark))
		return
	}
	if next > s.next && s.opts.filtered() {
		s.skip(next - 1)
	}
	s.readMark = mark
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
	case s.stalledReads > 1: // a read may well have been answered before the feed was ahead of it
		s.failures = s.stalledReads - 2
		s.readFailed(fmt.Errorf("read: nothing came from txid %d on, where %d is the last", s.next, s.highWaterMark()))
	case s.next <= s.highWaterMark():
		s.startRead()
	case s.feed == nil:
		s.subscribeFeed()
	default:
		s.lastHeard = time.Now()
		signal(s.wake)
	}
}

// refused takes the refusal of a read.
func (s *stream) onReadRefused(m *nats.Msg) {
	var r subjects.Reply
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error == nil {
		s.readFailed(fmt.Errorf("read: a refusal that can't be read: %q", m.Data))
		return
	}
	mark := uint64(0)
	if r.HighWaterMark != nil {
		mark = *r.HighWaterMark
	}
	err := refusal(*r.Error, s.partition, "", mark)
	if dispositionOf(r.Error) == final {
		s.endLocked(err)
		return
	}
	s.readFailed(err)
}

// reconnected reads: the feed, and answers to reads, may have been lost.
func (s *stream) onReconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abandonRead()
	s.ahead, s.aheadSize = nil, 0
	s.startRead()
}

// newLeader deals with the news that the partition has a new leader. The answer to
// a read, and the last of the feed, may be lost; and what waits for a leader need
// not wait long.
func (s *stream) onNewLeader(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaderChanges++
	s.leaderChangedAt, s.leaderCheckAt = now, now.Add(s.c.backoff(s.leaderChanges))
	signal(s.wake)
}

// checkAgain reads anew, unless a read has been heard of since the news came.
func (s *stream) checkAfterLeaderChange() {
	s.leaderCheckAt = time.Time{}
	if s.read != nil && s.read.lastHeard.Before(s.leaderChangedAt) {
		s.abandonRead()
	}
	s.startRead()
}

// take returns what is queued, and waits for something if nothing is. With the
// stream's end it gives why.
func (s *stream) take(ctx context.Context) ([]entry, error) {
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

// handled gives the memory of what was taken back.
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

// keep is the stream's clock until ctx ends: reads that went silent, reads
// after a failure, and a feed that went silent.
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

// tick does what is due at now, and gives the time of the next.
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
		if s.startRead(); s.read == nil { // too much waits for the handler
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

// state returns what Progress shows.
func (s *stream) progress() (p Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p = Progress{HighWaterMark: s.highWaterMark(), Buffered: s.buffered, Rejected: s.rejected, Err: s.lastErr}
	if p.Err == nil {
		p.Err = s.c.feedKey.fetchError()
	}
	return p
}

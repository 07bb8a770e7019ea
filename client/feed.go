package client

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// The partition's leader signs the feed. A message that does not verify changes
// no position, high-water mark or timer. It is counted and reported. It may
// replace a real message, so the stream reads, at most once per
// recheckInterval.

// recheckInterval is the minimum time between two reads, and between two
// reports, because of messages that do not verify.
const recheckInterval = time.Second

// errNoFeedKey is the error of a message received before the key is known. The
// message may be genuine.
var errNoFeedKey = errors.New("the feed key is unknown")

// subscribeFeed subscribes to the feed and reads once more: what committed
// after the last read and before the subscription is in neither.
func (s *stream) subscribeFeed() {
	feed, err := s.c.subscribe(s.c.names.PackedFeed(s.partition), s.onFeedMessage)
	if err != nil {
		s.readFailed(err)
		return
	}
	s.feed = feed
	s.startRead()
}

// onFeedMessage handles a message of the feed.
func (s *stream) onFeedMessage(m *nats.Msg) {
	txs, err := s.verify(m)
	if errors.Is(err, ErrFeed) {
		s.c.askFeedKey()
	}
	each := bytesEach(m.Size(), len(txs))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.otherKey {
		// Perhaps another cluster's: what follows here is of its history.
		s.otherKey, s.unconfirmed = false, true
		s.abandonRead()
		s.startRead()
	}
	if err != nil {
		s.onUnverified(err, now)
		return
	}
	s.lastHeard = now
	for i := range txs {
		s.onFeedTransaction(&txs[i], each)
	}
}

// verify returns the transactions of a message signed by the leader. It must
// not be called concurrently.
func (s *stream) verify(m *nats.Msg) ([]Transaction, error) {
	key := s.c.feedKey.get()
	if key == nil {
		return nil, errNoFeedKey
	}
	if !bytes.Equal(key, s.verifier.Key) {
		s.otherKey = s.verifier.Key != nil
		s.verifier = subjects.FeedVerifier{Key: key, Partition: s.partition}
	}
	err := s.verifier.Verify(m.Header.Get(subjects.HeaderHashes), m.Header.Get(subjects.HeaderSignature), m.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFeed, err)
	}
	return parsePacked(s.partition, m.Data)
}

// onUnverified handles a message of the feed that cannot be used and may
// replace a genuine one. The caller holds mu.
func (s *stream) onUnverified(err error, now time.Time) {
	if errors.Is(err, ErrFeed) {
		s.rejected++
		s.lastRejection = err
	}
	if s.recheckAt.IsZero() {
		s.recheckAt = now
		if next := s.recheckedAt.Add(recheckInterval); next.After(now) {
			s.recheckAt = next
		}
		signal(s.wake)
	}
}

// onFeedKey schedules a read: messages that came before the key was known were
// dropped.
func (s *stream) onFeedKey() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feed != nil {
		s.recheckAt = time.Now()
		signal(s.wake)
	}
}

// reportRejected calls OnRejected if messages were rejected. It returns next,
// or the earlier time at which there may be more to report.
func (s *stream) reportRejected(now, next time.Time) time.Time {
	s.mu.Lock()
	count, err, due := s.rejected-s.reported, s.lastRejection, s.reportedAt.Add(recheckInterval)
	if count == 0 || s.opts.OnRejected == nil {
		s.mu.Unlock()
		return next
	}
	if now.Before(due) {
		s.mu.Unlock()
		if due.Before(next) {
			return due
		}
		return next
	}
	s.reported, s.reportedAt = s.rejected, now
	s.mu.Unlock()
	s.opts.OnRejected(s.partition, count, err)
	return next
}

// onFeedTransaction handles a transaction of the feed.
func (s *stream) onFeedTransaction(t *Transaction, size int) {
	s.seenTxid = max(s.seenTxid, t.Txid)
	switch {
	case t.Txid < s.next || s.err != nil:
	case s.read != nil || s.unconfirmed:
		s.bufferAhead(t, size)
	case t.Txid > s.next:
		s.bufferAhead(t, size)
		if s.retryAt.IsZero() {
			s.startRead()
		}
	case s.buffered > 0 && s.buffered+size > s.opts.BufferBytes:
		// The handler is slow. What is dropped here is read later.
	default:
		s.accept(t, size)
	}
}

// accept handles the next transaction in order, from the feed.
func (s *stream) accept(t *Transaction, size int) {
	if t.passes(&s.opts) {
		s.enqueue(t, size)
		return
	}
	s.skip(t.Txid)
}

// bufferAhead stores a transaction that the feed delivered during a read. It
// keeps the newest consecutive ones.
func (s *stream) bufferAhead(t *Transaction, size int) {
	if n := len(s.ahead); n > 0 && s.ahead[n-1].Txid+1 != t.Txid || s.aheadSize+size > maxAheadBytes {
		s.ahead, s.aheadSize = nil, 0
	}
	s.ahead = append(s.ahead, t)
	s.aheadSize += size
}

// useAhead accepts the stored transactions if they continue what was read.
func (s *stream) useAhead() {
	if len(s.ahead) > 0 && s.ahead[0].Txid <= s.next && s.buffered+s.aheadSize <= s.opts.BufferBytes {
		size := s.aheadSize / len(s.ahead)
		for _, t := range s.ahead {
			if t.Txid == s.next {
				s.accept(t, size)
			}
		}
	}
	s.ahead, s.aheadSize = nil, 0
}

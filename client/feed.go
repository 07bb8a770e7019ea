package client

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// The feed is signed by the partition's leader. What does not verify moves nothing:
// no position, no mark, no clock. It is counted and reported, and since it may
// stand in the place of a real message the stream reads, rarely.

// doubtEvery is how often a stream reads, and reports, at most because of
// messages that don't verify.
const recheckInterval = time.Second

// errNoFeedKey says that a message came before there was a key. It may be good.
var errNoFeedKey = errors.New("the cluster's key is not known")

// subscribe begins to listen to the feed, and reads once more: what committed
// meanwhile is on neither.
func (s *stream) subscribeFeed() {
	feed, err := s.c.subscribe(s.c.names.PackedFeed(s.partition), s.onFeedMessage)
	if err != nil {
		s.readFailed(err)
		return
	}
	s.feed = feed
	s.startRead()
}

// onFeed takes a message of the feed.
func (s *stream) onFeedMessage(m *nats.Msg) {
	txs, err := s.verify(m)
	if errors.Is(err, ErrFeed) {
		s.c.askFeedKey()
	}
	each := bytesEach(m.Size(), len(txs))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if err != nil {
		s.onUnverified(err, now)
		return
	}
	s.lastHeard = now
	for i := range txs {
		s.onFeedTransaction(&txs[i], each)
	}
}

// verified returns the transactions of a message that the leader made. It is called
// for one message at a time.
func (s *stream) verify(m *nats.Msg) ([]Transaction, error) {
	key := s.c.feedKey.get()
	if key == nil {
		return nil, errNoFeedKey
	}
	if !bytes.Equal(key, s.verifier.Key) {
		s.verifier = subjects.FeedVerifier{Key: key, Partition: s.partition}
	}
	err := s.verifier.Verify(m.Header.Get(subjects.HeaderHashes), m.Header.Get(subjects.HeaderSignature), m.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFeed, err)
	}
	return parsePacked(s.partition, m.Data)
}

// distrust deals with a message of the feed that can't be used: it may stand in the
// place of one that could. mu is held.
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

// keyed reads: what was fed before the key was known was not used.
func (s *stream) onFeedKey() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feed != nil {
		s.recheckAt = time.Now()
		signal(s.wake)
	}
}

// report tells of messages that were rejected, and returns when there may be more to
// tell, if that is before next.
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

// fed takes a transaction of the feed.
func (s *stream) onFeedTransaction(t *Transaction, size int) {
	s.seenTxid = max(s.seenTxid, t.Txid)
	switch {
	case t.Txid < s.next || s.err != nil:
	case s.read != nil:
		s.bufferAhead(t, size)
	case t.Txid > s.next:
		s.bufferAhead(t, size)
		if s.retryAt.IsZero() {
			s.startRead()
		}
	case s.buffered > 0 && s.buffered+size > s.opts.BufferBytes:
		// The handler is slow: what is dropped here is read later.
	default:
		s.accept(t, size)
	}
}

// accept takes the next transaction from the feed.
func (s *stream) accept(t *Transaction, size int) {
	if t.passes(s.opts.Kinds, s.opts.Lock) {
		s.enqueue(t, size)
		return
	}
	s.skip(t.Txid)
}

// keepAhead keeps what the feed says during a read: the newest run without a
// gap.
func (s *stream) bufferAhead(t *Transaction, size int) {
	if n := len(s.ahead); n > 0 && s.ahead[n-1].Txid+1 != t.Txid || s.aheadSize+size > maxAheadBytes {
		s.ahead, s.aheadSize = nil, 0
	}
	s.ahead = append(s.ahead, t)
	s.aheadSize += size
}

// takeAhead goes on with what was kept, if it reaches back far enough.
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

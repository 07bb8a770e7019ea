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
const doubtEvery = time.Second

// errNoFeedKey says that a message came before there was a key. It may be good.
var errNoFeedKey = errors.New("the cluster's key is not known")

// subscribe begins to listen to the feed, and reads once more: what committed
// meanwhile is on neither.
func (s *stream) subscribe() {
	feed, err := s.c.subscribe(s.c.names.PackedFeed(s.partition), s.onFeed)
	if err != nil {
		s.failed(err)
		return
	}
	s.feed = feed
	s.startRead()
}

// onFeed takes a message of the feed.
func (s *stream) onFeed(m *nats.Msg) {
	txs, err := s.verified(m)
	if errors.Is(err, ErrFeed) {
		s.c.askFeedKey()
	}
	each := share(m.Size(), len(txs))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if err != nil {
		s.distrust(err, now)
		return
	}
	s.heard = now
	for i := range txs {
		s.fed(&txs[i], each)
	}
}

// verified returns the transactions of a message that the leader made. It is called
// for one message at a time.
func (s *stream) verified(m *nats.Msg) ([]Transaction, error) {
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
func (s *stream) distrust(err error, now time.Time) {
	if errors.Is(err, ErrFeed) {
		s.rejected++
		s.lastRejection = err
	}
	if s.doubt.IsZero() {
		s.doubt = now
		if next := s.doubted.Add(doubtEvery); next.After(now) {
			s.doubt = next
		}
		signal(s.kick)
	}
}

// keyed reads: what was fed before the key was known was not used.
func (s *stream) keyed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feed != nil {
		s.doubt = time.Now()
		signal(s.kick)
	}
}

// report tells of messages that were rejected, and returns when there may be more to
// tell, if that is before next.
func (s *stream) report(now, next time.Time) time.Time {
	s.mu.Lock()
	count, err, due := s.rejected-s.reported, s.lastRejection, s.reportedAt.Add(doubtEvery)
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
func (s *stream) fed(t *Transaction, size int) {
	s.mark = max(s.mark, t.Txid)
	switch {
	case t.Txid < s.next || s.err != nil:
	case s.read != nil:
		s.keepAhead(t, size)
	case t.Txid > s.next:
		s.keepAhead(t, size)
		if s.due.IsZero() {
			s.startRead()
		}
	case s.held > 0 && s.held+size > s.opts.BufferBytes:
		// The handler is slow: what is dropped here is read later.
	default:
		s.accept(t, size)
	}
}

// accept takes the next transaction from the feed.
func (s *stream) accept(t *Transaction, size int) {
	if t.passes(s.opts.Kinds, s.opts.Lock) {
		s.push(t, size)
		return
	}
	s.skip(t.Txid)
}

// keepAhead keeps what the feed says during a read: the newest run without a
// gap.
func (s *stream) keepAhead(t *Transaction, size int) {
	if n := len(s.ahead); n > 0 && s.ahead[n-1].Txid+1 != t.Txid || s.aheadMem+size > aheadBytes {
		s.ahead, s.aheadMem = nil, 0
	}
	s.ahead = append(s.ahead, t)
	s.aheadMem += size
}

// takeAhead goes on with what was kept, if it reaches back far enough.
func (s *stream) takeAhead() {
	if len(s.ahead) > 0 && s.ahead[0].Txid <= s.next && s.held+s.aheadMem <= s.opts.BufferBytes {
		size := s.aheadMem / len(s.ahead)
		for _, t := range s.ahead {
			if t.Txid == s.next {
				s.accept(t, size)
			}
		}
	}
	s.ahead, s.aheadMem = nil, 0
}

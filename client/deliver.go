package client

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// deliver passes what the stream yields to do, at most limit transactions at a
// time unless an atomic batch has more, with the txid up to which that is
// complete. It returns when do returns an error or the stream ends.
func deliver(ctx context.Context, s *stream, limit int, do func(txs []*Transaction, upTo uint64) error) error {
	var txs []*Transaction
	var rest []queued // of an atomic batch, the beginning: the stream does not count it any more
	for {
		queue, err := s.take(ctx)
		if err != nil {
			return err
		}
		if len(rest) > 0 {
			queue = append(rest, queue...)
		}
		size := 0
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.c.closing:
				return ErrClosed
			default:
			}
			n, upTo := nextEntries(queue, limit)
			if n == 0 {
				break
			}
			txs = txs[:0]
			for i, e := range queue[:n] {
				queue[i] = queued{} // lets the handler's transactions be freed
				size += e.size
				if e.tx != nil {
					txs = append(txs, e.tx)
				}
			}
			queue = queue[n:]
			if err := do(txs, upTo); err != nil {
				return err
			}
			if size >= s.opts.readBytes() {
				s.handled(size)
				size = 0
			}
		}
		for i := range queue {
			size += queue[i].size
			queue[i].size = 0
		}
		rest = queue
		clear(txs)
		s.handled(size)
	}
}

// nextEntries returns how many entries of a queue are to be passed on together,
// with at most limit transactions, but with whole atomic batches: 0 if the rest
// of the first one has not come. upTo is the txid up to which that is complete.
func nextEntries(queue []queued, limit int) (n int, upTo uint64) {
	for count := 0; n < len(queue); {
		whole, end := wholeEntries(queue[n:])
		for _, e := range queue[n : n+whole] {
			if e.tx != nil {
				count++
			}
		}
		if whole == 0 || n > 0 && count > limit {
			break
		}
		n, upTo = n+whole, end
	}
	return n, upTo
}

// wholeEntries returns how many entries at the front of a queue belong
// together, 0 if others are yet to come. An entry without a transaction may end
// inside an atomic batch: then nothing of that up to there passes the filter,
// and what does comes together.
func wholeEntries(queue []queued) (n int, upTo uint64) {
	if queue[0].tx == nil {
		return 1, queue[0].upTo
	}
	last := queue[0].tx.span().Last
	for i, e := range queue {
		if e.tx != nil && e.tx.Txid > last { // a filter has left out the end
			return i, last
		}
		if e.upTo >= last {
			return i + 1, e.upTo
		}
	}
	return 0, 0
}

// together returns how many transactions at the front of txs are of one atomic
// batch, 1 if the first one is in none.
func together(txs []*Transaction) (n int) {
	for n < len(txs) && txs[n].span() == txs[0].span() {
		n++
	}
	return n
}

// apply calls the handler with txs, which may be empty, and after an error with
// one transaction or one atomic batch at a time.
func (f *Follower) apply(ctx context.Context, p *followedPartition, txs []*Transaction) error {
	if n := together(txs); n < len(txs) {
		err := f.call(ctx, txs)
		var moved *MovedError
		if err == nil || errors.As(err, &moved) {
			return err
		}
		p.setHandlerErr(err)
	}
	for len(txs) > 0 {
		n := together(txs)
		each := n
		if f.single {
			each = 1
		}
		for i := 0; i < n; i += each {
			if err := f.applyOne(ctx, p, txs[i:i+each]); err != nil {
				return err
			}
		}
		p.advance(txs[0].span().Last)
		txs = txs[n:]
	}
	return nil
}

// applyOne calls the handler with one transaction or one atomic batch, until it
// returns nil or OnError decides not to retry.
func (f *Follower) applyOne(ctx context.Context, p *followedPartition, one []*Transaction) error {
	defer p.setHandlerErr(nil)
	tx := one[0]
	for attempt := 1; ; attempt++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := f.call(ctx, one)
		var moved *MovedError
		if err == nil || errors.As(err, &moved) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		decision := DecideStop
		if f.opts.OnError != nil {
			decision = f.opts.OnError(tx, err, attempt)
		}
		switch decision {
		case DecideSkip:
			return nil
		case DecideRetry:
		default:
			return fmt.Errorf("partition %d: %s: %w", tx.Partition, txids(one), err)
		}
		p.setHandlerErr(fmt.Errorf("%s, attempt %d: %w", txids(one), attempt, err))
		select {
		case <-time.After(backoff(attempt, f.opts.MinBackoff, f.opts.MaxBackoff)):
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.c.closing:
			return ErrClosed
		}
	}
}

// txids names transactions in an error.
func txids(txs []*Transaction) string {
	if n := len(txs); n > 1 {
		return fmt.Sprintf("txids %d to %d", txs[0].Txid, txs[n-1].Txid)
	}
	return fmt.Sprintf("txid %d", txs[0].Txid)
}

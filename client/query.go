package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// queryBytes is how much one read of a query asks for.
const queryBytes = 512 << 10

// Query selects committed transactions of a partition. The zero value selects
// all of them.
type Query struct {
	// Items selects the transactions to which one of them applies, up to
	// [subjects.MaxQueryItems]: those that are of one of its kinds, unless it
	// has none, and that recorded a lock overlapping each of its locks, as write
	// or append lock. Without items all transactions are selected.
	Items []subjects.QueryItem
	// From is the first txid wanted; with NewestFirst the last one, by default
	// the high-water mark.
	From uint64
	// Since leaves out the transactions before a time, unless it is zero.
	Since time.Time
	// Max is the most transactions wanted, 0 for all.
	Max int
	// NewestFirst returns the newest transaction first.
	NewestFirst bool
	// HeadersOnly leaves out the payloads.
	HeadersOnly bool
}

// Found is what a query has selected.
type Found struct {
	Transactions []*Transaction
	// HighWaterMark is the partition's when the query was answered. If More is
	// false, Transactions has all that the query selects up to there.
	HighWaterMark uint64
	// More reports whether something may be missing: after Max transactions,
	// or, with NewestFirst, because older ones were trimmed.
	More bool
}

// Query returns the transactions that a query selects, with the high-water mark
// of the state that they make: a decision that was computed from them is
// appended with that mark. It returns [ErrAhead] for a From beyond the log's
// end, and [ErrTrimmed] for one that was trimmed. It retries until ctx ends.
//
// The transactions are in memory together: set Max, or use [Client.Read] where
// there may be many.
func (c *Client) Query(ctx context.Context, partition int, q Query) (f Found, err error) {
	r := c.reading(partition, q)
	for t, err := range r.all(ctx) {
		if err != nil {
			return Found{}, err
		}
		f.Transactions = append(f.Transactions, t)
	}
	f.HighWaterMark, f.More = r.mark, !r.ended
	return f, nil
}

// Read returns an iterator over the transactions that a query selects: once
// each, in order, up to the high-water mark. With NewestFirst it ends where the
// log begins, even if older transactions were trimmed. It also ends after an
// error, which is one of those of [Client.Query].
func (c *Client) Read(ctx context.Context, partition int, q Query) iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		c.reading(partition, q).all(ctx)(yield)
	}
}

// reading is a query in progress, over as many reads as it takes.
type reading struct {
	c         *Client
	partition int
	q         Query
	next      uint64 // where the next read begins
	taken     int
	mark      uint64 // at the end of the last read; with NewestFirst of the first
	ended     bool   // there is nothing more to read
}

func (c *Client) reading(partition int, q Query) *reading {
	return &reading{c: c, partition: partition, q: q, next: q.From}
}

// all iterates over the transactions.
func (r *reading) all(ctx context.Context) iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		for !r.ended && (r.q.Max == 0 || r.taken < r.q.Max) {
			page, err := r.page(ctx)
			if r.q.NewestFirst && r.next != r.q.From && errors.Is(err, ErrTrimmed) {
				return // all that is kept was returned
			}
			if err != nil {
				yield(nil, fmt.Errorf("read partition %d: %w", r.partition, err))
				return
			}
			for i := range page {
				r.taken++
				if !yield(&page[i], nil) {
					return
				}
			}
		}
	}
}

// page makes one read.
func (r *reading) page(ctx context.Context) (page []Transaction, err error) {
	req := subjects.ReadRequest{
		From: r.next, FromTime: r.q.Since, Max: maxReadCount, MaxBytes: queryBytes, Query: r.q.Items,
		NewestFirst: r.q.NewestFirst, HeadersOnly: r.q.HeadersOnly, Packed: true,
	}
	if r.q.Max > 0 {
		req.Max = min(req.Max, r.q.Max-r.taken)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	err = r.c.retry(ctx, r.partition, func(ctx context.Context, _ int) (err error, done bool) {
		page, err, done = r.try(ctx, body)
		return err, done
	})
	return page, err
}

// try sends a read, and returns its transactions if all have come.
func (r *reading) try(ctx context.Context, body []byte) (page []Transaction, err error, done bool) {
	inbox := r.c.nc.NewInbox()
	sub, err := r.c.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err, false
	}
	defer sub.Unsubscribe() // fails only if the connection is closed
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err, false
	}
	if err := r.c.nc.PublishRequest(r.c.names.Read(r.partition), inbox, body); err != nil {
		return nil, err, false
	}
	for last := uint64(0); ; {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, err, false
		}
		switch status := m.Header.Get("Status"); {
		case status == "503":
			return nil, nats.ErrNoResponders, false
		case m.Header.Get(subjects.HeaderErrorCode) != "":
			err, final := readRefusal(m, r.partition, 0, "")
			return nil, err, final
		case status == subjects.StatusEnd:
			err := r.end(m, last)
			return page, err, err == nil
		}
		if page, err = r.take(page, m, last); err != nil {
			return nil, err, false
		}
		last = page[len(page)-1].Txid
	}
}

// take appends the transactions of a message, of which last came before.
func (r *reading) take(page []Transaction, m *nats.Msg, last uint64) ([]Transaction, error) {
	txs, err := parsePacked(r.partition, m.Data)
	previous, chainErr := strconv.ParseUint(m.Header.Get(subjects.HeaderPrevious), 10, 64)
	switch {
	case err != nil || chainErr != nil || len(txs) == 0:
		return nil, fmt.Errorf("read: %w", cmp.Or(err, chainErr, errNotTransaction))
	case previous != last:
		return nil, lostError(last, previous)
	}
	return append(page, txs...), nil
}

// end takes the end of a read, of which last was the last transaction received.
func (r *reading) end(m *nats.Msg, last uint64) error {
	var fields [3]uint64
	for i, name := range []string{subjects.HeaderLast, subjects.HeaderNext, subjects.HeaderHighWaterMark} {
		n, err := strconv.ParseUint(m.Header.Get(name), 10, 64)
		if err != nil {
			return fmt.Errorf("read: malformed end: %s: %w", name, err)
		}
		fields[i] = n
	}
	if sent, next, mark := fields[0], fields[1], fields[2]; sent != last {
		return lostError(last, sent)
	} else if r.q.NewestFirst {
		r.mark = cmp.Or(r.mark, mark)
		r.ended, r.next = next == 0, next
	} else {
		r.mark, r.ended, r.next = mark, next > mark, next
	}
	return nil
}

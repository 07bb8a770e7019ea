package client

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// AtomicBatch is transactions that commit together, or not at all. They get
// consecutive txids, and nothing comes between them.
//
// The locks of all of them are checked against HighWaterMark, and not against
// each other.
type AtomicBatch struct {
	// Partition is the partition to append to.
	Partition int
	// Transactions are those to append, in this order: at least one, and
	// [subjects.MaxBatch] at most. Each has its payload, kind, header and locks.
	// The other fields of [Request] must be left as they are: those of the
	// batch apply.
	Transactions []*Request

	// HighWaterMark is the txid up to which the writer had applied the
	// partition when it computed the batch, 0 for none.
	HighWaterMark uint64
	// Unless is a condition: the batch commits unless a transaction after
	// HighWaterMark matches one of the items, at most [subjects.MaxUnless].
	Unless []subjects.QueryItem
	// ID is the message id of the batch, at most 128 bytes. If ID is empty the
	// client generates one. Readers find it at the first transaction.
	ID string
	// ExpectedLast makes the batch commit only if the partition's high-water
	// mark equals it.
	ExpectedLast *uint64
	// NotAfter, unless it is zero, is the last time with which the batch may
	// commit: see [Request.NotAfter].
	NotAfter time.Time
}

// Add adds a transaction with a kind ("" means "tx") and a payload. It returns
// the transaction, for its locks and its header.
func (b *AtomicBatch) Add(kind string, payload []byte) *Request {
	req := new(Request)
	req.Set(kind, payload)
	b.Transactions = append(b.Transactions, req)
	return req
}

// AtomicReceipt is the proof that an atomic batch is committed.
type AtomicReceipt struct {
	Partition int
	// First and Last are the txids of its first and its last transaction.
	First, Last uint64
	// Time is when the leader certified the first transaction.
	Time time.Time
	// Duplicate reports that the partition already knew the message id: from an
	// earlier attempt whose answer was lost, or from an earlier batch.
	Duplicate bool
}

// AppendAtomic appends a batch and waits for its outcome. If it returns a
// receipt, all transactions are committed. An [*UnknownOutcomeError] means that
// either all or none may be committed; every other error means that none is
// committed, nor will be.
//
// The errors are those of [Client.Append], and concern the batch as a whole. A
// batch that is larger than the NATS server's max_payload is refused with
// [ErrTooLarge]. While a node of the cluster runs a version without atomic
// batches, the client waits and tries again, unless that node leads the
// partition, which refuses them with [ErrBadRequest]: upgrade all nodes first.
//
// AppendAtomic does not retain b. A batch counts as one transaction for
// [Options.MaxInFlight] and [Client.Pending].
func (c *Client) AppendAtomic(ctx context.Context, b *AtomicBatch) (AtomicReceipt, error) {
	more, end := c.traceAtomic(ctx, b)
	f, err := c.acceptAtomic(ctx, b, more, end)
	if err != nil {
		end(Receipt{}, err)
		return AtomicReceipt{}, err
	}
	r, err := f.sender.wait(ctx, f)
	if err != nil {
		return AtomicReceipt{}, err
	}
	return AtomicReceipt{Partition: r.Partition, First: r.Txid, Last: r.Txid + uint64(f.count) - 1, Time: r.Time, Duplicate: r.Duplicate}, nil
}

// traceAtomic tells the Tracer of each transaction. It returns the headers that
// it adds to them, and a function to be called with the receipt of the first.
func (c *Client) traceAtomic(ctx context.Context, b *AtomicBatch) (more []nats.Header, end func(Receipt, error)) {
	more = make([]nats.Header, len(b.Transactions))
	if c.opts.Tracer == nil {
		return more, func(Receipt, error) {}
	}
	ends := make([]func(Receipt, error), len(b.Transactions))
	for i, req := range b.Transactions {
		if req == nil {
			continue // it is refused
		}
		traced := *req
		traced.Partition, traced.HighWaterMark, traced.ID = b.Partition, b.HighWaterMark, b.ID
		more[i], ends[i] = c.opts.Tracer.Append(ctx, c.opts.Prefix, &traced)
	}
	return more, func(r Receipt, err error) {
		for i, end := range ends {
			if end == nil {
				continue
			}
			own := r
			if err == nil {
				own.Txid, own.Time = r.Txid+uint64(i), r.Time.Add(time.Duration(i))
			}
			end(own, err)
		}
	}
}

// acceptAtomic is accept for an atomic batch. more has headers for each of its
// transactions.
func (c *Client) acceptAtomic(ctx context.Context, b *AtomicBatch, more []nats.Header, end func(Receipt, error)) (*Future, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s, err := c.sender(b.Partition)
	if err != nil {
		return nil, err
	}
	f := &Future{sender: s, id: b.ID, count: len(b.Transactions), end: end}
	lines := make([][]byte, len(more))
	for i, req := range b.Transactions {
		own := Future{size: req.size()}
		if err := own.addHeader(req, more[i]); err != nil {
			return nil, err
		}
		lines[i] = own.header
		f.size += own.size
	}
	if f.id == "" {
		f.number = c.ids.Add(1)
	}
	if err := c.limiter.acquire(ctx, f.size, c.opts.FailWhenFull, c.closing); err != nil {
		return nil, err
	}
	m := b.message(f, lines)
	if err = c.checkSize(b, m); err == nil {
		err = s.addAtomic(m)
	}
	if err != nil {
		c.limiter.release(1, f.size)
		return nil, err
	}
	return f, nil
}

// message returns the message of an atomic batch. lines are more header lines
// of each transaction.
func (b *AtomicBatch) message(f *Future, lines [][]byte) *batch {
	m := &batch{atomic: nats.Header{subjects.HeaderAtomic: {"true"}, subjects.HeaderMsgID: {f.ID()}}, data: make([]byte, 0, f.size)}
	needsMark := b.HighWaterMark != 0 || len(b.Unless) > 0
	for i, req := range b.Transactions {
		m.data = req.appendFrame(m.data, nil, lines[i])
		needsMark = needsMark || req.needsMark()
	}
	if needsMark {
		m.atomic.Set(subjects.HeaderHighWaterMark, strconv.FormatUint(b.HighWaterMark, 10))
	}
	if b.ExpectedLast != nil {
		m.atomic.Set(subjects.HeaderExpectedLast, strconv.FormatUint(*b.ExpectedLast, 10))
	}
	if !b.NotAfter.IsZero() {
		m.atomic.Set(subjects.HeaderNotAfter, b.NotAfter.UTC().Format(time.RFC3339Nano))
	}
	for i := range b.Unless {
		m.atomic.Add(subjects.HeaderUnless, string(appendItem(nil, &b.Unless[i])))
	}
	m.items = []item{{f, len(m.data)}}
	return m
}

// checkSize refuses a message that the NATS server would refuse.
func (c *Client) checkSize(b *AtomicBatch, m *batch) error {
	n := len(m.data) + len("NATS/1.0\r\n\r\n")
	for key, values := range m.atomic {
		for _, v := range values {
			n += len(key) + len(v) + fieldBytes
		}
	}
	if most := int(c.nc.MaxPayload()); most > 0 && n > most {
		return b.refuse("the atomic batch has %d bytes: the NATS server takes at most %d (its max_payload), so append fewer or smaller transactions together", subjects.TooLarge, n, most)
	}
	return nil
}

func (b *AtomicBatch) refuse(format string, reason subjects.Reason, args ...any) error {
	return refusal(*subjects.Errorf(reason, format, args...), b.Partition, b.ID, 0)
}

// checkSet returns ErrNothing unless a transaction was added.
func (b *AtomicBatch) checkSet() error {
	if len(b.Transactions) == 0 {
		return ErrNothing
	}
	return nil
}

// check refuses what a node would refuse.
func (b *AtomicBatch) check() error {
	switch n := len(b.Transactions); {
	case n == 0:
		return b.refuse("the atomic batch has no transactions: add at least one", subjects.BadRequest)
	case n > subjects.MaxBatch:
		return b.refuse("the atomic batch has %d transactions: at most %d", subjects.BadRequest, n, subjects.MaxBatch)
	}
	whole := Request{Partition: b.Partition, Unless: b.Unless, ID: b.ID, NotAfter: b.NotAfter}
	if err := whole.check(); err != nil {
		return err
	}
	for i, req := range b.Transactions {
		err := b.checkOne(req)
		if err == nil {
			continue
		}
		var e *subjects.Error
		if !errors.As(err, &e) {
			e = subjects.Errorf(subjects.BadRequest, "%v", err)
		}
		return b.refuse("transaction %d of the atomic batch: %s", e.Reason, i+1, e.Message)
	}
	return nil
}

// checkOne checks a transaction of the batch.
func (b *AtomicBatch) checkOne(req *Request) error {
	if req == nil {
		return subjects.Errorf(subjects.BadRequest, "it is nil")
	}
	if req.Partition != 0 && req.Partition != b.Partition {
		return subjects.Errorf(subjects.BadRequest, "its Partition is %d, and that of the batch %d: leave it out, all are appended to one partition", req.Partition, b.Partition)
	}
	for _, whole := range []struct {
		name string
		set  bool
	}{{"HighWaterMark", req.HighWaterMark != 0}, {"Unless", len(req.Unless) > 0}, {"ID", req.ID != ""}, {"ExpectedLast", req.ExpectedLast != nil}, {"NotAfter", !req.NotAfter.IsZero()}} {
		if whole.set {
			return subjects.Errorf(subjects.BadRequest, "it has %s, which is given for the whole batch: set AtomicBatch.%[1]s", whole.name)
		}
	}
	if req.Move != (subjects.Move{}) {
		return subjects.Errorf(subjects.BadRequest, "it moves cursor %q, which only a transaction of a Session may", req.Move.Cursor)
	}
	return req.checkForm()
}

package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// unsendableError is returned for a stored transaction whose message is larger
// than the NATS server accepts: max_payload was larger when it was appended.
// See unsendable.
type unsendableError struct {
	txid       uint64
	need, most int // bytes
}

func (e *unsendableError) Error() string {
	return fmt.Sprintf("txid %d makes a message of %d bytes, and the NATS server's max_payload is %d: raise it to at least %d",
		e.txid, e.need, e.most, e.need)
}

// unsendable finds the stored transactions of a partition that are too large to
// send.
type unsendable struct {
	partition int
	names     subjects.Names
	log       *slog.Logger
	store     *wal.Log
	nats      natsInfo
	position  func() position
	// largest is the largest that was found.
	largest atomic.Pointer[unsendableError]
}

// mustFit returns an error for a transaction that can't be sent. The node's log
// and status then show it.
func (u *unsendable) mustFit(enc *encoder, t *wal.Transaction, payload, packed bool, most int) error {
	need := enc.size(t, payload, packed, most)
	if need <= most {
		return nil
	}
	e := &unsendableError{t.Txid, need, most}
	// The status shows the largest one found. Only the first is logged: there
	// may be thousands.
	old := u.now()
	if (old == nil || e.need > old.need) && u.largest.CompareAndSwap(old, e) && old == nil {
		u.log.Error("a stored transaction can't be read, and the node is not ready: max_payload is less than when it was appended; "+
			"there may be others, which are not logged, and the status names the largest one found", "err", e)
	}
	refused := subjects.Errorf(subjects.TooLarge, "%s", e)
	refused.Txid = t.Txid
	return refused
}

// find searches the log for transactions that are too large for the NATS
// server, until ctx ends. It reads nothing while max_payload is large enough
// for every possible transaction, as it is by default.
func (u *unsendable) find(ctx context.Context) {
	next, most := uint64(0), 0
	for ctx.Err() == nil {
		changed := u.nats.LimitsChanged()
		if now := u.nats.MaxPayload(); now != most {
			next, most = 0, now
		}
		at := u.position()
		if most < subjects.MaxTransaction+feedRoom {
			next = u.findTo(ctx, next, at, most)
		} else {
			at.changed = nil
		}
		select {
		case <-ctx.Done():
		case <-at.changed:
		case <-changed:
		}
	}
}

// findTo checks the transactions from next to at, and returns the txid after
// the last one checked. It ignores read errors, which reads and scrubs report.
func (u *unsendable) findTo(ctx context.Context, next uint64, at position, most int) uint64 {
	next = max(next, at.first)
	if next > at.mark {
		return next
	}
	enc := encoder{partition: u.partition, names: u.names}
	var t wal.Transaction
	for _, b := range u.store.Batches(next, at.index) {
		if b.Err != nil || ctx.Err() != nil {
			return next
		}
		for records := b.Batch.Read(); records.Next(&t); {
			_ = u.mustFit(&enc, &t, true, false, most) // records one that does not fit
			next = t.Txid + 1
		}
		if next > at.mark {
			return next
		}
	}
	return next
}

// now returns the largest transaction that is known to be too large, nil if
// there is none: max_payload may have been raised since, or the transaction
// trimmed.
func (u *unsendable) now() *unsendableError {
	e := u.largest.Load()
	if e == nil || e.need > u.nats.MaxPayload() && e.txid >= u.position().first {
		return e
	}
	u.largest.CompareAndSwap(e, nil)
	return nil
}

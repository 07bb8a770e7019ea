package broker

import (
	"context"
	"fmt"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// unsendableError is returned for a stored transaction whose message is larger than the
// NATS server accepts: max_payload was larger when it was appended. See findUnsendable.
type unsendableError struct {
	txid       uint64
	need, most int // bytes
}

func (e *unsendableError) Error() string {
	return fmt.Sprintf("txid %d makes a message of %d bytes, and the NATS server's max_payload is %d: raise it to at least %d",
		e.txid, e.need, e.most, e.need)
}

// mustFit returns an error for a transaction that can't be sent. The node's log and status
// then show it.
func (p *partition) mustFit(enc *encoder, t *wal.Transaction, payload, packed bool, most int) error {
	need := enc.size(t, payload, packed, most)
	if need <= most {
		return nil
	}
	e := &unsendableError{t.Txid, need, most}
	// The status shows the largest one found. Only the first is logged: there may be
	// thousands.
	old := p.unsendableNow()
	if (old == nil || e.need > old.need) && p.unsendable.CompareAndSwap(old, e) && old == nil {
		p.log.Error("a stored transaction can't be read, and the node is not ready: max_payload is less than when it was appended; "+
			"there may be others, which are not logged, and the status names the largest one found", "err", e)
	}
	refused := subjects.Errorf(subjects.TooLarge, "%s", e)
	refused.Txid = t.Txid
	return refused
}

// findUnsendable searches the log for transactions that are too large for the NATS server,
// until ctx ends. It reads nothing while max_payload is large enough for every possible
// transaction, as it is by default.
func (p *partition) findUnsendable(ctx context.Context) {
	next, most := uint64(0), 0
	for ctx.Err() == nil {
		changed := p.host.nats.LimitsChanged()
		if now := p.host.nats.MaxPayload(); now != most {
			next, most = 0, now
		}
		at := p.replica.position()
		if most < subjects.MaxTransaction+feedRoom {
			next = p.findUnsendableTo(ctx, next, at, most)
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

// findUnsendableTo checks the transactions from next to at, and returns the txid after the
// last one checked. It ignores read errors, which reads and scrubs report.
func (p *partition) findUnsendableTo(ctx context.Context, next uint64, at position, most int) uint64 {
	next = max(next, at.first)
	if next > at.mark {
		return next
	}
	enc := encoder{partition: p.id, names: p.host.names}
	var t wal.Transaction
	for _, b := range p.store.Batches(next, at.index) {
		if b.Err != nil || ctx.Err() != nil {
			return next
		}
		for records := b.Batch.Read(); records.Next(&t); {
			_ = p.mustFit(&enc, &t, true, false, most) // records one that does not fit
			next = t.Txid + 1
		}
		if next > at.mark {
			return next
		}
	}
	return next
}

// unsendableNow returns the largest transaction that is known to be too large, nil if
// there is none: max_payload may have been raised since, or the transaction trimmed.
func (p *partition) unsendableNow() *unsendableError {
	e := p.unsendable.Load()
	if e == nil || e.need > p.host.nats.MaxPayload() && e.txid >= p.replica.position().first {
		return e
	}
	p.unsendable.CompareAndSwap(e, nil)
	return nil
}

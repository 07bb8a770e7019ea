package broker

import (
	"bytes"
	"context"
	"fmt"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// wireLimits are what the NATS server takes from a connection: it closes one that
// sends anything larger, and with it everything that the connection serves.
type wireLimits struct {
	payload int // bytes of a message, headers included; 0 if it is not known yet
	control int // bytes of a command's first line
}

// acceptable returns commands without what the server does not take.
func (l *link) acceptable(commands []byte) []byte {
	limits := wireLimits{payload: int(l.maxPayload.Load()), control: int(l.maxReply.Load()) + controlLineMargin}
	kept, dropped := limits.keep(commands)
	if dropped > 0 {
		l.log.Error("messages are larger than the NATS server takes, and were not sent",
			"link", l.name, "messages", dropped, "max_payload", limits.payload, "max_control_line", limits.control)
	}
	return kept
}

// keep returns commands without the messages that are too large, and how many those
// are. It is the last line of defense: whoever makes messages that can become too
// large refuses in time, with a reason.
func (m wireLimits) keep(commands []byte) (kept []byte, dropped int) {
	if m.control <= controlLineMargin { // not known yet
		return commands, 0
	}
	if len(commands) <= m.control && (m.payload == 0 || len(commands) <= m.payload) {
		return commands, 0
	}
	start := 0 // of what is to be kept, and not yet in kept
	for at := 0; at < len(commands); {
		end := at + bytes.IndexByte(commands[at:], '\n') + 1
		if end == at {
			break // not a whole command
		}
		line := bytes.TrimRight(commands[at:end], "\r\n")
		next, size := end, 0
		if bytes.HasPrefix(line, []byte("PUB ")) || bytes.HasPrefix(line, []byte("HPUB ")) {
			size, _ = parseSize(line[bytes.LastIndexByte(line, ' ')+1:])
			next = end + size + len("\r\n")
		}
		if len(line) > m.control || m.payload > 0 && size > m.payload {
			kept = append(kept, commands[start:at]...)
			start = next
			dropped++
		}
		at = next
	}
	if dropped == 0 {
		return commands, 0
	}
	return append(kept, commands[min(start, len(commands)):]...), dropped
}

// unsendableError is met with a stored transaction whose message is larger than the
// NATS server takes: max_payload was larger when it was appended. See findUnsendable.
type unsendableError struct {
	txid       uint64
	need, most int // bytes
}

func (e *unsendableError) Error() string {
	return fmt.Sprintf("txid %d makes a message of %d bytes, and the NATS server's max_payload is %d: raise it to at least %d",
		e.txid, e.need, e.most, e.need)
}

// mustFit refuses a transaction that can't be sent, and has the node say so.
func (p *partition) mustFit(enc *encoder, t *wal.Transaction, payload, packed bool, most int) error {
	need := enc.size(t, payload, packed, most)
	if need <= most {
		return nil
	}
	e := &unsendableError{t.Txid, need, most}
	// The largest that a read has met is what the status shows. The log has one line
	// for the partition: there may be thousands of such transactions.
	old := p.unsendableNow()
	if (old == nil || e.need > old.need) && p.unsendable.CompareAndSwap(old, e) && old == nil {
		p.log.Error("a stored transaction can't be read, and the node is not ready: max_payload is less than when it was appended; "+
			"there may be others, which are not logged, and the status names the largest that a read has met", "err", e)
	}
	refused := subjects.Errorf(subjects.TooLarge, "%s", e)
	refused.Txid = t.Txid
	return refused
}

// findUnsendable looks for stored transactions that the NATS server does not take, until
// ctx ends. It looks at nothing while max_payload lets every transaction through that
// was ever allowed, as the default does.
func (p *partition) findUnsendable(ctx context.Context) {
	next, most := uint64(0), 0
	for ctx.Err() == nil {
		changed := p.node.nats.limitsChanged()
		if now := p.node.nats.maxPayload(); now != most {
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

// findUnsendableTo looks at the transactions from next to at, and returns the one after
// the last that it has looked at. Reads and scrubs report what can't be read.
func (p *partition) findUnsendableTo(ctx context.Context, next uint64, at position, most int) uint64 {
	next = max(next, at.first)
	if next > at.mark {
		return next
	}
	enc := encoder{partition: p.id, names: p.node.names}
	var t wal.Transaction
	for _, b := range p.store.Batches(next, at.index) {
		if b.Err != nil || ctx.Err() != nil {
			return next
		}
		for records := b.Batch.Read(); records.Next(&t); {
			_ = p.mustFit(&enc, &t, true, false, most) // notes one that does not fit
			next = t.Txid + 1
		}
		if next > at.mark {
			return next
		}
	}
	return next
}

// unsendableNow returns the transaction that is known to be too large, nil if there
// is none any more: max_payload was raised, or the transaction was trimmed.
func (p *partition) unsendableNow() *unsendableError {
	e := p.unsendable.Load()
	if e == nil || e.need > p.node.nats.maxPayload() && e.txid >= p.replica.position().first {
		return e
	}
	p.unsendable.CompareAndSwap(e, nil)
	return nil
}

package broker

import (
	"cmp"
	"strconv"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// An atomic batch is a batch message whose transactions commit together or not
// at all. It is decoded into one request for the whole, its head, and one for
// each transaction. The certifier decides on the head: it has the message id,
// the mark and the condition of the message, and the locks of all transactions.
// What passes and is stored are the transactions.

// batchHeader is what the header block of a batch message says.
type batchHeader struct {
	atomic bool
	head   *request // what is given for an atomic batch as a whole
	own    string   // a header of that, "" for none
	rows   int
}

// decodeBatchHeader reads the header block of a batch message into head.
func decodeBatchHeader(m *natslink.Message, head *request) (h batchHeader, refused *subjects.Error) {
	h.head = head
	if err := subjects.ScanBlock(m.Header, h.field); err != nil {
		return h, wireError(err)
	}
	if h.own != "" && !h.atomic {
		return h, subjects.Errorf(subjects.BadRequest,
			"header %q is on the batch message: put it into each transaction's header block, or add %s: true if all are to commit together", h.own, subjects.HeaderAtomic)
	}
	return h, nil
}

func (h *batchHeader) field(key, value []byte) error {
	h.rows++
	if err := checkHeader(h.rows, key); err != nil {
		return err
	}
	switch name := text(key); {
	case name == subjects.HeaderAtomic:
		if h.atomic || string(value) != "true" {
			return subjects.Errorf(subjects.BadRequest, `%s %q: give "true" once, or leave it out`, subjects.HeaderAtomic, clip(value))
		}
		h.atomic = true
		return nil
	case isWhole(name):
		h.own = name
		return h.head.field(key, value)
	case subjects.IsRequestHeader(name):
		return subjects.Errorf(subjects.BadRequest, "header %q is on the batch message: put it into each transaction's header block", name)
	}
	_, err := subjects.CheckOtherHeader(text(key))
	return err
}

// isWhole reports whether a header is given for an atomic batch as a whole, not
// for each of its transactions.
func isWhole(key string) bool {
	switch key {
	case subjects.HeaderHighWaterMark, subjects.HeaderUnless, subjects.HeaderMsgID, subjects.HeaderSession, subjects.HeaderSessionSeq,
		subjects.HeaderCursor, subjects.HeaderExpectedLast, subjects.HeaderNotAfter:
		return true
	}
	return false
}

// decodeAtomic decodes the transactions of an atomic batch, whose head r is.
// add returns an empty request for each.
func (r *request) decodeAtomic(items batchItems, limit int, add func() *request) *subjects.Error {
	call := &batchMessage{reply: r.reply, atomic: true, left: items.count, outcomes: make([]outcome, items.count)}
	r.items = make([]*request, 0, items.count)
	id := r.tx.MsgID
	for i := range items.count {
		t := add()
		r.items = append(r.items, t)
		t.batch, t.index, t.message = call, i, r.message
		t.tx.HighWaterMark, t.tx.HasHighWaterMark = r.tx.HighWaterMark, r.tx.HasHighWaterMark
		t.cert.HighWaterMark, t.cert.HasHighWaterMark = r.cert.HighWaterMark, r.cert.HasHighWaterMark
		if items.count > 1 {
			t.tx.Atomic = wal.Atomic{Index: uint32(i), Size: uint32(items.count)}
		}
		// The header of the whole is sent to readers with each transaction.
		header, payload := items.next()
		if err := t.decode(header, payload, limit-r.size); err != nil {
			err.Message = "transaction " + strconv.Itoa(i+1) + " of the atomic batch: " + err.Message
			return err
		}
		r.cert.Locks = append(r.cert.Locks, t.cert.Locks...)
	}
	if err := cmp.Or(r.checkMark(), r.checkSession()); err != nil {
		return err
	}
	setIDs(&r.tx, &r.cert)
	if r.cert.ID != (lockmgr.ID{}) {
		r.cert.Fingerprint = payloadsHash(r.items)
		first := r.items[0]
		first.tx.MsgID, first.cert.ID, first.cert.Fingerprint = id, r.cert.ID, r.cert.Fingerprint
		first.tx.Atomic.Fingerprint = r.cert.Fingerprint
	}
	r.items[0].tx.Cursor, r.items[0].tx.CursorTxid = r.tx.Cursor, r.tx.CursorTxid
	for _, t := range r.items {
		t.tx.Session, t.tx.SessionSeq = r.tx.Session, r.tx.SessionSeq
		t.cert.Session, t.cert.SessionSeq = r.cert.Session, r.cert.SessionSeq
	}
	r.finding.apply(&r.cert)
	return nil
}

// payloadsHash returns a hash of the payloads of an atomic batch, which is
// stored with the message id. That of one transaction is the one of an append.
func payloadsHash(items []*request) uint64 {
	if len(items) == 1 {
		return lockmgr.Fingerprint(items[0].tx.Payload)
	}
	return wal.PayloadsHash(func(yield func([]byte) bool) {
		for _, t := range items {
			if !yield(t.tx.Payload) {
				return
			}
		}
	})
}

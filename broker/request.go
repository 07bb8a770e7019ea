package broker

import (
	"cmp"
	"encoding/binary"
	"strconv"
	"sync"
	"unsafe"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/traces"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// request is one transaction to be appended. Its slices alias the message that
// it was received in.
type request struct {
	reply string // the reply subject, "" for none
	batch *batchMessage
	index int        // in batch
	items []*request // of the head of an atomic batch, its transactions

	message *natslink.Message // that it was received in, nil in tests
	finding *logFinding       // what was found in the log for it, nil if that was not searched
	early   earlyMatch
	stays   *subjects.Error // why its cursor may not move, nil if it may or there is none

	tx     wal.Transaction     // what is stored
	cert   lockmgr.Transaction // what is certified
	unless []queryItem         // its condition
	seen   seenHeaders
	traced *traces.Append // nil unless the append is traced
	size   int            // payload and headers, as they are sent to readers
	rows   int            // headers
}

// requestArena holds the requests of one batch, in blocks so that they lie in
// memory in the order in which they are used.
type requestArena struct {
	blocks [][]request
	n      int // requests in use
}

const arenaBlock = 64

var requestArenas = sync.Pool{New: func() any { return new(requestArena) }}

func newRequestArena() *requestArena { return requestArenas.Get().(*requestArena) }

// add returns an empty request.
func (a *requestArena) add(reply string) *request {
	if a.n == len(a.blocks)*arenaBlock {
		a.blocks = append(a.blocks, make([]request, arenaBlock))
	}
	a.n++
	r := a.at(a.n - 1)
	r.reply = reply
	return r
}

// at returns request number i of those in use.
func (a *requestArena) at(i int) *request { return &a.blocks[i/arenaBlock][i%arenaBlock] }

// free returns the arena to the pool. Nothing may refer to its requests any
// more.
func (a *requestArena) free() {
	for i := range a.n {
		r := &a.blocks[i/arenaBlock][i%arenaBlock]
		locks, stored, unless := r.cert.Locks, r.tx.Locks, r.unless
		clear(locks)
		clear(stored)
		clear(unless)
		*r = request{} // refers to no message
		r.cert.Locks, r.tx.Locks, r.unless = locks[:0], stored[:0], unless[:0]
	}
	a.n = 0
	requestArenas.Put(a)
}

// seenHeaders is the set of headers seen that are allowed once.
type seenHeaders uint8

const (
	seenMark seenHeaders = 1 << iota
	seenKind
	seenMsgID
	seenExpected
	seenNotAfter
	seenSession
	seenSessionSeq
	seenCursor
)

// decode reads the header block and the payload of an append into r. The error
// tells the client what is wrong and what would be right.
func (r *request) decode(header, payload []byte, limit int) *subjects.Error {
	r.tx.Payload = payload
	r.size = len(payload)
	if len(header)+len(payload) <= limit {
		if err := subjects.ScanBlock(header, r.field); err != nil {
			return wireError(err)
		}
	}
	// The larger of two sizes counts: as received, and as sent to readers, where
	// "Key:value" becomes "Key: value".
	if n := max(r.size, len(header)+len(payload)); n > limit {
		return subjects.Errorf(subjects.TooLarge,
			"the transaction has %d bytes with its headers: at most %d are allowed", n, limit)
	}
	if r.tx.Kind == nil {
		r.tx.Kind = defaultKind
	}
	if err := cmp.Or(r.checkMark(), r.checkSession()); err != nil {
		return err
	}
	setIDs(&r.tx, &r.cert)
	if r.cert.ID != (lockmgr.ID{}) {
		r.cert.Fingerprint = lockmgr.Fingerprint(payload)
	}
	r.finding.apply(&r.cert)
	return nil
}

// base returns the transaction up to which the condition was checked.
func (r *request) base() uint64 {
	if r.finding == nil {
		return r.cert.HighWaterMark
	}
	return max(r.cert.HighWaterMark, r.finding.through)
}

var defaultKind = []byte(subjects.DefaultKind)

// checkMark refuses a checked lock, or a condition, without a high-water mark
// to check it against.
func (r *request) checkMark() *subjects.Error {
	if r.cert.HasHighWaterMark {
		return nil
	}
	if len(r.unless) > 0 {
		return subjects.Errorf(subjects.BadRequest,
			"%s is missing: %s is checked against it, so give the txid up to which you had read or applied the partition (0 for nothing yet)",
			subjects.HeaderHighWaterMark, subjects.HeaderUnless)
	}
	for _, l := range r.cert.Locks {
		if l.Mode != lockmgr.Append {
			return subjects.Errorf(subjects.BadRequest,
				"%s is missing: lock %q is checked against it, so give the txid up to which you had applied the partition (0 for nothing yet)",
				subjects.HeaderHighWaterMark, l.Name)
		}
	}
	return nil
}

// checkSession refuses a session that is not given as a whole. It makes the
// condition one of the session.
func (r *request) checkSession() *subjects.Error {
	bad := func(format string, args ...any) *subjects.Error {
		return subjects.Errorf(subjects.BadRequest, format, args...)
	}
	switch hasName, hasSeq := r.seen&seenSession != 0, r.seen&seenSessionSeq != 0; {
	case !hasName && !hasSeq && len(r.tx.Cursor) > 0:
		return bad("%s is missing: %s moves a cursor of the transaction's session", subjects.HeaderSession, subjects.HeaderCursor)
	case !hasName && !hasSeq:
		return nil
	case !hasSeq:
		return bad("%s is missing: give the transaction's number in session %q, from 1 on", subjects.HeaderSessionSeq, clip(r.tx.Session))
	case !hasName:
		return bad("%s is missing: %s %d is a number in a session", subjects.HeaderSession, subjects.HeaderSessionSeq, r.tx.SessionSeq)
	case r.tx.SessionSeq == 0:
		return bad("%s is 0: the first transaction of a session has number 1", subjects.HeaderSessionSeq)
	case len(r.tx.MsgID) > 0:
		return bad("%s and %s are both given: the number in a session is its message id, so leave %[1]s out", subjects.HeaderMsgID, subjects.HeaderSession)
	case r.tx.SessionSeq == 1 && !r.cert.HasHighWaterMark:
		return bad("%s is missing: a session begins with one, so give the txid up to which you had applied the partition", subjects.HeaderHighWaterMark)
	}
	for i := range r.unless {
		r.unless[i].besides = text(r.tx.Session)
	}
	return nil
}

// session reads the name of a session.
func (r *request) session(value []byte) error {
	if err := r.once(seenSession, subjects.HeaderSession); err != nil {
		return err
	}
	r.tx.Session = value
	return subjects.CheckSession(text(value))
}

// cursor reads the cursor that moves with the transaction.
func (r *request) cursor(value []byte) error {
	if err := r.once(seenCursor, subjects.HeaderCursor); err != nil {
		return err
	}
	m, err := subjects.ParseMove(text(value))
	r.tx.Cursor, r.tx.CursorTxid = value[:len(m.Cursor)], m.Txid
	return err
}

// field reads one header.
func (r *request) field(key, value []byte) error {
	r.size += len(key) + len(value) + len(": \r\n")
	r.rows++
	if err := checkHeader(r.rows, key); err != nil {
		return err
	}
	if r.batch != nil && r.batch.atomic && isWhole(text(key)) {
		return subjects.Errorf(subjects.BadRequest, "header %q is given for the whole batch: put it on the message", key)
	}
	switch string(key) {
	case subjects.HeaderWriteLock:
		return r.locks(subjects.HeaderWriteLock, wal.WriteLock, value)
	case subjects.HeaderReadLock:
		return r.locks(subjects.HeaderReadLock, wal.ReadLock, value)
	case subjects.HeaderAppendLock:
		return r.locks(subjects.HeaderAppendLock, wal.AppendLock, value)
	case subjects.HeaderUnless:
		return r.addUnless(value)
	case subjects.HeaderHighWaterMark:
		n, err := r.number(seenMark, subjects.HeaderHighWaterMark, value)
		r.tx.HighWaterMark, r.tx.HasHighWaterMark = n, true
		r.cert.HighWaterMark, r.cert.HasHighWaterMark = n, true
		return err
	case subjects.HeaderSession:
		return r.session(value)
	case subjects.HeaderSessionSeq:
		n, err := r.number(seenSessionSeq, subjects.HeaderSessionSeq, value)
		r.tx.SessionSeq = n
		return err
	case subjects.HeaderCursor:
		return r.cursor(value)
	case subjects.HeaderExpectedLast:
		n, err := r.number(seenExpected, subjects.HeaderExpectedLast, value)
		r.cert.ExpectedLast, r.cert.HasExpectedLast = n, true
		return err
	case subjects.HeaderNotAfter:
		return r.notAfter(value)
	case subjects.HeaderKind:
		r.tx.Kind = value
		if err := r.once(seenKind, subjects.HeaderKind); err != nil {
			return err
		}
		return subjects.CheckKind(text(value))
	case subjects.HeaderMsgID:
		r.tx.MsgID = value
		if err := r.once(seenMsgID, subjects.HeaderMsgID); err != nil {
			return err
		}
		return subjects.CheckMsgID(text(value))
	}
	return r.other(key, value)
}

// checkHeader refuses the nth header of a block if n is too large or the
// header's name too long.
func checkHeader(n int, key []byte) error {
	if n > subjects.MaxHeaders {
		return subjects.Errorf(subjects.BadRequest, "there are more than %d headers", subjects.MaxHeaders)
	}
	if len(key) > subjects.MaxHeaderName {
		return subjects.Errorf(subjects.BadRequest, "the name of header %q has %d bytes: at most %d are allowed", clip(key), len(key), subjects.MaxHeaderName)
	}
	return nil
}

// other reads a header that has no meaning here: the application's own is kept,
// one of NATS is ignored, and one that looks like a typing error is refused.
func (r *request) other(key, value []byte) error {
	verdict, err := subjects.CheckOtherHeader(text(key))
	if err != nil || verdict == subjects.Ignored {
		return err
	}
	r.tx.Header = subjects.AppendField(r.tx.Header, text(key), value)
	return nil
}

// locks reads the value of a lock header, a list of one name or several.
func (r *request) locks(header string, mode wal.LockMode, value []byte) error {
	rest := value
	for n, more := 1, true; more; n++ {
		var name []byte
		name, rest, more = subjects.NextLock(rest)
		if len(name) == 0 {
			return noName(header, value, n, n == 1 && !more)
		}
		if err := r.lock(mode, name); err != nil {
			return err
		}
	}
	return nil
}

// noName refuses a list of locks whose name number n is empty, or that is
// empty.
func noName(header string, value []byte, n int, empty bool) error {
	if empty {
		return subjects.Errorf(subjects.BadRequest, `%s is empty: leave it out, or give lock names, such as "account.42,account.43"`, header)
	}
	return subjects.Errorf(subjects.BadRequest,
		`%s %q: lock %d of the list is empty: give one comma between two locks, and none before the first or after the last`, header, clip(value), n)
}

func (r *request) lock(mode wal.LockMode, name []byte) error {
	if len(r.cert.Locks) == subjects.MaxLocks {
		return subjects.Errorf(subjects.BadRequest, "the transaction names more than %d locks", subjects.MaxLocks)
	}
	if err := subjects.CheckLock(text(name)); err != nil {
		return err
	}
	r.cert.Locks = append(r.cert.Locks, lockmgr.Lock{Mode: lockModes[mode], Name: text(name)})
	r.tx.Locks = append(r.tx.Locks, wal.Lock{Mode: mode, Name: name})
	return nil
}

func (r *request) once(which seenHeaders, name string) error {
	if r.seen&which != 0 {
		return subjects.Errorf(subjects.BadRequest, "%s is given twice: it may stand once", name)
	}
	r.seen |= which
	return nil
}

// notAfter reads the time by which the transaction has to commit.
func (r *request) notAfter(value []byte) error {
	if err := r.once(seenNotAfter, subjects.HeaderNotAfter); err != nil {
		return err
	}
	at, err := subjects.ParseTime(string(value))
	if err != nil {
		return subjects.Errorf(subjects.BadRequest, "%s: %s", subjects.HeaderNotAfter, clip([]byte(err.Error())))
	}
	r.cert.NotAfter, r.cert.HasNotAfter = at.UnixNano(), true
	return nil
}

func (r *request) number(which seenHeaders, name string, value []byte) (uint64, error) {
	if err := r.once(which, name); err != nil {
		return 0, err
	}
	for _, c := range value {
		if c < '0' || c > '9' {
			return 0, subjects.Errorf(subjects.BadRequest,
				"%s %q is not a number: a whole number of 0 or more, in decimal digits, is needed", name, clip(value))
		}
	}
	n, err := strconv.ParseUint(text(value), 10, 64)
	if err != nil {
		return 0, subjects.Errorf(subjects.BadRequest,
			"%s %q is too large: a whole number from 0 to 18446744073709551615 is needed", name, clip(value))
	}
	return n, nil
}

// text returns b as a string without copying it: b must not change while the
// string is used. Messages' buffers never do.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func clip(b []byte) string {
	if len(b) > 64 {
		return string(b[:64]) + "…"
	}
	return string(b)
}

// batchMessage gathers the outcomes of a batch message's transactions, which
// are answered together.
type batchMessage struct {
	reply    string
	atomic   bool
	left     int // outcomes still missing; owned by the responder
	outcomes []outcome
}

// outcome is the outcome of one request.
type outcome struct {
	txid      uint64
	time      int64
	duplicate bool
	err       *subjects.Error
}

// batchItems iterates over the transactions of a batch message.
type batchItems struct {
	count int
	rest  []byte // the next one and those after it
}

// parseBatch checks the payload of a batch message, which holds for each
// transaction the lengths of its header block and its payload (4 bytes each,
// big-endian), then both. It may hold at most most transactions. An error
// concerns the message as a whole: none of its transactions is appended.
func parseBatch(payload []byte, most int) (batchItems, *subjects.Error) {
	b := payload
	bad := func(n int, what string) (batchItems, *subjects.Error) {
		return batchItems{}, subjects.Errorf(subjects.BadRequest, "batch frame, transaction %d: %s", n+1, what)
	}
	if len(b) == 0 {
		return batchItems{}, subjects.Errorf(subjects.BadRequest, "batch frame is empty: it needs at least one transaction")
	}
	n := 0
	for ; len(b) > 0; n++ {
		if n == most {
			return batchItems{}, subjects.Errorf(subjects.TooLarge, "batch frame holds more than %d transactions", most)
		}
		if len(b) < itemLengths {
			return bad(n, "its two lengths are cut short")
		}
		header, payload := uint64(binary.BigEndian.Uint32(b)), uint64(binary.BigEndian.Uint32(b[4:]))
		b = b[itemLengths:]
		if header+payload > uint64(len(b)) {
			return bad(n, "it says "+strconv.FormatUint(header+payload, 10)+" bytes follow, and there are "+strconv.Itoa(len(b)))
		}
		b = b[header+payload:]
	}
	return batchItems{count: n, rest: payload}, nil
}

// itemLengths is the size of the two lengths.
const itemLengths = 8

// next returns the next of count transactions.
func (it *batchItems) next() (header, payload []byte) {
	b := it.rest[itemLengths:]
	h := binary.BigEndian.Uint32(it.rest)
	end := h + binary.BigEndian.Uint32(it.rest[4:])
	it.rest = b[end:]
	return b[:h:h], b[h:end:end]
}

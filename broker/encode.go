package broker

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Messages that a partition sends are encoded here, appended to buffers by hand
// where there is one for each transaction.

func appendTime(dst []byte, ns int64) []byte {
	return time.Unix(0, ns).UTC().AppendFormat(dst, time.RFC3339Nano)
}

// appendSuccess appends the reply to an append that committed.
func appendSuccess(dst []byte, partition int, o outcome) []byte {
	dst = append(dst, `{"partition":`...)
	dst = strconv.AppendInt(dst, int64(partition), 10)
	dst = appendTxid(append(dst, ','), o)
	return append(dst, '}')
}

// appendTxid appends the fields that a reply and a run of a batch reply have in
// common.
func appendTxid(dst []byte, o outcome) []byte {
	dst = append(dst, `"txid":`...)
	dst = strconv.AppendUint(dst, o.txid, 10)
	if o.time != 0 {
		dst = append(dst, `,"time":"`...)
		dst = append(appendTime(dst, o.time), '"')
	}
	if o.duplicate {
		dst = append(dst, `,"duplicate":true`...)
	}
	return dst
}

// appendReply appends the reply to an append. A refusal larger than room is
// sent without its details.
func appendReply(dst []byte, subject string, partition int, o outcome, mark uint64, room int) []byte {
	if o.err == nil {
		var body [160]byte
		return natslink.AppendPub(dst, subject, appendSuccess(body[:0], partition, o))
	}
	reply := subjects.Reply{Partition: partition, Error: o.err, HighWaterMark: &mark}
	n := len(dst)
	dst = appendRefusal(dst, subject, o.err, reply)
	if len(dst)-n > room {
		reply.Error = newest(o.err)
		dst = appendRefusal(dst[:n], subject, o.err, reply)
	}
	if len(dst)-n > room {
		reply.Error = brief(o.err)
		dst = appendRefusal(dst[:n], subject, reply.Error, reply)
	}
	return dst
}

// brief returns only the fields of a refusal that a client decides by.
func brief(e *subjects.Error) *subjects.Error {
	return &subjects.Error{Code: e.Code, Reason: e.Reason, Txid: e.Txid, SessionSeq: e.SessionSeq}
}

// maxNamed is how many conflicts a refusal names that could not name all.
const maxNamed = 16

// newest returns a refusal with its newest conflicts, and the newest of those
// that may be false.
func newest(e *subjects.Error) *subjects.Error {
	if len(e.Conflicts) <= maxNamed {
		return e
	}
	some := *e
	some.Conflicts = e.Conflicts[:maxNamed:maxNamed]
	if i := slices.IndexFunc(e.Conflicts, func(c subjects.ConflictingLock) bool { return c.Forgotten }); i >= maxNamed {
		some.Conflicts = append(some.Conflicts, e.Conflicts[i])
	}
	return &some
}

// outcomeBytes is an upper bound of one outcome in a batch reply, a success or
// a brief refusal.
const outcomeBytes = 160

// appendRefusal appends a refusal as NATS services send it: with the code and
// the reason in headers, and the subject's body.
func appendRefusal(dst []byte, subject string, e *subjects.Error, body any) []byte {
	return natslink.AppendHPub(dst, subject, refusalHeader(e), mustJSON(body))
}

// busyReply is a `busy` refusal encoded once: an overloaded partition must not
// spend time on encoding it.
type busyReply struct {
	reason subjects.Reason
	header []byte
	body   []byte // up to the high-water mark
}

func newBusyReply(partition int) busyReply {
	e := busyError(partition)
	body := mustJSON(subjects.Reply{Partition: partition, Error: e})
	return busyReply{e.Reason, refusalHeader(e), append(body[:len(body)-1], `,"high_water_mark":`...)}
}

// append appends the message.
func (r *busyReply) append(dst []byte, subject string, mark uint64) []byte {
	var space [512]byte
	body := strconv.AppendUint(append(space[:0], r.body...), mark, 10)
	return natslink.AppendHPub(dst, subject, r.header, append(body, '}'))
}

func refusalHeader(e *subjects.Error) []byte {
	h := subjects.AppendBlockStart(nil)
	h = subjects.AppendField(h, subjects.HeaderErrorCode, strconv.Itoa(e.Code))
	h = subjects.AppendField(h, subjects.HeaderError, oneLine(string(e.Reason)+": "+e.Message))
	return subjects.AppendBlockEnd(h)
}

// oneLine replaces control characters, which a header can't hold: s may quote
// anything from a client.
func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(b)
}

// mustJSON encodes one of our own types, which can always be encoded.
func mustJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // lock names end in ">"
	if err := e.Encode(v); err != nil {
		panic("broker: encode reply: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// appendBatchReply appends the reply with all outcomes of a batch message.
// Refusals have their details as far as there is room.
func appendBatchReply(dst []byte, c *batchMessage, partition int, mark uint64, room int) []byte {
	if c.atomic && c.outcomes[0].err != nil {
		return appendReply(dst, c.reply, partition, c.outcomes[0], mark, room)
	}
	details := room - outcomeBytes*(len(c.outcomes)+1)
	body := make([]byte, 0, 256)
	body = append(body, `{"partition":`...)
	body = strconv.AppendInt(body, int64(partition), 10)
	body = append(body, `,"results":[`...)
	for i := 0; i < len(c.outcomes); {
		o, n := c.outcomes[i], 1
		if o.err == nil && !o.duplicate {
			for i+n < len(c.outcomes) && continues(o, c.outcomes[i+n], n) {
				n++
			}
		}
		if c.atomic {
			n = len(c.outcomes)
		}
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, `{"index":`...)
		body = strconv.AppendInt(body, int64(i), 10)
		body = append(body, `,"count":`...)
		body = strconv.AppendInt(body, int64(n), 10)
		body = append(body, ',')
		if o.err != nil {
			e := mustJSON(o.err)
			if details -= len(e); details < 0 {
				e = mustJSON(brief(o.err))
			}
			body = append(append(body, `"error":`...), e...)
		} else {
			body = appendTxid(body, o)
		}
		body = append(body, '}')
		i += n
	}
	body = append(body, `],"high_water_mark":`...)
	body = strconv.AppendUint(body, mark, 10)
	body = append(body, '}')
	return natslink.AppendPub(dst, c.reply, body)
}

// continues reports whether o is the nth outcome of the run that begins with
// first.
func continues(first, o outcome, n int) bool {
	return o.err == nil && !o.duplicate && o.txid == first.txid+uint64(n) && o.time == first.time+int64(n)
}

var lockHeaders = [...]string{
	wal.ReadLock:   subjects.HeaderReadLock,
	wal.WriteLock:  subjects.HeaderWriteLock,
	wal.AppendLock: subjects.HeaderAppendLock,
}

// encoder encodes transactions as feeds and reads send them. It is used by one
// goroutine at a time.
type encoder struct {
	partition int
	names     subjects.Names
	header    []byte // reused

	chained  bool   // messages name the transaction before theirs
	previous uint64 // its txid
}

// append appends t as a message to subject.
func (e *encoder) append(dst []byte, subject string, t *wal.Transaction, payload bool) []byte {
	h := subjects.AppendBlockStart(e.header[:0])
	h = append(h, subjects.HeaderTxid+": "...)
	h = strconv.AppendUint(h, t.Txid, 10)
	h = append(h, "\r\n"+subjects.HeaderPartition+": "...)
	h = strconv.AppendInt(h, int64(e.partition), 10)
	h = append(h, "\r\n"+subjects.HeaderTime+": "...)
	h = appendTime(h, t.Time)
	h = append(h, "\r\n"...)
	h = subjects.AppendField(h, subjects.HeaderKind, t.Kind)
	h = append(h, subjects.HeaderMsgID+": "...)
	h = append(h, e.names.Prefix...)
	h = append(h, '.')
	h = strconv.AppendInt(h, int64(e.partition), 10)
	h = append(h, '.')
	h = strconv.AppendUint(h, t.Txid, 10)
	h = append(h, "\r\n"...)
	if e.chained {
		h = appendPrevious(h, e.previous)
	}
	h = subjects.AppendBlockEnd(appendSent(h, t))
	e.header = h
	if !payload {
		return natslink.AppendHPub(dst, subject, h, nil)
	}
	return natslink.AppendHPub(dst, subject, h, t.Payload)
}

// appendPrevious appends the header by which a message of an answer to a read
// names the transaction before its own.
func appendPrevious(h []byte, txid uint64) []byte {
	h = append(h, subjects.HeaderPrevious+": "...)
	h = strconv.AppendUint(h, txid, 10)
	return append(h, "\r\n"...)
}

// chainRoom is an upper bound of a packed message's header.
const chainRoom = 64

// size returns the size of t's message, or an upper bound of it that is at most
// enough.
func (e *encoder) size(t *wal.Transaction, payload, packed bool, enough int) int {
	if n := len(t.Payload) + len(t.Header) + len(t.Locks)*(subjects.MaxLockTokens*(subjects.MaxToken+1)+32) + 1024; n <= enough {
		return n // an upper bound
	}
	if packed {
		return chainRoom + len(e.appendPacked(nil, t, payload))
	}
	return chainRoom + len(e.append(nil, "", t, payload))
}

// appendSent appends what a transaction's writer sent, apart from kind and
// payload, as lines of a header block.
func appendSent(h []byte, t *wal.Transaction) []byte {
	if t.HasHighWaterMark {
		h = append(h, subjects.HeaderHighWaterMark+": "...)
		h = strconv.AppendUint(h, t.HighWaterMark, 10)
		h = append(h, "\r\n"...)
	}
	h = appendLocks(h, t.Locks)
	if len(t.MsgID) > 0 {
		h = subjects.AppendField(h, subjects.HeaderStoredMsgID, t.MsgID)
	}
	if t.SessionSeq > 0 {
		h = subjects.AppendField(h, subjects.HeaderSession, t.Session)
		h = append(h, subjects.HeaderSessionSeq+": "...)
		h = append(strconv.AppendUint(h, t.SessionSeq, 10), "\r\n"...)
	}
	if len(t.Cursor) > 0 {
		h = append(append(append(h, subjects.HeaderCursor+": "...), t.Cursor...), '=')
		h = append(strconv.AppendUint(h, t.CursorTxid, 10), "\r\n"...)
	}
	if t.Atomic.Size > 0 {
		h = append(h, subjects.HeaderAtomic+": "...)
		h = append(strconv.AppendUint(h, t.First(), 10), '-')
		h = append(strconv.AppendUint(h, t.Last(), 10), "\r\n"...)
	}
	return append(h, t.Header...)
}

// appendLocks appends one line for each mode with all of its names: not every
// client can read a repeated header.
func appendLocks(h []byte, locks []wal.Lock) []byte {
	if len(locks) == 0 {
		return h
	}
	for mode, key := range lockHeaders {
		var space [8][]byte
		names := space[:0]
		for _, l := range locks {
			if int(l.Mode) == mode {
				names = append(names, l.Name)
			}
		}
		h = subjects.AppendLocks(h, key, names...)
	}
	return h
}

// appendPacked appends t as one transaction of a packed message. It has no
// header block if it consists of a payload alone.
func (e *encoder) appendPacked(dst []byte, t *wal.Transaction, payload bool) []byte {
	h := subjects.AppendBlockStart(e.header[:0])
	start := len(h)
	if string(t.Kind) != subjects.DefaultKind {
		h = subjects.AppendField(h, subjects.HeaderKind, t.Kind)
	}
	h = appendSent(h, t)
	if len(h) == start {
		h = h[:0]
	} else {
		h = subjects.AppendBlockEnd(h)
	}
	e.header = h
	p := subjects.Packed{Txid: t.Txid, Time: t.Time, Header: h}
	if payload {
		p.Payload = t.Payload
	}
	return subjects.AppendPacked(dst, p)
}

// packer packs transactions into the messages of a packed read, each of which
// names the transaction before it.
type packer struct {
	subject string
	most    int // bytes in a message, unless one transaction alone has more
	pack    []byte

	count          int    // transactions in the message
	previous, last uint64 // txids: before the message, and the last in it
}

// add adds t to the message. If the message would become too large, add appends
// it to dst, and t begins the next one.
func (k *packer) add(dst []byte, e *encoder, t *wal.Transaction, payload bool) []byte {
	before := len(k.pack)
	k.pack = e.appendPacked(k.pack, t, payload)
	if len(k.pack) > k.most && before > 0 {
		dst = k.message(dst, k.pack[:before])
		k.pack = k.pack[:copy(k.pack, k.pack[before:])]
	}
	k.last = t.Txid
	k.count++
	return dst
}

// message appends the message with the transactions in pack.
func (k *packer) message(dst, pack []byte) []byte {
	var space [chainRoom]byte
	h := subjects.AppendBlockEnd(appendPrevious(subjects.AppendBlockStart(space[:0]), k.previous))
	k.previous, k.count = k.last, 0
	return natslink.AppendHPub(dst, k.subject, h, pack)
}

// flush appends the message to dst unless it is empty.
func (k *packer) flush(dst []byte) []byte {
	if len(k.pack) > 0 {
		dst = k.message(dst, k.pack)
		k.pack = k.pack[:0]
	}
	if cap(k.pack) > 4*k.most {
		k.pack = nil // it held a large one
	}
	return dst
}

// appendEnd appends the message that ends a read.
func appendEnd(dst []byte, subject, cluster string, done answerProgress, mark uint64) []byte {
	h := append([]byte(nil), "NATS/1.0 "+subjects.StatusEnd+" End of read\r\n"...)
	h = subjects.AppendField(h, subjects.HeaderNext, strconv.FormatUint(done.next, 10))
	h = subjects.AppendField(h, subjects.HeaderHighWaterMark, strconv.FormatUint(mark, 10))
	h = subjects.AppendField(h, subjects.HeaderCount, strconv.Itoa(done.sent))
	h = subjects.AppendField(h, subjects.HeaderLast, strconv.FormatUint(done.last, 10))
	h = subjects.AppendField(h, subjects.HeaderCluster, cluster)
	return natslink.AppendHPub(dst, subject, subjects.AppendBlockEnd(h), nil)
}

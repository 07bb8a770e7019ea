package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// transaction is a committed transaction, in the form of --json, which is the
// one of exports and imports too. A payload that is UTF-8 is in Payload, any
// other in PayloadBase64. A read of headers alone has neither. HeadersBase64
// and MsgIDBase64 are set if JSON can't hold the headers or the message id.
type transaction struct {
	Partition     int          `json:"partition"`
	Txid          uint64       `json:"txid"`
	Time          time.Time    `json:"time"`
	Kind          string       `json:"kind"`
	WriteLocks    []string     `json:"write_locks,omitempty"`
	ReadLocks     []string     `json:"read_locks,omitempty"`
	AppendLocks   []string     `json:"append_locks,omitempty"`
	HighWaterMark *uint64      `json:"high_water_mark,omitzero"`
	Atomic        *atomicRange `json:"atomic,omitzero"`
	MsgID         string       `json:"msg_id,omitempty"`
	MsgIDBase64   []byte       `json:"msg_id_base64,omitempty"`
	Session       string       `json:"session,omitempty"`
	SessionSeq    uint64       `json:"session_seq,omitzero"`
	Move          string       `json:"move,omitempty"` // as in [subjects.ParseMove]
	Headers       headers      `json:"headers,omitempty"`
	HeadersBase64 []byte       `json:"headers_base64,omitempty"`
	Payload       *string      `json:"payload,omitzero"`
	PayloadBase64 []byte       `json:"payload_base64,omitempty"`

	data []byte
}

// parseTransaction decodes a message of a read or a get.
func parseTransaction(msg *nats.Msg, headersOnly bool) (*transaction, error) {
	h := msg.Header
	t := &transaction{
		Kind:        h.Get(subjects.HeaderKind),
		WriteLocks:  subjects.LockNames(h[subjects.HeaderWriteLock]...),
		ReadLocks:   subjects.LockNames(h[subjects.HeaderReadLock]...),
		AppendLocks: subjects.LockNames(h[subjects.HeaderAppendLock]...),
		data:        msg.Data,
	}
	t.setMsgID(h.Get(subjects.HeaderStoredMsgID))
	var err error
	if t.Txid, err = strconv.ParseUint(h.Get(subjects.HeaderTxid), 10, 64); err != nil {
		return nil, fmt.Errorf("the node sent a message that is not a transaction: header %s is %q", subjects.HeaderTxid, h.Get(subjects.HeaderTxid))
	}
	if t.Partition, err = strconv.Atoi(h.Get(subjects.HeaderPartition)); err != nil {
		return nil, fmt.Errorf("transaction %d: header %s is %q", t.Txid, subjects.HeaderPartition, h.Get(subjects.HeaderPartition))
	}
	if t.Time, err = time.Parse(time.RFC3339Nano, h.Get(subjects.HeaderTime)); err != nil {
		return nil, fmt.Errorf("transaction %d: header %s: %w", t.Txid, subjects.HeaderTime, err)
	}
	if s := h.Get(subjects.HeaderHighWaterMark); s != "" {
		mark, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("transaction %d: header %s is %q", t.Txid, subjects.HeaderHighWaterMark, s)
		}
		t.HighWaterMark = &mark
	}
	t.Session, t.Move = h.Get(subjects.HeaderSession), h.Get(subjects.HeaderCursor)
	if s := h.Get(subjects.HeaderSessionSeq); s != "" {
		if err := t.setSessionSeq(s); err != nil {
			return nil, err
		}
	}
	for _, value := range h[subjects.HeaderAtomic] {
		if err := t.setAtomic(value); err != nil {
			return nil, err
		}
	}
	var own headers // nats.go does not keep their order
	for _, key := range slices.Sorted(maps.Keys(h)) {
		if !strings.HasPrefix(key, "Cantus-") && !strings.HasPrefix(key, "Nats-") {
			for _, v := range h[key] {
				own = append(own, header{key, v})
			}
		}
	}
	t.setHeaders(own)
	if !headersOnly {
		t.setPayload(msg.Data)
	}
	return t, nil
}

// unpackTransaction decodes a transaction of a packed message.
func unpackTransaction(partition int, p subjects.Packed, headersOnly bool) (*transaction, error) {
	t := &transaction{Partition: partition, Txid: p.Txid, Time: time.Unix(0, p.Time).UTC(), Kind: subjects.DefaultKind, data: p.Payload}
	var own headers
	err := subjects.ScanBlock(p.Header, func(key, value []byte) error {
		switch string(key) {
		case subjects.HeaderKind:
			t.Kind = string(value)
		case subjects.HeaderWriteLock:
			t.WriteLocks = append(t.WriteLocks, subjects.LockNames(string(value))...)
		case subjects.HeaderReadLock:
			t.ReadLocks = append(t.ReadLocks, subjects.LockNames(string(value))...)
		case subjects.HeaderAppendLock:
			t.AppendLocks = append(t.AppendLocks, subjects.LockNames(string(value))...)
		case subjects.HeaderStoredMsgID:
			t.setMsgID(string(value))
		case subjects.HeaderSession:
			t.Session = string(value)
		case subjects.HeaderSessionSeq:
			return t.setSessionSeq(string(value))
		case subjects.HeaderCursor:
			t.Move = string(value)
		case subjects.HeaderAtomic:
			return t.setAtomic(string(value))
		case subjects.HeaderHighWaterMark:
			mark, err := strconv.ParseUint(string(value), 10, 64)
			t.HighWaterMark = &mark
			return err
		default:
			own = append(own, header{string(key), string(value)})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("transaction %d: %w", p.Txid, err)
	}
	t.setHeaders(own)
	if !headersOnly {
		t.setPayload(p.Payload)
	}
	return t, nil
}

func (t *transaction) setPayload(data []byte) {
	if !utf8.Valid(data) {
		t.PayloadBase64 = data
		return
	}
	text := string(data)
	t.Payload = &text
}

// line returns the transaction as one line: txid, time, kind, locks, atomic
// batch, number in a session, cursor that it moves, payload.
func (t *transaction) line() string {
	locks := t.locks()
	if t.Atomic != nil {
		locks += "  atomic:" + t.Atomic.String()
	}
	if t.SessionSeq > 0 {
		locks += "  session:" + t.session()
	}
	if t.Move != "" {
		locks += "  moves:" + printable(t.Move, len(t.Move))
	}
	return fmt.Sprintf("%d  %s  %s  %s  %s", t.Txid, stamp(t.Time), printable(t.Kind, 64), locks, t.excerpt())
}

// locks returns the locks with the first letters of their modes, "-" for none.
func (t *transaction) locks() string {
	var all []string
	for _, mode := range []struct {
		letter string
		locks  []string
	}{{"w:", t.WriteLocks}, {"r:", t.ReadLocks}, {"a:", t.AppendLocks}} {
		for _, l := range mode.locks {
			all = append(all, mode.letter+printable(l, len(l)))
		}
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, " ")
}

// excerptLength is how much of a payload a line shows, in characters.
const excerptLength = 80

func (t *transaction) excerpt() string {
	if !utf8.Valid(t.data) {
		head := t.data[:min(len(t.data), excerptLength/4)]
		return fmt.Sprintf("%x%s (%d bytes, binary)", head, ellipsis(len(head) < len(t.data)), len(t.data))
	}
	if utf8.RuneCount(t.data) > excerptLength {
		return fmt.Sprintf("%s (%d bytes)", printable(string(t.data), excerptLength), len(t.data))
	}
	return printable(string(t.data), excerptLength)
}

func ellipsis(cut bool) string {
	if cut {
		return "…"
	}
	return ""
}

// printable returns the first n characters of s. It escapes everything that is
// invisible or would move a terminal's cursor.
func printable(s string, n int) string {
	var b strings.Builder
	for _, r := range s {
		if n--; n < 0 {
			b.WriteString("…")
			break
		}
		if strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// stamp formats a time in RFC 3339 with all nine digits, so that columns are
// aligned.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z07:00") }

// printJSON writes v as one line.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

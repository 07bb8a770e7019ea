package client

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Request is a transaction to append; a [Transaction] is one that is committed.
// The append functions do not retain it: it may be reused when they return.
type Request struct {
	// Partition is the partition to append to. [Client.Partition] returns the
	// partition of a key.
	Partition int
	// Payload is opaque, and may be empty.
	Payload []byte
	// Kind is one token that names the kind of transaction. "" means "tx".
	Kind string
	// Header is the application's own. It is stored, and passed to followers.
	Header nats.Header

	// HighWaterMark is the txid up to which the writer had applied the
	// partition when it computed this transaction, 0 for none.
	HighWaterMark uint64
	// WriteLocks are checked against HighWaterMark, and recorded on commit.
	WriteLocks []string
	// ReadLocks are checked and not recorded.
	ReadLocks []string
	// AppendLocks are recorded on commit and not checked.
	AppendLocks []string

	// Unless is a condition: the transaction commits unless one after
	// HighWaterMark matches one of the items, at most [subjects.MaxUnless].
	Unless []subjects.QueryItem

	// ID is the message id, at most 128 bytes. If the partition remembers it,
	// the transaction is not appended again, and its receipt is that of the
	// first. If ID is empty the client generates one.
	ID string
	// ExpectedLast makes the transaction commit only if the partition's
	// high-water mark equals it.
	ExpectedLast *uint64
	// NotAfter, unless it is zero, is the last time with which the transaction
	// may commit, by the leader's clock. After it the transaction is refused
	// with [ErrExpired].
	NotAfter time.Time
	// Move, in a [Session], moves a cursor of the session in the same commit:
	// see [Cursor.Give]. Zero moves none.
	Move subjects.Move

	isSet bool
}

// WriteLock adds locks that are checked, and recorded on commit.
func (req *Request) WriteLock(locks ...string) { req.WriteLocks = append(req.WriteLocks, locks...) }

// ReadLock adds locks that are checked and not recorded: those of what was read
// and not changed.
func (req *Request) ReadLock(locks ...string) { req.ReadLocks = append(req.ReadLocks, locks...) }

// AppendLock adds locks that are recorded on commit and not checked.
func (req *Request) AppendLock(locks ...string) { req.AppendLocks = append(req.AppendLocks, locks...) }

// Set sets the kind ("" means "tx") and the payload, which may be empty.
func (req *Request) Set(kind string, payload []byte) {
	req.Kind, req.Payload, req.isSet = kind, payload, true
}

// checkSet returns ErrNothing unless a transaction was set.
func (req *Request) checkSet() error {
	if !req.isSet && req.Payload == nil {
		return ErrNothing
	}
	return nil
}

var lockHeaders = [...]string{subjects.HeaderWriteLock, subjects.HeaderReadLock, subjects.HeaderAppendLock}

// lockFields names the fields that locks returns.
var lockFields = [...]string{"WriteLocks", "ReadLocks", "AppendLocks"}

func (req *Request) locks() [3][]string {
	return [3][]string{req.WriteLocks, req.ReadLocks, req.AppendLocks}
}

// check refuses what a node would refuse. It must run before the transaction is
// encoded: a line break in a value would begin another header.
func (req *Request) check() error {
	if err := req.checkForm(); err != nil {
		var e *subjects.Error
		if !errors.As(err, &e) {
			e = subjects.Errorf(subjects.BadRequest, "%v", err)
		}
		return refusal(*e, req.Partition, req.ID, 0)
	}
	return nil
}

func (req *Request) checkForm() error {
	if req.Partition < 0 {
		return subjects.Errorf(subjects.BadRequest, "partition %d: partitions are numbered from 0", req.Partition)
	}
	n := 0
	for mode, names := range req.locks() {
		n += len(names)
		for i, name := range names {
			if name == "" {
				return subjects.Errorf(subjects.BadRequest, "%s[%d] is empty: a lock needs a name, such as %q", lockFields[mode], i, "account.42")
			}
			if err := subjects.CheckLock(name); err != nil {
				return err
			}
		}
	}
	if n > subjects.MaxLocks {
		return subjects.Errorf(subjects.BadRequest, "%d locks: at most %d", n, subjects.MaxLocks)
	}
	if n := len(req.Unless); n > subjects.MaxUnless {
		return subjects.Errorf(subjects.BadRequest, "Unless has %d items: at most %d", n, subjects.MaxUnless)
	}
	for i := range req.Unless {
		if err := checkItem("Unless["+strconv.Itoa(i)+"]", &req.Unless[i]); err != nil {
			return err
		}
	}
	if req.Kind != "" {
		if err := subjects.CheckKind(req.Kind); err != nil {
			return err
		}
	}
	if !req.NotAfter.IsZero() {
		if _, err := subjects.ParseTime(req.NotAfter.UTC().Format(time.RFC3339Nano)); err != nil {
			return subjects.Errorf(subjects.BadRequest, "NotAfter: %v", err)
		}
	}
	if req.ID != "" {
		if err := subjects.CheckMsgID(req.ID); err != nil {
			return err
		}
		if err := checkValue(subjects.HeaderMsgID, req.ID); err != nil {
			return err
		}
	}
	for key, values := range req.Header {
		if err := checkHeader(key, values); err != nil {
			return err
		}
	}
	return checkMove(req.Move)
}

// checkMove checks the move of a cursor, or none.
func checkMove(m subjects.Move) error {
	if m == (subjects.Move{}) {
		return nil
	}
	if err := subjects.CheckCursor(m.Cursor); err != nil {
		return err
	}
	if m.Txid == 0 {
		return subjects.Errorf(subjects.BadRequest, "Move.Txid is 0: give the txid from 1 on that cursor %q moves to", m.Cursor)
	}
	return nil
}

// checkItem checks an item, which messages call by a name.
func checkItem(name string, item *subjects.QueryItem) error {
	if len(item.Kinds)+len(item.Locks) == 0 {
		return subjects.Errorf(subjects.BadRequest, "%s has neither kinds nor locks", name)
	}
	if n := len(item.Kinds); n > subjects.MaxKinds {
		return subjects.Errorf(subjects.BadRequest, "%s has %d kinds: at most %d", name, n, subjects.MaxKinds)
	}
	if n := len(item.Locks); n > subjects.MaxQueryLocks {
		return subjects.Errorf(subjects.BadRequest, "%s has %d locks: at most %d", name, n, subjects.MaxQueryLocks)
	}
	for _, kind := range item.Kinds {
		if err := subjects.CheckKind(kind); err != nil {
			return err
		}
	}
	for _, lock := range item.Locks {
		if err := subjects.CheckLock(lock); err != nil {
			return err
		}
	}
	return nil
}

func checkHeader(key string, values []string) error {
	if subjects.IsRequestHeader(key) {
		return subjects.Errorf(subjects.BadRequest, "header %q: set the field of Request instead", key)
	}
	if _, err := subjects.CheckOtherHeader(key); err != nil {
		return err
	}
	for i := range len(key) {
		if c := key[i]; c <= ' ' || c >= 0x7f || c == ':' {
			return subjects.Errorf(subjects.BadRequest, "header %q: a name must be visible ASCII without a colon", key)
		}
	}
	if key == "" {
		return subjects.Errorf(subjects.BadRequest, "a header has no name")
	}
	for _, v := range values {
		if err := checkValue(key, v); err != nil {
			return err
		}
	}
	return nil
}

func checkValue(key, value string) error {
	if strings.ContainsAny(value, "\r\n\x00") {
		return subjects.Errorf(subjects.BadRequest, "header %q: a value must not contain CR, LF or NUL", key)
	}
	return nil
}

// fieldBytes is the size of a header line without its key and value: ": " and
// CR LF.
const fieldBytes = 4

// size returns an upper bound on the bytes that appendFrame appends.
func (req *Request) size() int {
	n := 8 + 160 + len(req.Payload) + len(req.Kind) + len(req.ID)
	for _, names := range req.locks() {
		for _, name := range names {
			n += len(subjects.HeaderAppendLock) + len(name) + fieldBytes
		}
	}
	if !req.NotAfter.IsZero() {
		n += len(subjects.HeaderNotAfter) + len(time.RFC3339Nano) + fieldBytes
	}
	if req.Move.Cursor != "" {
		n += len(subjects.HeaderCursor) + len(req.Move.Cursor) + len("=18446744073709551615") + fieldBytes
	}
	for i := range req.Unless {
		n += len(subjects.HeaderUnless) + fieldBytes + itemSize(&req.Unless[i])
	}
	for key, values := range req.Header {
		for _, v := range values {
			n += len(key) + len(v) + fieldBytes
		}
	}
	return n
}

// appendFrame appends the transaction as a frame of a batch: two lengths, the
// header block, which ends with the lines in more, the payload. f is nil if the
// transaction is part of an atomic batch, which has the headers that concern
// the whole.
func (req *Request) appendFrame(dst []byte, f *Future, more []byte) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = subjects.AppendBlockStart(dst)
	if f != nil {
		dst = f.appendIdentity(dst)
		if req.needsMark() || f.session != nil && f.number == 1 {
			dst = appendNumber(dst, subjects.HeaderHighWaterMark, req.HighWaterMark)
		}
	}
	if req.ExpectedLast != nil {
		dst = appendNumber(dst, subjects.HeaderExpectedLast, *req.ExpectedLast)
	}
	if !req.NotAfter.IsZero() {
		dst = subjects.AppendField(dst, subjects.HeaderNotAfter, req.NotAfter.UTC().Format(time.RFC3339Nano))
	}
	if req.Move.Cursor != "" {
		dst = subjects.AppendField(dst, subjects.HeaderCursor, req.Move.String())
	}
	if req.Kind != "" {
		dst = subjects.AppendField(dst, subjects.HeaderKind, req.Kind)
	}
	for i, names := range req.locks() {
		dst = subjects.AppendLocks(dst, lockHeaders[i], names...)
	}
	for i := range req.Unless {
		dst = append(append(dst, subjects.HeaderUnless...), ": "...)
		dst = append(appendItem(dst, &req.Unless[i]), "\r\n"...)
	}
	for key, values := range req.Header {
		for _, v := range values {
			dst = subjects.AppendField(dst, key, v)
		}
	}
	dst = subjects.AppendBlockEnd(append(dst, more...))
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-8))
	binary.BigEndian.PutUint32(dst[start+4:], uint32(len(req.Payload)))
	return append(dst, req.Payload...)
}

// needsMark reports whether the transaction is sent with a high-water mark.
func (req *Request) needsMark() bool {
	return req.HighWaterMark != 0 || len(req.WriteLocks)+len(req.ReadLocks)+len(req.Unless) > 0
}

func appendNumber(dst []byte, key string, n uint64) []byte {
	dst = append(dst, key...)
	dst = append(dst, ": "...)
	dst = strconv.AppendUint(dst, n, 10)
	return append(dst, "\r\n"...)
}

package client

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Transaction is a committed transaction, as followers get it. It is the
// handler's to keep.
type Transaction struct {
	Partition int
	Txid      uint64
	// Time is when the leader certified it; it rises strictly with Txid.
	Time time.Time
	Kind string
	// ID is the writer's message id, "" if none was sent.
	ID string
	// HighWaterMark is the writer's, 0 if none was sent.
	HighWaterMark uint64
	// The locks are as they were sent.
	WriteLocks, ReadLocks, AppendLocks []string
	// Header is the application's, nil if there is none.
	Header nats.Header
	// Payload is nil where only headers are asked for.
	Payload []byte
}

var errNotTransaction = errors.New("the message is not a transaction")

// parseTransaction takes a message of a read or of the feed apart.
func parseTransaction(m *nats.Msg) (*Transaction, error) {
	t := &Transaction{Partition: -1, Payload: m.Data}
	var err error
	number := func(s string) (n uint64) {
		n, e := strconv.ParseUint(s, 10, 64)
		err = errors.Join(err, e)
		return n
	}
	for key, values := range m.Header {
		if len(values) == 0 {
			continue
		}
		switch key {
		case subjects.HeaderTxid:
			t.Txid = number(values[0])
		case subjects.HeaderPartition:
			t.Partition = int(number(values[0]))
		case subjects.HeaderTime:
			var e error
			t.Time, e = time.Parse(time.RFC3339Nano, values[0])
			err = errors.Join(err, e)
		case subjects.HeaderKind:
			t.Kind = values[0]
		case subjects.HeaderStoredMsgID:
			t.ID = values[0]
		case subjects.HeaderHighWaterMark:
			t.HighWaterMark = number(values[0])
		case subjects.HeaderWriteLock:
			t.WriteLocks = values
		case subjects.HeaderReadLock:
			t.ReadLocks = values
		case subjects.HeaderAppendLock:
			t.AppendLocks = values
		case subjects.HeaderMsgID: // <prefix>.<p>.<txid>, for JetStream
		default:
			if t.Header == nil {
				t.Header = nats.Header{}
			}
			t.Header[key] = values
		}
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotTransaction, err)
	case t.Txid == 0 || t.Partition < 0:
		return nil, errNotTransaction
	}
	return t, nil
}

// passes tells whether kinds and lock, where given, ask for t, as a node
// decides it.
func (t *Transaction) passes(kinds []string, lock string) bool {
	if len(kinds) > 0 && !slices.Contains(kinds, t.Kind) {
		return false
	}
	if lock == "" {
		return true
	}
	overlaps := func(l string) bool { return subjects.Overlap(lock, l) }
	return slices.ContainsFunc(t.WriteLocks, overlaps) || slices.ContainsFunc(t.AppendLocks, overlaps)
}

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

// Transaction is a committed transaction. The handler may retain it, but it
// shares memory with its whole message, up to 128 KiB. To retain a few of many,
// copy what you need.
type Transaction struct {
	Partition int
	Txid      uint64
	// Time is when the leader certified the transaction. It increases strictly
	// with Txid.
	Time time.Time
	Kind string
	// ID is the writer's message id, "" if it sent none.
	ID string
	// Session is the name of the [Session] that the transaction is in, "" if it
	// is in none, and SessionSeq its number there. The transactions of an
	// atomic batch share a number.
	Session    string
	SessionSeq uint64
	// Move is the cursor that has moved with the transaction, zero for none.
	// That of an atomic batch is in its first transaction.
	Move subjects.Move
	// HighWaterMark is the writer's, 0 if it sent none.
	HighWaterMark uint64
	// Atomic is the atomic batch that the transaction is part of, zero if it is
	// in none.
	Atomic AtomicRange
	// The names of the locks, in the order in which they were sent.
	WriteLocks, ReadLocks, AppendLocks []string
	// Header is the application's, nil if there is none.
	Header nats.Header
	// Payload is nil if only headers were requested.
	Payload []byte
}

// AtomicRange is the txids of an atomic batch: see [AtomicBatch].
type AtomicRange struct{ First, Last uint64 }

// parse sets the range to the value of a header of transaction txid.
func (r *AtomicRange) parse(value string, txid uint64) (err error) {
	if *r != (AtomicRange{}) {
		return fmt.Errorf("header %s is given twice", subjects.HeaderAtomic)
	}
	r.First, r.Last, err = subjects.ParseAtomic(value, txid)
	return err
}

// span returns the txids that commit together with t: those of its atomic
// batch, or its own.
func (t *Transaction) span() AtomicRange {
	if t.Atomic.First == 0 {
		return AtomicRange{t.Txid, t.Txid}
	}
	return t.Atomic
}

// checkNext returns an error if t cannot follow a transaction with this span:
// atomic batches do not overlap.
func (r AtomicRange) checkNext(t *Transaction) error {
	if next := t.span(); next != r && next.First <= r.Last {
		return fmt.Errorf("%w: txid %d belongs to %d-%d, and what is before it to %d-%d", errNotTransaction, t.Txid, next.First, next.Last, r.First, r.Last)
	}
	return nil
}

var errNotTransaction = errors.New("the message is not a transaction")

// parseTransaction parses a message that is a single transaction.
func parseTransaction(m *nats.Msg) (*Transaction, error) {
	t := &Transaction{Partition: -1, Payload: m.Data}
	var err error
	var atomic []string
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
		case subjects.HeaderSession:
			t.Session = values[0]
		case subjects.HeaderSessionSeq:
			t.SessionSeq = number(values[0])
		case subjects.HeaderCursor:
			var e error
			t.Move, e = subjects.ParseMove(values[0])
			err = errors.Join(err, e)
		case subjects.HeaderHighWaterMark:
			t.HighWaterMark = number(values[0])
		case subjects.HeaderAtomic:
			atomic = values
		case subjects.HeaderWriteLock:
			t.WriteLocks = subjects.LockNames(values...)
		case subjects.HeaderReadLock:
			t.ReadLocks = subjects.LockNames(values...)
		case subjects.HeaderAppendLock:
			t.AppendLocks = subjects.LockNames(values...)
		case subjects.HeaderMsgID: // <prefix>.<p>.<txid>, for JetStream
		default:
			if t.Header == nil {
				t.Header = nats.Header{}
			}
			t.Header[key] = values
		}
	}
	for _, value := range atomic { // once the txid is known
		err = errors.Join(err, t.Atomic.parse(value, t.Txid))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotTransaction, err)
	case t.Txid == 0 || t.Partition < 0:
		return nil, errNotTransaction
	}
	return t, nil
}

// parsePacked parses a packed message, of a read or of the feed.
func parsePacked(partition int, message []byte) ([]Transaction, error) {
	txs := make([]Transaction, 0, len(message)/256+1)
	var p packedParser
	for len(message) > 0 {
		raw, rest, err := subjects.NextPacked(message)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNotTransaction, err)
		}
		txs = append(txs, Transaction{
			Partition: partition, Txid: raw.Txid, Time: time.Unix(0, raw.Time).UTC(), Kind: subjects.DefaultKind, Payload: raw.Payload,
		})
		if err := p.parse(&txs[len(txs)-1], raw.Header); err != nil {
			return nil, fmt.Errorf("%w: %d: %w", errNotTransaction, raw.Txid, err)
		}
		message = rest
	}
	return txs, nil
}

// packedParser parses the header blocks of a message. Their lock names share
// one array.
type packedParser struct{ names []string }

func (p *packedParser) parse(t *Transaction, block []byte) error {
	all := string(block)                                              // the values retained are substrings of it
	offset := func(part []byte) int { return cap(block) - cap(part) } // block and its parts end at the same capacity
	return subjects.ScanBlock(block, func(key, value []byte) (err error) {
		v := all[offset(value) : offset(value)+len(value)]
		switch string(key) {
		case subjects.HeaderWriteLock:
			t.WriteLocks = p.add(t.WriteLocks, v)
		case subjects.HeaderReadLock:
			t.ReadLocks = p.add(t.ReadLocks, v)
		case subjects.HeaderAppendLock:
			t.AppendLocks = p.add(t.AppendLocks, v)
		case subjects.HeaderHighWaterMark:
			t.HighWaterMark, err = strconv.ParseUint(v, 10, 64)
		case subjects.HeaderKind:
			t.Kind = v
		case subjects.HeaderStoredMsgID:
			t.ID = v
		case subjects.HeaderSession:
			t.Session = v
		case subjects.HeaderSessionSeq:
			t.SessionSeq, err = strconv.ParseUint(v, 10, 64)
		case subjects.HeaderCursor:
			t.Move, err = subjects.ParseMove(v)
		case subjects.HeaderAtomic:
			return t.Atomic.parse(v, t.Txid)
		default:
			if t.Header == nil {
				t.Header = nats.Header{}
			}
			k := string(key)
			t.Header[k] = append(t.Header[k], v)
		}
		return err
	})
}

// add appends the lock names of a header's value to list. The names of the
// first value are stored in the shared array.
func (p *packedParser) add(list []string, value string) []string {
	if list != nil {
		return append(list, subjects.LockNames(value)...)
	}
	start := len(p.names)
	for more := true; more; {
		var name string
		name, value, more = subjects.NextLock(value)
		p.names = append(p.names, name)
	}
	return p.names[start:len(p.names):len(p.names)]
}

// passes reports whether t matches kinds and lock, where given, by the rules of
// a node.
func (t *Transaction) passes(o *FollowOptions) bool {
	if !t.isOf(o.Kinds) || o.Lock != "" && !t.recorded(o.Lock) {
		return false
	}
	applies := func(item subjects.QueryItem) bool {
		return t.isOf(item.Kinds) && !slices.ContainsFunc(item.Locks, func(l string) bool { return !t.recorded(l) })
	}
	return len(o.Items) == 0 || slices.ContainsFunc(o.Items, applies)
}

// isOf reports whether the transaction is of one of the kinds, or may be of
// any.
func (t *Transaction) isOf(kinds []string) bool {
	return len(kinds) == 0 || slices.Contains(kinds, t.Kind)
}

// recorded reports whether the transaction recorded a lock that overlaps one.
func (t *Transaction) recorded(lock string) bool {
	overlaps := func(l string) bool { return subjects.Overlap(lock, l) }
	return slices.ContainsFunc(t.WriteLocks, overlaps) || slices.ContainsFunc(t.AppendLocks, overlaps)
}

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
// handler's to keep; but its memory is that of the message it came in, with up
// to 128 KiB of its neighbours: who keeps a few of many clones what it needs.
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
	// The locks' names, each list in the order in which they were sent.
	WriteLocks, ReadLocks, AppendLocks []string
	// Header is the application's, nil if there is none.
	Header nats.Header
	// Payload is nil where only headers are asked for.
	Payload []byte
}

var errNotTransaction = errors.New("the message is not a transaction")

// parseTransaction takes a transaction apart that is a message of its own.
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
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotTransaction, err)
	case t.Txid == 0 || t.Partition < 0:
		return nil, errNotTransaction
	}
	return t, nil
}

// parsePacked takes a message of a read or of the feed apart.
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

// packedParser parses the header blocks of a message, whose lock names share
// memory.
type packedParser struct{ names []string }

func (p *packedParser) parse(t *Transaction, block []byte) error {
	all := string(block)                                              // what is kept is cut out of it
	offset := func(part []byte) int { return cap(block) - cap(part) } // both end where block's array does
	return subjects.ScanBlock(block, func(key, value []byte) error {
		v := all[offset(value) : offset(value)+len(value)]
		switch string(key) {
		case subjects.HeaderWriteLock:
			t.WriteLocks = p.add(t.WriteLocks, v)
		case subjects.HeaderReadLock:
			t.ReadLocks = p.add(t.ReadLocks, v)
		case subjects.HeaderAppendLock:
			t.AppendLocks = p.add(t.AppendLocks, v)
		case subjects.HeaderHighWaterMark:
			n, err := strconv.ParseUint(v, 10, 64)
			t.HighWaterMark = n
			return err
		case subjects.HeaderKind:
			t.Kind = v
		case subjects.HeaderStoredMsgID:
			t.ID = v
		default:
			if t.Header == nil {
				t.Header = nats.Header{}
			}
			k := string(key)
			t.Header[k] = append(t.Header[k], v)
		}
		return nil
	})
}

// add appends the names in a header's value to a list of a transaction's. The
// names of the first value lie in the memory that lists share.
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

// passes reports whether kinds and lock, where given, ask for t, as a node
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

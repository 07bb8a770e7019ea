package wal

import (
	"encoding/binary"
	"fmt"
	"math"
)

// RestoreStep is a record of a batch of [Restores]: a step by which a log is
// restored from a backup, or the statement that it goes on in a new cluster.
// Exactly one of its fields is set.
type RestoreStep struct {
	Begin     *RestoreBegin
	Cursor    *RestoredCursor
	End       *RestoreEnd
	Recovered *LogRecovered
}

// RestoreBegin makes an empty log one that is restored.
type RestoreBegin struct {
	// Cluster is the id of the cluster that the backup was taken from.
	Cluster string
	// Base is where the restored log begins, and Time the time of the last
	// transaction there, in Unix nanoseconds.
	Base Base
	Time int64
	// Mirror says that the log follows another cluster's as it grows, and is
	// read meanwhile. History is then the history of that log.
	Mirror  bool
	History []PastCluster
}

// RestoredCursor is a cursor as it was in the backup.
type RestoredCursor struct {
	Name []byte
	Txid uint64
	Time int64 // when it was set, in Unix nanoseconds
}

// RestoreEnd ends the restore of a log.
type RestoreEnd struct {
	// Base is where the log must end now.
	Base Base
	// History lists the clusters in which the log's transactions were
	// committed, the oldest first.
	History []PastCluster
}

// LogRecovered says that the log's cluster had lost the majority of its nodes,
// and that the log goes on in a new cluster, which one of them has begun with
// what it had.
type LogRecovered struct {
	// Cluster is the id of the cluster that was lost.
	Cluster string
	// Node is the node whose log this was.
	Node string
	// Committed is the last transaction that the node knew to be committed.
	// Those after it up to this record may have been, and count.
	Committed uint64
	// Time is when the new cluster was begun, in Unix nanoseconds.
	Time int64
}

// PastCluster is a cluster in which transactions of a log were committed before
// the log went on in another one.
type PastCluster struct {
	ID string `json:"cluster"`
	// LastTxid is the last of its transactions that the log has.
	LastTxid uint64 `json:"last_txid"`
}

const (
	stepBegin     = 1
	stepCursor    = 2
	stepEnd       = 3
	stepMirror    = 4 // the beginning of a mirror
	stepRecovered = 5
)

// AddRestore appends a record to a batch of restores.
func (w *BatchWriter) AddRestore(s RestoreStep) {
	var b []byte
	switch {
	case s.Begin != nil:
		code := byte(stepBegin)
		if s.Begin.Mirror {
			code = stepMirror
		}
		b = appendBase([]byte{code}, s.Begin.Base)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Begin.Time))
		b = appendBytes(b, []byte(s.Begin.Cluster))
		if s.Begin.Mirror {
			b = appendHistory(b, s.Begin.History)
		}
	case s.Cursor != nil:
		b = binary.LittleEndian.AppendUint64([]byte{stepCursor}, s.Cursor.Txid)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Cursor.Time))
		b = appendBytes(b, s.Cursor.Name)
	case s.End != nil:
		b = appendHistory(appendBase([]byte{stepEnd}, s.End.Base), s.End.History)
	case s.Recovered != nil:
		b = binary.LittleEndian.AppendUint64([]byte{stepRecovered}, s.Recovered.Committed)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Recovered.Time))
		b = appendBytes(b, []byte(s.Recovered.Cluster))
		b = appendBytes(b, []byte(s.Recovered.Node))
	default:
		panic("wal: a restore's step without a field")
	}
	w.AddRaw(b)
}

func appendHistory(b []byte, history []PastCluster) []byte {
	b = binary.AppendUvarint(b, uint64(len(history)))
	for _, p := range history {
		b = binary.LittleEndian.AppendUint64(b, p.LastTxid)
		b = appendBytes(b, []byte(p.ID))
	}
	return b
}

func appendBase(b []byte, at Base) []byte {
	return append(binary.LittleEndian.AppendUint64(b, at.Txid), at.Digest[:]...)
}

// NextRestore reads the next record of a batch of restores.
func (r *BatchReader) NextRestore(s *RestoreStep) bool {
	record, ok := r.next()
	if !ok {
		return false
	}
	f := reader{b: record}
	*s = RestoreStep{}
	switch code := f.byte(); code {
	case stepBegin, stepMirror:
		s.Begin = &RestoreBegin{Base: f.base(), Time: int64(f.uint64()), Cluster: string(f.bytes())}
		if code == stepMirror {
			s.Begin.Mirror, s.Begin.History = true, f.history()
		}
	case stepCursor:
		s.Cursor = &RestoredCursor{Txid: f.uint64(), Time: int64(f.uint64()), Name: f.bytes()}
	case stepEnd:
		s.End = &RestoreEnd{Base: f.base(), History: f.history()}
	case stepRecovered:
		s.Recovered = &LogRecovered{Committed: f.uint64(), Time: int64(f.uint64()), Cluster: string(f.bytes()), Node: string(f.bytes())}
	default:
		f.short = true
	}
	if f.short || len(f.b) > 0 || s.Begin != nil && s.Begin.Base.Txid == math.MaxUint64 {
		r.err = fmt.Errorf("%w: malformed restore record", ErrBatch)
		return false
	}
	return true
}

func (r *reader) history() (history []PastCluster) {
	for n := r.uvarint(); n > 0 && !r.short; n-- {
		p := PastCluster{LastTxid: r.uint64()}
		p.ID = string(r.bytes())
		history = append(history, p)
	}
	return history
}

func (r *reader) base() (b Base) {
	b.Txid = r.uint64()
	if len(r.b) < len(b.Digest) {
		r.short = true
		return b
	}
	r.b = r.b[copy(b.Digest[:], r.b):]
	return b
}

// restoring says, of a log that is read from its beginning, whether it is being
// restored at an entry. Only then does a batch of a restored entry count, and
// no other.
type restoring struct {
	now   bool
	known bool // the log was read from a place where that is known
}

// counts reports whether the batch in an entry may count.
func (r *restoring) counts(e *Entry) bool { return !r.known || r.now == e.Restored() }

// step takes a batch of restores that is not void, and returns where the log
// begins if it begins here.
func (r *restoring) step(b Batch) *RestoreBegin {
	var s RestoreStep
	for records := b.Read(); records.NextRestore(&s); {
		switch {
		case s.Begin != nil:
			*r = restoring{now: true, known: true}
			return s.Begin
		case s.End != nil:
			*r = restoring{known: true}
		}
	}
	return nil
}

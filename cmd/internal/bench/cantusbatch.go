package bench

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// cantusBatch appends transactions in batch messages, as fast as a node accepts
// them. To fill a partition they have no locks, or, if unique is set, each has
// an append lock of its own, which fills the lock table and never conflicts. In
// the batch workload they have write locks from a pool.
type cantusBatch struct {
	subjects []string
	batch    int
	payloads *payloads

	unique   bool
	next     uint64 // makes lock names unique, together with lockStem
	lockStem string

	locks int
	pool  pool
	keys  []int
	rng   *rand.Rand
	marks []uint64 // by partition
}

func newCantusFill(w *workload, names subjects.Names, conn int, run string) *cantusBatch {
	f := &cantusBatch{
		batch: w.Batch, unique: w.UniqueLocks, payloads: newPayloads(newRand(conn), w.Size, false),
		lockStem: "fill." + run + "." + strconv.Itoa(conn) + ".", marks: make([]uint64, w.Partitions),
	}
	for p := range w.Partitions {
		f.subjects = append(f.subjects, names.Batch(p))
	}
	return f
}

func newCantusBatch(w *workload, names subjects.Names, keys pool, marks []uint64, conn int) *cantusBatch {
	f := newCantusFill(w, names, conn, "")
	f.unique, f.locks, f.pool, f.rng = false, w.Locks, keys, newRand(conn)
	f.keys, f.marks = make([]int, w.Locks), append([]uint64(nil), marks...)
	return f
}

func (f *cantusBatch) compose(s *pending) int {
	p := s.index % len(f.subjects)
	s.msg.Subject = f.subjects[p]
	if s.again {
		return f.batch
	}
	// The buffer belongs to the request: Publish has copied it when it returns.
	b := s.msg.Data[:0]
	for range f.batch {
		at := len(b)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
		b = f.header(b, p)
		payload := f.payloads.next(nil, 0)
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-8))
		binary.BigEndian.PutUint32(b[at+4:], uint32(len(payload)))
		b = append(b, payload...)
	}
	s.msg.Data = b
	return f.batch
}

// header appends a transaction's header block, if it has one.
func (f *cantusBatch) header(b []byte, partition int) []byte {
	switch {
	case f.unique:
		f.next++
		b = subjects.AppendBlockStart(b)
		b = append(b, subjects.HeaderAppendLock...)
		b = append(b, ": "...)
		b = append(b, f.lockStem...)
		b = strconv.AppendUint(b, f.next, 10)
		b = append(b, "\r\n"...)
	case f.locks > 0:
		b = subjects.AppendBlockStart(b)
		f.pool.pick(f.rng, f.keys)
		for _, k := range f.keys {
			b = subjects.AppendField(b, subjects.HeaderWriteLock, f.pool.name(k))
		}
		b = append(b, subjects.HeaderHighWaterMark...)
		b = append(b, ": "...)
		b = strconv.AppendUint(b, f.marks[partition], 10)
		b = append(b, "\r\n"...)
	default:
		return b
	}
	return subjects.AppendBlockEnd(b)
}

func (f *cantusBatch) judge(s *pending, m *nats.Msg) outcome {
	switch first(m.Header, subjects.HeaderErrorCode) {
	case "429", "503":
		return outcome{busy: true}
	case "504":
		return outcome{unknown: true}
	}
	r := scanRuns(m.Data)
	p := s.index % len(f.marks)
	f.marks[p] = max(f.marks[p], r.mark)
	known := r.committed + r.refused + r.unknown
	switch {
	case known == 0 && r.busy:
		return outcome{busy: true}
	case known == f.batch, r.busy: // transactions that were not done are sent again as new ones
		return outcome{done: r.committed, lost: r.refused, unknown: r.unknown > 0}
	}
	return outcome{err: answerError(s.msg.Subject, m)}
}

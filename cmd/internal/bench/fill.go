package bench

import (
	"encoding/binary"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// cantusFill appends transactions in batch messages, as fast as a node takes
// them. Each has an append lock of its own if unique is set: recorded, so
// that it fills the table, and never in conflict.
type cantusFill struct {
	subjects []string
	batch    int
	unique   bool
	next     uint64 // makes lock names unique, together with lockStem
	lockStem string
	payloads *payloads
}

func newCantusFill(w *workload, names subjects.Names, conn int, run string) *cantusFill {
	f := &cantusFill{
		batch: w.Batch, unique: w.UniqueLocks, payloads: newPayloads(newRand(conn), w.Size),
		lockStem: "fill." + run + "." + strconv.Itoa(conn) + ".",
	}
	for p := range w.Partitions {
		f.subjects = append(f.subjects, names.Batch(p))
	}
	return f
}

func (f *cantusFill) compose(s *slot) int {
	s.msg.Subject = f.subjects[s.index%len(f.subjects)]
	if s.again {
		return f.batch
	}
	// The buffer is the slot's: nats.go has copied it when Publish returns.
	b := s.msg.Data[:0]
	for range f.batch {
		at := len(b)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
		if f.unique {
			f.next++
			b = subjects.AppendBlockStart(b)
			b = append(b, subjects.HeaderAppendLock...)
			b = append(b, ": "...)
			b = append(b, f.lockStem...)
			b = strconv.AppendUint(b, f.next, 10)
			b = append(b, "\r\n"...)
			b = subjects.AppendBlockEnd(b)
		}
		payload := f.payloads.next()
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-8))
		binary.BigEndian.PutUint32(b[at+4:], uint32(len(payload)))
		b = append(b, payload...)
	}
	s.msg.Data = b
	return f.batch
}

func (f *cantusFill) judge(s *slot, m *nats.Msg) outcome {
	if code := first(m.Header, subjects.HeaderErrorCode); code == "429" || code == "503" {
		return outcome{busy: true}
	}
	done, busy := scanRuns(m.Data)
	switch {
	case done == 0 && busy:
		return outcome{busy: true}
	case done == f.batch, busy: // what was not done is sent again as something new
		return outcome{done: done}
	}
	return outcome{err: answerError(s.msg.Subject, m)}
}

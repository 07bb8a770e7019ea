package bench

import (
	"math/rand/v2"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// cantusRead reads a partition from its first transaction to its last, with
// several reads of successive ranges in flight, and starts again at the end. A
// read that ended at the byte limit is continued.
type cantusRead struct {
	subject  string
	first    uint64 // the oldest transaction
	last     uint64 // the newest when the round began
	next     uint64 // the first that no read has asked for
	max      int
	maxBytes int
}

func newCantusRead(w *workload, names subjects.Names, partition int, first, last uint64) *cantusRead {
	return &cantusRead{
		subject: names.Read(partition), first: first, last: last, next: first, max: w.ReadMax, maxBytes: w.ReadBytes,
	}
}

func (r *cantusRead) compose(s *pending) int {
	if !s.again {
		if r.next > r.last {
			r.next = r.first
		}
		s.next, s.limit = r.next, min(r.next+uint64(r.max), r.last+1)
		r.next = s.limit
	}
	b := append(s.buf[:0], `{"from":`...)
	b = strconv.AppendUint(b, s.next, 10)
	b = append(b, `,"max":`...)
	b = strconv.AppendUint(b, s.limit-s.next, 10)
	b = append(b, `,"max_bytes":`...)
	b = strconv.AppendInt(b, int64(r.maxBytes), 10)
	s.buf = append(b, '}')
	s.msg.Subject, s.msg.Data = r.subject, s.buf
	return int(s.limit - s.next)
}

func (r *cantusRead) judge(s *pending, m *nats.Msg) outcome {
	if first(m.Header, subjects.HeaderTxid) != "" {
		return outcome{done: 1, more: true}
	}
	if first(m.Header, "Status") == subjects.StatusEnd {
		next, err := strconv.ParseUint(first(m.Header, subjects.HeaderNext), 10, 64)
		if err != nil || next <= s.next {
			return outcome{err: answerError(s.msg.Subject, m)}
		}
		s.next = next
		return outcome{again: next < s.limit}
	}
	switch first(m.Header, subjects.HeaderErrorCode) {
	case "429", "503":
		return outcome{busy: true}
	}
	return outcome{err: answerError(s.msg.Subject, m)}
}

// cantusGet looks up transactions at random.
type cantusGet struct {
	subjects []string // by partition
	last     []uint64 // by partition: lookups go from 1 to it
	rng      *rand.Rand
}

func newCantusGet(w *workload, names subjects.Names, marks []uint64, conn int) *cantusGet {
	g := &cantusGet{last: marks, rng: newRand(conn)}
	for p := range w.Partitions {
		g.subjects = append(g.subjects, names.Get(p))
	}
	return g
}

func (g *cantusGet) compose(s *pending) int {
	p := s.index % len(g.subjects)
	s.buf = append(s.buf[:0], `{"txid":`...)
	s.buf = append(strconv.AppendUint(s.buf, 1+g.rng.Uint64N(g.last[p]), 10), '}')
	s.msg.Subject, s.msg.Data, s.msg.Header = g.subjects[p], s.buf, nil
	return 1
}

func (g *cantusGet) judge(s *pending, m *nats.Msg) outcome {
	if first(m.Header, subjects.HeaderTxid) != "" {
		return outcome{done: 1}
	}
	switch first(m.Header, subjects.HeaderErrorCode) {
	case "429", "503":
		return outcome{busy: true}
	}
	return outcome{err: answerError(s.msg.Subject, m)}
}

// mixed sends appends and lookups.
type mixed struct {
	appends, lookups traffic
	percent          int // of lookups
	rng              *rand.Rand
}

func (x *mixed) compose(s *pending) int {
	if !s.again && x.rng.IntN(100) < x.percent {
		s.op = lookupOp
	}
	return x.of(s).compose(s)
}

func (x *mixed) judge(s *pending, m *nats.Msg) outcome { return x.of(s).judge(s, m) }

func (x *mixed) of(s *pending) traffic {
	if s.op == lookupOp {
		return x.lookups
	}
	return x.appends
}

package bench

import (
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Headers of an atomic batch publish: all messages with one id are stored when
// the message that commits arrives, or none of them.
const (
	batchID       = "Nats-Batch-Id"
	batchSequence = "Nats-Batch-Sequence"
	batchCommit   = "Nats-Batch-Commit"
)

// streamAtomic publishes atomic batches. With locks, a batch is one
// transaction: a message with a condition for each key. The first has the
// payload and the others are empty, so that no more is stored than necessary.
// Without locks, each message is a transaction.
//
// The messages are sent at once and only the last one asks for an answer. The
// protocol also has an answer to the first, which would cost a round trip
// before the others.
type streamAtomic struct {
	streams  *streams
	messages int
	rng      *rand.Rand
	payloads *payloads
	idPrefix string
	ids      uint64
}

func newStreamAtomic(st *streams, w *workload, conn int) *streamAtomic {
	rng := newRand(conn)
	a := &streamAtomic{
		streams: st, messages: w.Batch, rng: rng, payloads: newPayloads(rng, w.Size, false), idPrefix: nuid.Next(),
	}
	if st.expected {
		a.messages = w.Locks
	}
	return a
}

func (a *streamAtomic) compose(s *pending) int {
	if s.keys == nil {
		a.prepare(s)
	}
	st := a.streams.of(s)
	if !s.again && a.streams.expected {
		a.streams.keys.pick(a.rng, s.keys)
	}
	a.ids++
	id := a.idPrefix + strconv.FormatUint(a.ids, 36)
	for i := range a.messages {
		m := a.message(s, i)
		m.Header[batchID][0] = id
		if !a.streams.expected {
			m.Subject, m.Data = a.streams.names[st]+".plain", a.payloads.next(nil, 0)
			continue
		}
		m.Subject = a.streams.subject(st, s.keys[i])
		m.Header[expectedSubject][0] = a.streams.sequence(st, s.keys[i])
	}
	if !a.streams.expected {
		return a.messages
	}
	if !s.again {
		s.payload = a.payloads.next(nil, 0)
	}
	a.message(s, 0).Data = s.payload
	return 1
}

// prepare makes a request's messages.
func (a *streamAtomic) prepare(s *pending) {
	s.keys = make([]int, a.messages)
	s.ahead = make([]*nats.Msg, a.messages-1)
	for i := range s.ahead {
		s.ahead[i] = &nats.Msg{}
	}
	for i := range a.messages {
		m := a.message(s, i)
		m.Header = nats.Header{batchID: make([]string, 1), batchSequence: {strconv.Itoa(i + 1)}}
		if a.streams.expected {
			m.Header[expectedSubject] = make([]string, 1)
		}
	}
	s.msg.Header[batchCommit] = []string{"1"}
}

// message returns the i-th message of a request's batch.
func (a *streamAtomic) message(s *pending, i int) *nats.Msg {
	if i < len(s.ahead) {
		return s.ahead[i]
	}
	return s.msg
}

func (a *streamAtomic) judge(s *pending, m *nats.Msg) outcome {
	seq, ok := ackSequence(m.Data)
	if !ok {
		code, _ := scanUint(m.Data, []byte(`"err_code":`))
		if o, known := rejection(jetstream.ErrorCode(code)); known {
			o.wait = o.refused && !a.newer(s)
			return o
		}
		return outcome{err: fmt.Errorf("%w to %s: %s", ErrAnswer, s.msg.Subject, m.Data)}
	}
	if !a.streams.expected {
		return outcome{done: a.messages}
	}
	for i, k := range s.keys {
		a.streams.saw(a.streams.of(s), k, seq-uint64(len(s.keys)-1-i))
	}
	return outcome{done: 1}
}

// newer reports whether a newer sequence is known of any of a request's keys
// than when its batch was made.
func (a *streamAtomic) newer(s *pending) bool {
	for i, k := range s.keys {
		if a.streams.newer(a.streams.of(s), k, a.message(s, i)) {
			return true
		}
	}
	return false
}

// streamGet looks up messages at random with direct gets, which any replica
// answers.
type streamGet struct {
	subjects []string
	last     []uint64
	rng      *rand.Rand
}

func newStreamGet(st *streams, last []uint64, conn int) *streamGet {
	g := &streamGet{last: last, rng: newRand(conn)}
	for _, name := range st.names {
		g.subjects = append(g.subjects, "$JS.API.DIRECT.GET."+name)
	}
	return g
}

func (g *streamGet) compose(s *pending) int {
	st := s.index % len(g.subjects)
	s.buf = append(s.buf[:0], `{"seq":`...)
	s.buf = append(strconv.AppendUint(s.buf, 1+g.rng.Uint64N(g.last[st]), 10), '}')
	s.msg.Subject, s.msg.Data, s.msg.Header = g.subjects[st], s.buf, nil
	return 1
}

func (g *streamGet) judge(s *pending, m *nats.Msg) outcome {
	if first(m.Header, jetstream.SequenceHeader) != "" {
		return outcome{done: 1}
	}
	if first(m.Header, "Status") == "404" {
		return outcome{busy: true} // the replica is behind
	}
	return outcome{err: fmt.Errorf("%w to %s: %s %s", ErrAnswer, s.msg.Subject, first(m.Header, "Status"), m.Data)}
}

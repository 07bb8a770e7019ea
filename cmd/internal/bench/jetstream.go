package bench

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// expectedSubject is the header of a conditional publish: the sequence that
// the subject's last message must have.
const expectedSubject = "Nats-Expected-Last-Subject-Sequence"

// Error codes of JetStream.
const (
	wrongLastSequence         = 10071
	wrongLastSequenceConstant = 10164 // the same, without the sequence
	expectedNotReady          = 10163 // the condition cannot be checked yet
	tooManyRequests           = 10167
	atomicIncomplete          = 10176 // the beginning of the batch was refused
	atomicTooMany             = 10210 // too many batches are open
)

// streams is one JetStream stream for each partition of Cantus, with the last
// known sequence of each key's subject. All connections share that, so that
// none is refused because of what another already knows.
type streams struct {
	names    []string
	expected bool // publishes carry a condition
	keys     pool
	last     [][]atomic.Uint64 // by stream and key; empty for plain streams
}

// streamKind says how a stream is used.
type streamKind struct {
	name     string
	expected bool
	atomic   bool
	direct   bool // lookups go to any replica
}

// openStreams creates streams on file storage. A cluster that was just started
// may need some time for it.
func (s *benchRun) openStreams(ctx context.Context, c *cluster, kind streamKind, keys pool) (*streams, error) {
	nc, err := connect(c.url(0), func(error) {})
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	w := s.workload
	st := &streams{expected: kind.expected, keys: keys}
	for p := range w.Partitions {
		name := kind.name + strconv.Itoa(p)
		err := again(ctx, func() error {
			_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
				Name: name, Subjects: []string{name + ".>"}, Storage: jetstream.FileStorage,
				Replicas: peerReplicas(w.Nodes), AllowAtomicPublish: kind.atomic, AllowDirect: kind.direct,
			})
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("create stream %s: %w", name, err)
		}
		st.names = append(st.names, name)
		if kind.expected {
			st.last = append(st.last, make([]atomic.Uint64, w.Keys))
		}
	}
	return st, nil
}

// streamLeader returns a function that returns the leader of the first stream.
func streamLeader(c *cluster, st *streams) func(context.Context) (string, error) {
	return func(ctx context.Context) (name string, err error) {
		nc, err := connect(c.url(0), func(error) {})
		if err != nil {
			return "", err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return "", fmt.Errorf("jetstream: %w", err)
		}
		err = again(ctx, func() error {
			stream, err := js.Stream(ctx, st.names[0])
			if err != nil {
				return fmt.Errorf("stream %s: %w", st.names[0], err)
			}
			group := stream.CachedInfo().Cluster
			if group == nil || group.Leader == "" {
				return fmt.Errorf("%w: stream %s has no leader", ErrAnswer, st.names[0])
			}
			name = group.Leader
			return nil
		})
		return name, err
	}
}

// lastSequences returns the last sequence of each stream.
func (s *benchRun) lastSequences(ctx context.Context, c *cluster, st *streams) ([]uint64, error) {
	var last []uint64
	for _, name := range st.names {
		n, err := s.messages(ctx, c, name)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("%w: stream %s is empty: a larger --fill fills it", ErrFlags, name)
		}
		last = append(last, n)
	}
	return last, nil
}

// messages returns the number of messages in a stream, none of which was
// deleted.
func (s *benchRun) messages(ctx context.Context, c *cluster, name string) (uint64, error) {
	nc, err := connect(c.url(0), func(error) {})
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, fmt.Errorf("jetstream: %w", err)
	}
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("stream %s: %w", name, err)
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// streamAppend publishes to a stream, one message per transaction: to one
// subject without a condition, or to a key's subject with one.
type streamAppend struct {
	streams  *streams
	rng      *rand.Rand
	payloads *payloads
}

func newStreamAppend(st *streams, w *workload, conn int) *streamAppend {
	rng := newRand(conn)
	return &streamAppend{streams: st, rng: rng, payloads: newPayloads(rng, w.Size, w.Kind == tailLoad)}
}

func (a *streamAppend) compose(s *pending) int {
	m := s.msg
	if !s.again {
		s.payload = a.payloads.next(s.payload, s.sent)
	}
	m.Data = s.payload
	st := a.streams.of(s)
	if !a.streams.expected {
		m.Subject, m.Header = a.streams.names[st]+".plain", nil
		return 1
	}
	if s.header == nil {
		s.keys = make([]int, 1)
		s.header = nats.Header{expectedSubject: make([]string, 1)}
	}
	if !s.again {
		a.streams.keys.pick(a.rng, s.keys)
		s.subject = a.streams.subject(st, s.keys[0])
	}
	m.Subject, m.Header = s.subject, s.header
	m.Header[expectedSubject][0] = a.streams.sequence(st, s.keys[0])
	return 1
}

// of returns the stream to which a request publishes.
func (st *streams) of(s *pending) int { return s.index % len(st.names) }

func (st *streams) subject(stream, key int) string { return st.names[stream] + "." + st.keys.name(key) }

// sequence returns a key's last sequence as the value of a header.
func (st *streams) sequence(stream, key int) string {
	return strconv.FormatUint(st.last[stream][key].Load(), 10)
}

func (a *streamAppend) judge(s *pending, m *nats.Msg) outcome {
	if seq, ok := ackSequence(m.Data); ok {
		return a.accepted(s, seq)
	}
	code, _ := scanUint(m.Data, []byte(`"err_code":`))
	return a.rejected(s, jetstream.ErrorCode(code), string(m.Data))
}

// ackSequence returns the sequence of an answer that is not an error.
func ackSequence(data []byte) (uint64, bool) {
	seq, ok := scanUint(data, seqKey)
	return seq, ok && !bytes.Contains(data, errorKey)
}

// accepted records the key's new last sequence.
func (a *streamAppend) accepted(s *pending, seq uint64) outcome {
	if a.streams.expected {
		a.streams.saw(a.streams.of(s), s.keys[0], seq)
	}
	return outcome{done: 1}
}

// rejected records the key's last sequence that the error for a failed
// condition contains.
func (a *streamAppend) rejected(s *pending, code jetstream.ErrorCode, text string) outcome {
	o, known := rejection(code)
	switch {
	case !known, o.refused && !a.streams.expected:
		return outcome{err: fmt.Errorf("%w to %s: %s", ErrAnswer, s.msg.Subject, text)}
	case o.busy:
		return o
	}
	if seq, ok := scanUint([]byte(text), []byte("wrong last sequence: ")); ok {
		a.streams.saw(a.streams.of(s), s.keys[0], seq)
	}
	o.wait = !a.streams.newer(a.streams.of(s), s.keys[0], s.msg)
	return o
}

// newer reports whether a newer sequence of a key is known than when a message
// was made. If not, the conflicting message is still in flight, and trying
// again at once would fail.
func (st *streams) newer(stream, key int, m *nats.Msg) bool {
	return st.sequence(stream, key) != m.Header[expectedSubject][0]
}

// rejection returns the outcome for an error of a conditional publish, if it is
// one that the load expects.
func rejection(code jetstream.ErrorCode) (o outcome, known bool) {
	switch code {
	case wrongLastSequence, wrongLastSequenceConstant:
		return outcome{refused: true}, true
	case expectedNotReady, tooManyRequests, atomicIncomplete, atomicTooMany:
		return outcome{busy: true}, true
	}
	return outcome{}, false
}

func (st *streams) saw(stream, key int, seq uint64) {
	at := &st.last[stream][key]
	for last := at.Load(); last < seq; last = at.Load() {
		if at.CompareAndSwap(last, seq) {
			return
		}
	}
}

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// cantusAppend appends transactions with write locks to Cantus. Its high-water
// mark of a partition is the newest txid in an answer on this connection, like
// that of a writer that follows the feed. Transactions of others in flight on
// the same key are conflicts, which are rare if the pool is large.
type cantusAppend struct {
	subjects []string // by partition
	marks    []uint64 // by partition
	pool     pool
	locks    int
	rng      *rand.Rand
	payloads *payloads
}

func newCantusAppend(w *workload, names subjects.Names, keys pool, marks []uint64, conn int) *cantusAppend {
	rng := newRand(conn)
	a := &cantusAppend{
		pool: keys, locks: w.Locks, rng: rng, payloads: newPayloads(rng, w.Size, w.Kind == tailLoad),
		marks: append([]uint64(nil), marks...),
	}
	for p := range w.Partitions {
		a.subjects = append(a.subjects, names.Append(p))
	}
	return a
}

func (a *cantusAppend) compose(s *pending) int {
	p := s.index % len(a.subjects)
	m := s.msg
	m.Subject = a.subjects[p]
	if !s.again {
		s.payload = a.payloads.next(s.payload, s.sent)
	}
	m.Data, m.Header = s.payload, s.header
	if a.locks == 0 {
		return 1
	}
	if s.header == nil {
		s.keys = make([]int, a.locks)
		s.header = nats.Header{
			subjects.HeaderWriteLock: make([]string, a.locks), subjects.HeaderHighWaterMark: make([]string, 1),
		}
		m.Header = s.header
	}
	if !s.again {
		a.pool.pick(a.rng, s.keys)
		locks := m.Header[subjects.HeaderWriteLock]
		for i, k := range s.keys {
			locks[i] = a.pool.name(k)
		}
	}
	m.Header[subjects.HeaderHighWaterMark][0] = strconv.FormatUint(a.marks[p], 10)
	return 1
}

func (a *cantusAppend) judge(s *pending, m *nats.Msg) outcome {
	p := s.index % len(a.marks)
	txid, ok := scanUint(m.Data, txidKey)
	if len(m.Header) == 0 && ok {
		a.marks[p] = max(a.marks[p], txid)
		return outcome{done: 1}
	}
	switch code := first(m.Header, subjects.HeaderErrorCode); code {
	case "409":
		// The refusal names the newest conflicting transaction: a writer that
		// has applied it does not conflict with it again.
		a.marks[p] = max(a.marks[p], txid)
		return outcome{refused: true}
	case "429", "503":
		return outcome{busy: true}
	case "504":
		return outcome{unknown: true}
	}
	return outcome{err: answerError(s.msg.Subject, m)}
}

func answerError(subject string, m *nats.Msg) error {
	const most = 400
	text := string(m.Data[:min(len(m.Data), most)])
	return fmt.Errorf("%w to %s: %s %s", ErrAnswer, subject, first(m.Header, subjects.HeaderError), text)
}

// partitionInfos asks a cluster about each partition, and repeats that while a
// partition has no leader.
func partitionInfos(ctx context.Context, url string, names subjects.Names, partitions int) ([]subjects.PartitionInfo, error) {
	nc, err := connect(url, func(error) {})
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	infos := make([]subjects.PartitionInfo, partitions)
	for p := range infos {
		err := again(ctx, func() error {
			m, err := request(ctx, nc, names.PartitionInfo(p), nil)
			if err != nil {
				return err
			}
			if noResponders(m) {
				return fmt.Errorf("%w to %s: there is no leader", ErrAnswer, names.PartitionInfo(p))
			}
			infos[p] = subjects.PartitionInfo{} // drop an error of an earlier attempt
			if err := json.Unmarshal(m.Data, &infos[p]); err != nil || infos[p].Error != nil {
				return answerError(names.PartitionInfo(p), m)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// trimTo trims each partition to about the bytes that the workload keeps.
func trimTo(ctx context.Context, url string, names subjects.Names, w *workload) error {
	body, err := json.Marshal(subjects.TrimRequest{Bytes: uint64(w.Keep)})
	if err != nil {
		return err
	}
	nc, err := connect(url, func(error) {})
	if err != nil {
		return err
	}
	defer nc.Close()
	for p := range w.Partitions {
		subject := names.Admin("trim", strconv.Itoa(p))
		m, err := request(ctx, nc, subject, body)
		if err != nil {
			return err
		}
		var reply subjects.TrimReply
		if err := json.Unmarshal(m.Data, &reply); err != nil || reply.Error != nil {
			return answerError(subject, m)
		}
	}
	return nil
}

// highWaterMarks returns the current high-water mark of each partition.
func highWaterMarks(ctx context.Context, url string, names subjects.Names, partitions int) ([]uint64, error) {
	infos, err := partitionInfos(ctx, url, names, partitions)
	if err != nil {
		return nil, err
	}
	marks := make([]uint64, partitions)
	for p := range marks {
		marks[p] = infos[p].HighWaterMark
	}
	return marks, nil
}

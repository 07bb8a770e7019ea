package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
)

// Recorder records what clients of a cluster ask for and are answered, for the
// judge. A nil Recorder records nothing.
type Recorder struct {
	began time.Time

	mu      sync.Mutex
	history judge.History
}

// NewRecorder returns a Recorder whose history has the given header, and whose
// clock starts now. It fills in the version.
func NewRecorder(h judge.Header) *Recorder {
	h.Version = judge.Version
	return &Recorder{began: time.Now(), history: judge.History{Header: h}}
}

// Now returns the time of the clock of the history, in nanoseconds.
func (r *Recorder) Now() int64 {
	if r == nil {
		return 0
	}
	return int64(time.Since(r.began))
}

// Add records an operation of a client, which began at start and has just
// ended. The recorder owns o from now on.
func (r *Recorder) Add(client string, start int64, partition int, o *judge.Operation) {
	if r == nil {
		return
	}
	o.Client, o.Partition, o.Start, o.End = client, partition, start, r.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history.Operations = append(r.history.Operations, o)
}

// partitionOf returns the partition in a subject such as cantus.append.3.
func partitionOf(subject string) int {
	tokens := strings.Split(subject, ".")
	p, err := strconv.Atoi(tokens[len(tokens)-1])
	if err != nil {
		panic(fmt.Sprintf("%s: the recorder does not know the partition", subject))
	}
	return p
}

// failed returns the result of a request without an answer.
func failed(err error) judge.Result {
	if errors.Is(err, nats.ErrNoResponders) {
		return refusedBy(&Refusal{Reason: "unavailable"}, nil)
	}
	return judge.Result{Outcome: judge.Unknown}
}

// refusedBy returns the result of a request that was refused, at a high-water
// mark if that is known.
func refusedBy(e *Refusal, mark *uint64) (r judge.Result) {
	text, err := json.Marshal(map[string]any{"outcome": judge.Refused, "error": e, "high_water_mark": mark})
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		panic(err)
	}
	return r
}

// Appended records an append that was sent at start, and its answer, if err is
// nil.
func (r *Recorder) Appended(client string, start int64, m *nats.Msg, answer Reply, err error) {
	if r == nil {
		return
	}
	o := &judge.Operation{Append: sentTransaction(m)}
	switch {
	case err != nil:
		o.Result = failed(err)
	case answer.Error != nil:
		o.Result = refusedBy(answer.Error, &answer.HighWaterMark)
	default:
		o.Result = judge.Result{Outcome: judge.OK, Txid: answer.Txid, Time: nanoseconds(answer.Time), Duplicate: answer.Duplicate}
	}
	r.Add(client, start, partitionOf(m.Subject), o)
}

func (r *Recorder) read(client string, start int64, subject string, body []byte, got []*nats.Msg, end ReadEnd, refused *Refusal, err error) {
	if r == nil {
		return
	}
	var request struct {
		From        uint64   `json:"from"`
		Kinds       []string `json:"kinds"`
		Lock        string   `json:"lock"`
		HeadersOnly bool     `json:"headers_only"`
		Packed      bool     `json:"packed"`
	}
	if json.Unmarshal(body, &request) != nil || request.Packed {
		return
	}
	o := &judge.Operation{Read: &judge.Read{From: max(request.From, 1), Kinds: request.Kinds, Lock: request.Lock, Replica: strings.Contains(subject, ".replica.")}}
	switch {
	case err != nil:
		o.Result = failed(err)
	case refused != nil:
		o.Result = refusedBy(refused, nil)
	default:
		o.Result = judge.Result{Outcome: judge.OK, HighWaterMark: &end.HighWaterMark}
		o.Read.Next = end.Next
		for _, m := range got {
			t := storedTransaction(m)
			if request.HeadersOnly {
				t.Content = ""
			}
			o.Read.Transactions = append(o.Read.Transactions, t)
		}
	}
	r.Add(client, start, partitionOf(subject), o)
}

func (r *Recorder) info(client string, start int64, partition int, i PartitionInfo, err error) {
	if r == nil {
		return
	}
	o := &judge.Operation{Info: &judge.Info{}}
	switch {
	case i.Error != nil:
		o.Result = refusedBy(i.Error, nil)
	case err != nil:
		o.Result = failed(err)
	default:
		o.Result = judge.Result{Outcome: judge.OK, HighWaterMark: &i.HighWaterMark}
		*o.Info = judge.Info{FirstTxid: i.FirstTxid, Digest: i.Digest, Leader: i.Leader, Term: i.Term, Floor: i.Locks.Floor}
	}
	r.Add(client, start, partition, o)
}

// Drained records the log of a replica at the end, which begins at txid first,
// and the digest at its last transaction.
func (r *Recorder) Drained(replica string, partition int, first uint64, digest string, log []*nats.Msg) {
	if r == nil {
		return
	}
	d := &judge.Drain{Replica: replica, Partition: partition, FirstTxid: first, HighWaterMark: first - 1, Digest: digest}
	for _, m := range log {
		d.Transactions = append(d.Transactions, storedTransaction(m))
		d.HighWaterMark = Txid(m)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history.Drains = append(r.history.Drains, d)
}

// History returns what is recorded so far. What is recorded later is not in it.
// It must not be changed.
func (r *Recorder) History() *judge.History {
	if r == nil {
		return &judge.History{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.history
	return &h
}

// judge writes the history into a file and has the program check it. If

package e2e_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
)

// recorder records what clients of a cluster ask for and are answered, for the
// judge.
type recorder struct {
	began time.Time

	mu      sync.Mutex
	history judge.History
}

// record has every client that is dialed from now on recorded, until checkSame
// has the judge decide. window is how long the cluster remembers message ids.
func (c *cluster) record(partitions, replicas int, window time.Duration) {
	c.recorder = &recorder{began: time.Now(), history: judge.History{Header: judge.Header{
		Version: judge.Version, Partitions: partitions, Replicas: replicas, AllWriters: true, MessageIDWindow: int64(window),
	}}}
}

// now returns the time of the clock of the history; a recorder that is nil
// records nothing.
func (r *recorder) now() int64 {
	if r == nil {
		return 0
	}
	return int64(time.Since(r.began))
}

// add records an operation that has just ended.
func (r *recorder) add(client string, start int64, partition int, o *judge.Operation) {
	if r == nil {
		return
	}
	o.Client, o.Partition, o.Start, o.End = client, partition, start, r.now()
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
		return refusedBy(&refusal{Reason: "unavailable"}, nil)
	}
	return judge.Result{Outcome: judge.Unknown}
}

// refusedBy returns the result of a request that was refused, at a high-water
// mark if that is known.
func refusedBy(e *refusal, mark *uint64) (r judge.Result) {
	text, err := json.Marshal(map[string]any{"outcome": judge.Refused, "error": e, "high_water_mark": mark})
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		panic(err)
	}
	return r
}

func (r *recorder) append(client string, start int64, m *nats.Msg, answer reply, err error) {
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
	r.add(client, start, partitionOf(m.Subject), o)
}

func (r *recorder) read(client string, start int64, subject string, body []byte, got []*nats.Msg, end readEnd, refused *refusal, err error) {
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
		o.Result = judge.Result{Outcome: judge.OK, HighWaterMark: &end.highWaterMark}
		o.Read.Next = end.next
		for _, m := range got {
			t := storedTransaction(m)
			if request.HeadersOnly {
				t.Content = ""
			}
			o.Read.Transactions = append(o.Read.Transactions, t)
		}
	}
	r.add(client, start, partitionOf(subject), o)
}

func (r *recorder) info(client string, start int64, partition int, i partitionInfo, err error) {
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
	r.add(client, start, partition, o)
}

// drained records the log of a replica, which begins at txid first.
func (r *recorder) drained(replica string, partition int, first uint64, digest string, log []*nats.Msg) {
	d := &judge.Drain{Replica: replica, Partition: partition, FirstTxid: first, HighWaterMark: first - 1, Digest: digest}
	for _, m := range log {
		d.Transactions = append(d.Transactions, storedTransaction(m))
		d.HighWaterMark = txid(m)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history.Drains = append(r.history.Drains, d)
}

// judge writes the history into a file and has the program check it. If
// anything is wrong, the file stays.
func (r *recorder) judge(t *testing.T) {
	t.Helper()
	file, err := os.CreateTemp(os.Getenv("CANTUS_E2E_LOGS"), strings.ReplaceAll(t.Name(), "/", "-")+"-*.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	path := file.Name()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := judge.Encode(file, &r.history); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := runProgram(t, checker, "check", path)
	if code != 0 {
		t.Fatalf("cantus check %s: exit %d\n%s%s", path, code, stdout, stderr)
	}
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
	t.Logf("cantus check: %s", strings.TrimSpace(stdout))
}

// sentTransaction returns a transaction as a client sends it.
func sentTransaction(m *nats.Msg) *judge.Transaction {
	t := &judge.Transaction{
		ID: m.Header.Get("Nats-Msg-Id"), Content: contentHash(m), Headers: headersHash(m), Kind: m.Header.Get("Cantus-Kind"),
		HighWaterMark: number(m, "Cantus-High-Water-Mark"), ExpectedLast: number(m, "Nats-Expected-Last-Sequence"),
	}
	setLocks(t, m)
	return t
}

// storedTransaction returns a transaction as it was read.
func storedTransaction(m *nats.Msg) *judge.Stored {
	s := &judge.Stored{Txid: txid(m), Time: nanoseconds(m.Header.Get("Cantus-Time")), Transaction: judge.Transaction{
		ID: m.Header.Get("Cantus-Msg-Id"), Content: contentHash(m), Headers: headersHash(m), Kind: m.Header.Get("Cantus-Kind"),
		HighWaterMark: number(m, "Cantus-High-Water-Mark"),
	}}
	setLocks(&s.Transaction, m)
	return s
}

func setLocks(t *judge.Transaction, m *nats.Msg) {
	for key, locks := range map[string]*[]string{"Cantus-Write-Lock": &t.Write, "Cantus-Read-Lock": &t.Read, "Cantus-Append-Lock": &t.Append} {
		for _, list := range m.Header[key] {
			for name := range strings.SplitSeq(list, ",") {
				*locks = append(*locks, strings.TrimSpace(name))
			}
		}
	}
}

// headersHash returns a hash of the application's headers.
func headersHash(m *nats.Msg) string {
	var keys []string
	for key := range m.Header {
		if !strings.HasPrefix(key, "Cantus-") && !strings.HasPrefix(key, "Nats-") {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return "none"
	}
	slices.Sort(keys)
	h := sha256.New()
	for _, key := range keys {
		for _, text := range append([]string{key}, m.Header[key]...) {
			fmt.Fprintf(h, "%d:%s", len(text), text)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// contentHash returns a hash of the payload.
func contentHash(m *nats.Msg) string {
	h := sha256.Sum256(m.Data)
	return fmt.Sprintf("%x", h[:8])
}

func number(m *nats.Msg, key string) *uint64 {
	if m.Header.Get(key) == "" {
		return nil
	}
	n, err := strconv.ParseUint(m.Header.Get(key), 10, 64)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", key, err))
	}
	return &n
}

func nanoseconds(text string) int64 {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return at.UnixNano()
}

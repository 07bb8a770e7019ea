package e2e_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
)

// mix is clients that ask a cluster for everything that the protocol has,
// recorded, until they are stopped. They expect nothing: the judge decides.
type mix struct {
	cluster  *cluster
	stop     context.CancelFunc
	running  sync.WaitGroup
	answered atomic.Int64
	marks    []atomic.Uint64 // of each partition, the highest that was seen
}

// mixPace is the time between two requests of a client.
const mixPace = 10 * time.Millisecond

// startMix starts a few writers and readers for each partition, on all nodes.
// Their choices come from the seed.
func startMix(c *cluster, partitions int, seed uint64) *mix {
	ctx, stop := context.WithCancel(c.tb.Context())
	m := &mix{cluster: c, stop: stop, marks: make([]atomic.Uint64, partitions)}
	for i := range 6 * partitions {
		w := &mixed{
			mix: m, client: c.dial(c.nodes[i%len(c.nodes)].name), partition: i % partitions,
			Rand: rand.New(rand.NewPCG(seed, uint64(i))), name: fmt.Sprintf("w%d", i),
		}
		work := w.write
		if i%3 == 2 {
			work = w.look
		}
		m.running.Go(func() {
			defer w.client.nc.Close()
			for ctx.Err() == nil {
				work(ctx)
				select {
				case <-time.After(mixPace):
				case <-ctx.Done():
				}
			}
		})
	}
	return m
}

// end stops the clients, whose last requests may stay without an answer.
func (m *mix) end() {
	m.stop()
	m.running.Wait()
}

// reach waits until more requests were answered.
func (m *mix) reach(ctx context.Context, more int) error {
	want := m.answered.Load() + int64(more)
	return m.cluster.until(ctx, fmt.Sprintf("at %d answers", want), func(context.Context) string {
		if n := m.answered.Load(); n < want {
			return fmt.Sprint(n)
		}
		return ""
	})
}

// saw remembers a high-water mark or a txid.
func (m *mix) saw(partition int, mark uint64) {
	m.answered.Add(1)
	for {
		old := m.marks[partition].Load()
		if mark <= old || m.marks[partition].CompareAndSwap(old, mark) {
			return
		}
	}
}

// mixed is one client of a mix.
type mixed struct {
	*mix
	*rand.Rand
	client    *client
	partition int
	name      string
	count     int
	last      *nats.Msg // an append that was answered
}

// request returns an append of a new transaction.
func (w *mixed) request() *nats.Msg {
	w.count++
	id := fmt.Sprintf("%s-%d", w.name, w.count)
	payload := id
	if w.IntN(4) == 0 { // large ones make trim points
		payload += strings.Repeat("x", w.IntN(64<<10))
	}
	m := appendMsg(w.partition, payload, "Cantus-Append-Lock", w.lock())
	if w.IntN(8) > 0 {
		m.Header.Set("Nats-Msg-Id", id)
	}
	if w.IntN(3) == 0 {
		m.Header.Set("Cantus-Kind", []string{"pay", "refund"}[w.IntN(2)])
	}
	if w.IntN(2) == 0 {
		mark := w.marks[w.partition].Load()
		mark -= min(mark, w.Uint64N(20))
		m.Header.Set("Cantus-High-Water-Mark", fmt.Sprint(mark))
		m.Header.Set("Cantus-Write-Lock", w.lock()+","+w.lock())
		m.Header.Set("Cantus-Read-Lock", w.lock())
	}
	if w.IntN(20) == 0 {
		m.Header.Set("Nats-Expected-Last-Sequence", fmt.Sprint(w.marks[w.partition].Load()))
	}
	return m
}

// lock returns one of a few hundred names, or a subtree of some.
func (w *mixed) lock() string {
	switch w.IntN(10) {
	case 0:
		return fmt.Sprintf("a.%d.>", w.IntN(20))
	case 1, 2:
		return fmt.Sprintf("a.%d", w.IntN(20))
	}
	return fmt.Sprintf("a.%d.%d", w.IntN(20), w.IntN(20))
}

// write appends, and sends again what had no answer, as the protocol says.
func (w *mixed) write(ctx context.Context) {
	m := w.request()
	switch n := w.IntN(10); {
	case n == 0 && w.last != nil:
		m = w.last // its answer is known
	case n == 1:
		w.batch(ctx)
		return
	case m.Header.Get("Nats-Msg-Id") == "": // it can't be sent again
		if r, err := w.client.appendMsg(ctx, m); err == nil {
			w.saw(w.partition, max(r.Txid, r.HighWaterMark))
		}
		return
	}
	r, _, err := retry(ctx, w.cluster, w.client, func() (reply, error) { return w.client.appendMsg(ctx, m) })
	if err == nil {
		w.last = m
		w.saw(w.partition, max(r.Txid, r.HighWaterMark))
	}
}

// batch appends several transactions in one message.
func (w *mixed) batch(ctx context.Context) {
	var msgs []*nats.Msg
	for range 1 + w.IntN(8) {
		msgs = append(msgs, w.request())
	}
	if mark, err := w.client.batch(ctx, w.partition, msgs); err == nil {
		w.saw(w.partition, mark)
	}
}

// look reads, gets, describes, or uses a cursor.
func (w *mixed) look(ctx context.Context) {
	mark := w.marks[w.partition].Load()
	txid := mark - min(mark, w.Uint64N(200)) + w.Uint64N(3)
	switch w.IntN(6) {
	case 0:
		if info, err := w.client.info(ctx, w.partition); err == nil {
			w.saw(w.partition, info.HighWaterMark)
		}
	case 1:
		q := map[string]any{"from": max(txid, 1), "max": 1 + w.IntN(50)}
		switch w.IntN(3) {
		case 0:
			q["lock"] = w.lock()
		case 1:
			q["kinds"] = []string{"pay", "tx"}
		}
		_, _, _, _ = w.client.readFrom(ctx, []string{"read", "replica.read"}[w.IntN(2)], w.partition, q)
	case 2:
		w.client.get(ctx, w.partition, judge.Get{Txid: max(txid, 1)})
	case 3:
		w.client.get(ctx, w.partition, judge.Get{Lock: w.lock()})
	default:
		c := judge.Cursor{Name: []string{"billing", "audit"}[w.IntN(2)]}
		if w.IntN(2) == 0 {
			c.Set = &txid
			if w.IntN(2) == 0 {
				was, _ := w.client.cursor(ctx, w.partition, judge.Cursor{Name: c.Name})
				c.Expected = &was
			}
		}
		_, _ = w.client.cursor(ctx, w.partition, c)
	}
}

// batch sends a batch message, and returns the high-water mark.
func (c *client) batch(ctx context.Context, partition int, msgs []*nats.Msg) (mark uint64, err error) {
	m := nats.NewMsg(fmt.Sprintf("cantus.batch.%d", partition))
	o := &judge.Operation{}
	for _, tx := range msgs {
		block := "NATS/1.0\r\n"
		for key, values := range tx.Header {
			for _, value := range values {
				block += key + ": " + value + "\r\n"
			}
		}
		block += "\r\n"
		m.Data = binary.BigEndian.AppendUint32(m.Data, uint32(len(block)))
		m.Data = binary.BigEndian.AppendUint32(m.Data, uint32(len(tx.Data)))
		m.Data = append(append(m.Data, block...), tx.Data...)
		o.Batch = append(o.Batch, *sentTransaction(tx))
	}
	start := c.recorder.now()
	answer, err := c.request(ctx, m)
	defer func() { c.recorder.add(c.name, start, partition, o) }()
	if err != nil {
		o.Result = failed(err)
		return 0, err
	}
	var r struct {
		reply
		Results []struct {
			reply
			Count int `json:"count"`
		} `json:"results"`
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return 0, err
	}
	if r.Error != nil {
		o.Result = refusedBy(r.Error, &r.HighWaterMark)
		return r.HighWaterMark, nil
	}
	o.Outcome, o.HighWaterMark = judge.OK, &r.HighWaterMark
	for _, run := range r.Results {
		for i := range run.Count {
			if run.Error != nil {
				o.Results = append(o.Results, refusedBy(run.Error, nil))
				continue
			}
			o.Results = append(o.Results, judge.Result{Outcome: judge.OK, Txid: run.Txid + uint64(i), Time: nanoseconds(run.Time) + int64(i), Duplicate: run.Duplicate})
		}
	}
	return r.HighWaterMark, nil
}

// get looks a transaction up.
func (c *client) get(ctx context.Context, partition int, g judge.Get) {
	m := nats.NewMsg(fmt.Sprintf("cantus.get.%d", partition))
	m.Data = fmt.Appendf(nil, `{"txid":%d}`, g.Txid)
	if g.Lock != "" {
		m.Data = fmt.Appendf(nil, `{"lock":%q}`, g.Lock)
	}
	o := &judge.Operation{Get: &g}
	start := c.recorder.now()
	answer, err := c.request(ctx, m)
	switch {
	case err != nil:
		o.Result = failed(err)
	case answer.Header.Get("Nats-Service-Error-Code") != "":
		r, err := decodeReply(answer)
		if err != nil {
			o.Result = failed(err)
			break
		}
		o.Result = refusedBy(r.Error, &r.HighWaterMark)
	default:
		o.Outcome, g.Transaction = judge.OK, storedTransaction(answer)
	}
	c.recorder.add(c.name, start, partition, o)
}

// cursor reads or sets a cursor, and returns its position.
func (c *client) cursor(ctx context.Context, partition int, k judge.Cursor) (uint64, error) {
	m := nats.NewMsg(fmt.Sprintf("cantus.cursor.%d.%s", partition, k.Name))
	if k.Set != nil {
		body := map[string]any{"txid": *k.Set}
		if k.Expected != nil {
			body["expected"] = *k.Expected
		}
		m.Data, _ = json.Marshal(body) // numbers
	}
	o := &judge.Operation{Cursor: &k}
	start := c.recorder.now()
	defer func() { c.recorder.add(c.name, start, partition, o) }()
	answer, err := c.request(ctx, m)
	if err != nil {
		o.Result = failed(err)
		return 0, err
	}
	var r reply
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		o.Result = failed(err)
		return 0, err
	}
	if r.Error != nil {
		o.Result = refusedBy(r.Error, &r.HighWaterMark)
	} else {
		o.Result = judge.Result{Outcome: judge.OK, HighWaterMark: &r.HighWaterMark}
	}
	if o.Txid = r.Txid; r.Time != "" {
		o.Time = nanoseconds(r.Time)
	}
	return r.Txid, nil
}

// trim deletes what is before a txid.
func (c *client) trim(ctx context.Context, partition int, before uint64) (string, error) {
	m := nats.NewMsg(fmt.Sprintf("cantus.admin.trim.%d", partition))
	m.Data = fmt.Appendf(nil, `{"before":%d}`, before)
	o := &judge.Operation{Trim: &judge.Trim{Before: before}}
	start := c.recorder.now()
	defer func() { c.recorder.add(c.name, start, partition, o) }()
	answer, err := c.request(ctx, m)
	if err != nil {
		o.Result = failed(err)
		return "", err
	}
	var r struct {
		Error     *refusal `json:"error"`
		FirstTxid uint64   `json:"first_txid"`
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		o.Result = failed(err)
		return "", err
	}
	if r.Error != nil {
		o.Result = refusedBy(r.Error, nil)
		return "", errors.New(r.Error.Message)
	}
	o.Outcome, o.Trim.FirstTxid = judge.OK, r.FirstTxid
	return fmt.Sprintf("before %d, to begin at %d", before, r.FirstTxid), nil
}

// judgeAlone stops all nodes, reads each node's replicas while it runs alone,
// and has the judge decide.
func (c *cluster) judgeAlone(t *testing.T, partitions int) {
	t.Helper()
	client := c.dial(c.nodes[0].name)
	infos := map[int]partitionInfo{}
	for p := range partitions {
		infos[p] = mustInfo(t, client, p)
		c.awaitMark(client, p, infos[p].HighWaterMark)
	}
	client.nc.Close()
	c.stopAll()
	for _, n := range c.nodes {
		if err := n.launch(); err != nil {
			t.Fatal(err)
		}
		alone := dial(t, n.url, nats.RetryOnFailedConnect(true))
		for p := range partitions {
			log, first := c.readAlone(t, n, alone, p, infos[p].HighWaterMark)
			c.recorder.drained(n.name, p, first, infos[p].Digest, log)
		}
		alone.nc.Close()
		n.kill()
	}
	c.recorder.judge(t)
}

// readAlone reads a replica of a node that runs alone, from its first
// transaction up to a txid.
func (c *cluster) readAlone(t *testing.T, n *node, alone *client, partition int, mark uint64) (log []*nats.Msg, first uint64) {
	t.Helper()
	first = 1
	next := first
	if err := c.until(t.Context(), "drained", func(ctx context.Context) string {
		for next <= mark {
			msgs, end, refused, err := alone.readFrom(ctx, "replica.read", partition, map[string]any{"from": next, "max_bytes": 8 << 20, "max": 65536})
			switch {
			case refused != nil && refused.Reason == "trimmed" && len(log) == 0:
				first, next = refused.FirstTxid, refused.FirstTxid
				continue
			case err != nil || refused != nil:
				return fmt.Sprintf("%v %v", refused, err)
			}
			log, next = append(log, msgs...), end.next
			if len(msgs) == 0 {
				return fmt.Sprintf("at %d, high-water mark %d", next, end.highWaterMark)
			}
		}
		return ""
	}); err != nil {
		t.Fatalf("node %s: %v", n.name, err)
	}
	return log, first
}

package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
)

// MixOptions says what a Mix does.
type MixOptions struct {
	// Partitions is how many there are, from 0 on. Client i uses partition i
	// modulo Partitions.
	Partitions int
	// Seed determines what the clients ask for.
	Seed uint64
	// Clients are the connections. The Mix closes them. Of each partition, every
	// third one reads, and the others append. Six for each partition are enough
	// of both.
	Clients []*Client
	// Pace is the time between two requests of a client. 0 is 10 ms.
	Pace time.Duration
	// MaxPayload is how large a large payload may be. 0 is 64 KiB. Large ones
	// make trim points.
	MaxPayload int
	// Conditions has some transactions commit under a condition.
	Conditions bool
	// Atomic has some transactions sent as atomic batches, and some that have to
	// commit by a time.
	Atomic bool
	// Sessions has some transactions sent in sessions.
	Sessions bool
	// Moves has sessions take cursors over, and move them.
	Moves bool
	// Service says when appends without an outcome are sent again. nil is
	// Backoff.
	Service Service
}

// Mix is clients that ask a cluster for everything that the protocol has,
// recorded, until they are stopped. They expect nothing: the judge decides.
type Mix struct {
	opts     MixOptions
	stop     context.CancelFunc
	running  sync.WaitGroup
	answered atomic.Int64
	marks    []atomic.Uint64 // of each partition, the highest that was seen
}

// StartMix starts the clients. They stop when ctx ends, or with End.
func StartMix(ctx context.Context, o MixOptions) *Mix {
	if o.Pace == 0 {
		o.Pace = 10 * time.Millisecond
	}
	if o.MaxPayload == 0 {
		o.MaxPayload = 64 << 10
	}
	if o.Service == nil {
		o.Service = Backoff{}
	}
	ctx, stop := context.WithCancel(ctx)
	m := &Mix{opts: o, stop: stop, marks: make([]atomic.Uint64, o.Partitions)}
	for i, client := range o.Clients {
		w := &mixed{
			Mix: m, client: client, partition: i % o.Partitions,
			Rand: rand.New(rand.NewPCG(o.Seed, uint64(i))), name: fmt.Sprintf("w%d", i),
		}
		work := w.write
		if i/o.Partitions%3 == 2 {
			work = w.look
		}
		m.running.Go(func() {
			defer w.client.Conn.Close()
			for ctx.Err() == nil {
				work(ctx)
				select {
				case <-time.After(o.Pace):
				case <-ctx.Done():
				}
			}
		})
	}
	return m
}

// End stops the clients, and returns when they have stopped. Their last
// requests may stay without an answer.
func (m *Mix) End() {
	m.stop()
	m.running.Wait()
}

// Answered returns how many requests were answered with a high-water mark or a
// txid so far.
func (m *Mix) Answered() int64 { return m.answered.Load() }

// Mark returns the highest high-water mark or txid of a partition that an
// answer had so far.
func (m *Mix) Mark(partition int) uint64 { return m.marks[partition].Load() }

// saw remembers a high-water mark or a txid.
func (m *Mix) saw(partition int, mark uint64) {
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
	*Mix
	*rand.Rand
	client    *Client
	partition int
	name      string
	count     int
	answered  []*nats.Msg // appends that were answered, of any age
	session   session
}

// request returns an append of a new transaction.
func (w *mixed) request() *nats.Msg {
	w.count++
	id := fmt.Sprintf("%s-%d", w.name, w.count)
	payload := id
	if w.IntN(4) == 0 {
		payload += strings.Repeat("x", w.IntN(w.opts.MaxPayload))
	}
	m := NewAppend(w.partition, payload, "Cantus-Append-Lock", w.lock())
	if w.IntN(8) > 0 {
		m.Header.Set("Nats-Msg-Id", id)
	}
	if w.IntN(3) == 0 {
		m.Header.Set("Cantus-Kind", []string{"pay", "refund"}[w.IntN(2)])
	}
	if w.IntN(2) == 0 {
		mark := w.Mark(w.partition)
		mark -= min(mark, w.Uint64N(20))
		m.Header.Set("Cantus-High-Water-Mark", fmt.Sprint(mark))
		m.Header.Set("Cantus-Write-Lock", w.lock()+","+w.lock())
		m.Header.Set("Cantus-Read-Lock", w.lock())
	}
	if w.opts.Conditions && w.IntN(5) == 0 {
		mark := w.Mark(w.partition)
		m.Header.Set("Cantus-High-Water-Mark", fmt.Sprint(mark-min(mark, w.Uint64N(200))))
		m.Header.Del("Cantus-Read-Lock")
		m.Header.Set("Cantus-Unless", fmt.Sprintf(`{"kinds":["pay"],"locks":[%q,%q]}`, w.lock(), w.lock()))
	}
	if w.opts.Atomic && w.IntN(20) == 0 {
		m.Header.Set("Cantus-Not-After", time.Now().Add(time.Duration(w.IntN(30)-5)*time.Second).UTC().Format(time.RFC3339Nano))
	}
	if w.IntN(20) == 0 {
		m.Header.Set("Nats-Expected-Last-Sequence", fmt.Sprint(w.Mark(w.partition)))
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
	case n == 0 && len(w.answered) > 0:
		m = w.answered[w.IntN(len(w.answered))] // its answer is known
	case n == 1 && w.opts.Atomic && w.IntN(2) == 0:
		w.atomic(ctx)
		return
	case n == 1:
		w.batch(ctx)
		return
	case n == 2 && w.opts.Sessions:
		w.inSession(ctx)
		return
	case m.Header.Get("Nats-Msg-Id") == "": // it can't be sent again
		if r, err := w.client.AppendMsg(ctx, m); err == nil {
			w.saw(w.partition, max(r.Txid, r.HighWaterMark))
		}
		return
	}
	r, _, err := Retry(ctx, w.opts.Service, w.client, func() (Reply, error) { return w.client.AppendMsg(ctx, m) })
	if err == nil {
		w.keep(m)
		w.saw(w.partition, max(r.Txid, r.HighWaterMark))
	}
}

// keep keeps an append that was answered, sometimes in place of another one.
func (w *mixed) keep(m *nats.Msg) {
	if len(w.answered) < 50 {
		w.answered = append(w.answered, m)
		return
	}
	w.answered[w.IntN(len(w.answered))] = m
}

// batch appends several transactions in one message.
func (w *mixed) batch(ctx context.Context) {
	var msgs []*nats.Msg
	for range 1 + w.IntN(8) {
		msgs = append(msgs, w.request())
	}
	if mark, err := w.client.Batch(ctx, w.partition, msgs); err == nil {
		w.saw(w.partition, mark)
	}
}

// atomic appends several transactions that commit together, and sends them
// again if they had no answer.
func (w *mixed) atomic(ctx context.Context) {
	whole := w.request()
	var msgs []*nats.Msg
	for range 1 + w.IntN(6) {
		msgs = append(msgs, w.request())
	}
	if whole.Header.Get("Nats-Msg-Id") == "" {
		if r, err := w.client.Atomic(ctx, w.partition, whole, msgs); err == nil {
			w.saw(w.partition, r.HighWaterMark)
		}
		return
	}
	r, _, err := Retry(ctx, w.opts.Service, w.client, func() (Reply, error) {
		return w.client.Atomic(ctx, w.partition, whole, msgs)
	})
	if err == nil {
		w.saw(w.partition, r.HighWaterMark)
	}
}

// look reads, gets, describes, or uses a cursor.
func (w *mixed) look(ctx context.Context) {
	mark := w.Mark(w.partition)
	back := w.Uint64N(200)
	if w.IntN(2) == 0 {
		back = w.Uint64N(4) // what is newest shows who is behind
	}
	txid := mark - min(mark, back) + w.Uint64N(3)
	switch w.IntN(6) {
	case 0:
		if info, err := w.client.Info(ctx, w.partition); err == nil {
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
		_, _, _, _ = w.client.ReadFrom(ctx, []string{"read", "replica.read"}[w.IntN(2)], w.partition, q)
	case 2:
		w.client.Get(ctx, w.partition, judge.Get{Txid: max(txid, 1)})
	case 3:
		w.client.Get(ctx, w.partition, judge.Get{Lock: w.lock()})
	default:
		w.cursor(ctx, txid)
	}
}

// cursor reads a cursor, or sets it, to a txid for example.
func (w *mixed) cursor(ctx context.Context, txid uint64) {
	c := judge.Cursor{Name: []string{"billing", "audit"}[w.IntN(2)]}
	switch {
	case w.opts.Moves && w.IntN(3) == 0:
		w.disturb(ctx)
		return
	case w.IntN(2) == 0:
		c.Set = &txid
		if w.IntN(2) == 0 {
			was, _ := w.client.Cursor(ctx, w.partition, judge.Cursor{Name: c.Name})
			c.Expected = &was.Txid
		}
	}
	_, _ = w.client.Cursor(ctx, w.partition, c)
}

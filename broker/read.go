package broker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

const (
	// readsAtOnce bounds the requests that the node reads for at a time, those
	// that wait at a log's end included.
	readsAtOnce = 4096
	// readChunk is about how much of an answer is put together before it is
	// sent.
	readChunk = 128 << 10
	// scanBytes bounds the log that one filtered read goes through; the
	// answer says from where to go on.
	scanBytes = 64 << 20
)

// onRead makes a handler that serves each message on a goroutine of its own.
func (p *partition) onRead(ctx context.Context, serve func(context.Context, *message) error) func(*message) {
	return func(m *message) {
		if m.reply == "" {
			return // nobody would see the answer
		}
		n := p.node
		n.intake.RLock()
		defer n.intake.RUnlock()
		if n.deaf {
			n.readSender.send(p.refuseRead(m, p.readError(context.Canceled)))
			return
		}
		if !n.reading.TryAcquire(1) {
			n.readSender.send(p.refuseRead(m, subjects.Errorf(subjects.Busy,
				"the node serves %d reads already: back off and try again", readsAtOnce)))
			return
		}
		n.readers.Go(func() {
			defer n.reading.Release(1)
			began := time.Now()
			defer func() { p.metrics.answered(p.endpoint(m), 1, time.Since(began)) }()
			term := p.term.Load()
			if err := serve(ctx, m); err != nil {
				n.answerRead(p.refuseRead(m, p.sure(term, p.readError(err))))
			}
		})
	}
}

// sure gives a refusal of what was looked up since a term was the partition's. It
// waits for a majority's word on that something is ahead of the log.
func (p *partition) sure(term uint64, refused *subjects.Error) *subjects.Error {
	if refused.Reason == subjects.Ahead && !p.leads(term) {
		return p.unsure()
	}
	return refused
}

// readError gives an error of a read as clients see it.
func (p *partition) readError(err error) *subjects.Error {
	switch {
	case errors.Is(err, context.Canceled):
		return subjects.Errorf(subjects.Unavailable, "this node does not serve partition %d any more: try again", p.id)
	case errors.Is(err, wal.ErrTrimmed):
		first := p.replica.position().first
		e := subjects.Errorf(subjects.Trimmed, "that transaction was trimmed: the oldest kept is %d", first)
		e.FirstTxid = first
		return e
	}
	e := wireError(err)
	if e.Reason == subjects.Internal {
		p.log.Error("read failed", "err", err)
	}
	return e
}

func (p *partition) refuseRead(m *message, e *subjects.Error) []byte {
	p.metrics.refused(p.endpoint(m), e.Reason)
	return appendRefusal(nil, m.reply, e, map[string]any{
		"partition": p.id, "error": e, "high_water_mark": p.replica.position().mark,
	})
}

func (n *Node) answerRead(out []byte) {
	if err := n.reads.send(out); err != nil {
		n.log.Debug("answer not sent", "err", err)
	}
}

// query is a read request, checked and with its defaults.
type query struct {
	from     uint64
	max      int
	maxBytes int
	wait     time.Duration
	kinds    []string
	lock     string
	payload  bool
	packed   bool
}

func parseQuery(body []byte) (query, error) {
	q := query{from: 1, max: subjects.DefaultReadCount, maxBytes: subjects.DefaultReadBytes, payload: true}
	var r struct {
		From        *uint64  `json:"from"`
		Max         *int     `json:"max"`
		MaxBytes    *int     `json:"max_bytes"`
		Wait        *string  `json:"wait"`
		Kinds       []string `json:"kinds"`
		Lock        *string  `json:"lock"`
		HeadersOnly bool     `json:"headers_only"`
		Packed      bool     `json:"packed"`
	}
	if err := strictJSON(body, &r); err != nil {
		return q, err
	}
	bad := func(format string, args ...any) (query, error) {
		return q, subjects.Errorf(subjects.BadRequest, format, args...)
	}
	if r.From != nil {
		if q.from = *r.From; q.from == 0 {
			return bad("from is 0: txids begin at 1")
		}
	}
	if r.Max != nil {
		if q.max = *r.Max; q.max < 1 || q.max > subjects.MaxReadCount {
			return bad("max is %d: 1 to %d is allowed", q.max, subjects.MaxReadCount)
		}
	}
	if r.MaxBytes != nil {
		if q.maxBytes = *r.MaxBytes; q.maxBytes < 1 || q.maxBytes > subjects.MaxReadBytes {
			return bad("max_bytes is %d: 1 to %d is allowed", q.maxBytes, subjects.MaxReadBytes)
		}
	}
	if r.Wait != nil {
		d, err := time.ParseDuration(*r.Wait)
		if err != nil || d < 0 || d > subjects.MaxReadWaitSeconds*time.Second {
			return bad("wait is %q: a duration from 0s to %ds, such as \"5s\", is allowed", *r.Wait, subjects.MaxReadWaitSeconds)
		}
		q.wait = d
	}
	for _, k := range r.Kinds {
		if err := subjects.CheckKind(k); err != nil {
			return q, err
		}
	}
	if r.Lock != nil {
		if err := subjects.CheckLock(*r.Lock); err != nil {
			return q, err
		}
		q.lock = *r.Lock
	}
	q.kinds, q.payload, q.packed = r.Kinds, !r.HeadersOnly, r.Packed
	return q, nil
}

// strictJSON decodes a request's body; an empty one sets nothing. Unknown
// fields and anything behind the object are refused.
func strictJSON(body []byte, v any) error {
	if len(strings.TrimSpace(text(body))) == 0 {
		return nil
	}
	if err := checkFields(text(body)); err != nil {
		return err
	}
	d := json.NewDecoder(strings.NewReader(text(body)))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		err = errors.New("something stands behind the JSON object")
	}
	return subjects.Errorf(subjects.BadRequest, "body: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// checkFields refuses what encoding/json lets pass: a field given twice, and
// one in other letter case than ours, which is small throughout.
func checkFields(body string) error {
	d := json.NewDecoder(strings.NewReader(body))
	seen := map[string]bool{}
	for depth, key := 0, true; ; {
		t, err := d.Token()
		if err != nil {
			return nil // the decoder proper says what is wrong
		}
		switch v := t.(type) {
		case json.Delim:
			if v == '{' || v == '[' {
				depth++
				continue
			}
			if depth--; depth == 0 {
				return nil
			}
			key = true // behind a value
		case string:
			if depth == 1 && key {
				if seen[v] {
					return subjects.Errorf(subjects.BadRequest, "body: field %q is given twice", v)
				}
				if small := strings.ToLower(v); small != v {
					return subjects.Errorf(subjects.BadRequest, "body: unknown field %q: fields are in small letters", v)
				}
				seen[v], key = true, false
				continue
			}
			key = depth == 1 || key
		default:
			key = depth == 1 || key
		}
	}
}

// matches tells whether the query asks for t.
func (q *query) matches(t *wal.Transaction) bool {
	if len(q.kinds) > 0 {
		ok := false
		for _, k := range q.kinds {
			ok = ok || k == string(t.Kind)
		}
		if !ok {
			return false
		}
	}
	if q.lock == "" {
		return true
	}
	for _, l := range t.Locks {
		if l.Mode != wal.ReadLock && subjects.Overlap(q.lock, text(l.Name)) {
			return true
		}
	}
	return false
}

// serveRead answers a read on the leader.
func (p *partition) serveRead(ctx context.Context, m *message) error {
	q, err := parseQuery(m.payload)
	if err != nil {
		return err
	}
	at := p.replica.position()
	if q.from > at.mark+1 {
		return subjects.Errorf(subjects.Ahead,
			"from %d is past the end of partition %d, whose high-water mark is %d: it is of another log, or data was lost", q.from, p.id, at.mark)
	}
	return p.read(ctx, m.reply, q)
}

// serveReplicaRead answers a read from what this replica has: it waits for
// what it does not have yet.
func (p *partition) serveReplicaRead(ctx context.Context, m *message) error {
	q, err := parseQuery(m.payload)
	if err != nil {
		return err
	}
	return p.read(ctx, m.reply, q)
}

// read answers a query: the transactions, then the end.
func (p *partition) read(ctx context.Context, reply string, q query) error {
	r := reading{
		p: p, q: q, reply: reply, next: q.from, enc: encoder{partition: p.id, names: p.node.names},
		pack: packer{subject: reply, most: min(readChunk, p.node.nats.maxPayload())},
	}
	timer := time.NewTimer(q.wait)
	defer timer.Stop()
	for {
		at := p.replica.position()
		if r.next < at.first {
			return wal.ErrTrimmed
		}
		if err := r.scan(at); err != nil {
			return err
		}
		if r.sent > 0 || r.next <= at.mark || q.wait == 0 {
			return r.finish(at.mark)
		}
		select {
		case <-at.changed:
		case <-timer.C:
			return r.finish(p.replica.position().mark)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reading is a read on its way.
type reading struct {
	p     *partition
	q     query
	reply string
	enc   encoder

	next  uint64 // txid that is looked at next
	sent  int
	bytes int // of the transactions sent
	out   []byte
	pack  packer
}

// scan sends what the query asks for between next and the position, as far as
// its limits go. An error after the first transaction was sent only ends the
// answer early: the client reads on from there and then hears of it.
func (r *reading) scan(at position) error {
	if r.next > at.mark {
		return nil
	}
	var t wal.Transaction
	scanned := 0
	for _, b := range r.p.store.Batches(r.next, at.index) {
		if b.Err != nil {
			if r.sent > 0 {
				return nil
			}
			return b.Err
		}
		records := b.Batch.Read()
		records.Skip(int(r.next - b.Batch.First))
		for records.Next(&t) {
			size := len(t.Payload) + len(t.Header)
			if r.q.matches(&t) {
				if r.sent > 0 && r.bytes+size > r.q.maxBytes {
					return nil
				}
				if err := r.add(&t, size); err != nil {
					return err
				}
			}
			r.next = t.Txid + 1
			scanned += size + 64
			if r.sent == r.q.max || scanned > scanBytes {
				return nil
			}
		}
		if err := records.Err(); err != nil || r.next > at.mark {
			return err
		}
	}
	return nil
}

func (r *reading) add(t *wal.Transaction, size int) error {
	r.sent++
	r.bytes += size
	if r.q.packed {
		r.out = r.pack.add(r.out, &r.enc, t, r.q.payload)
	} else {
		r.out = r.enc.append(r.out, r.reply, t, r.q.payload)
	}
	if len(r.out) < readChunk {
		return nil
	}
	err := r.p.node.reads.send(r.out)
	r.out = r.out[:0]
	return err
}

func (r *reading) finish(mark uint64) error {
	r.p.metrics.read(r.sent)
	r.out = r.pack.flush(r.out)
	return r.p.node.reads.send(appendEnd(r.out, r.reply, r.next, mark))
}

// serveGet answers with one transaction.
func (p *partition) serveGet(_ context.Context, m *message) error {
	var g struct {
		Txid *uint64 `json:"txid"`
		Lock *string `json:"lock"`
	}
	if err := smallJSON(m.payload, &g); err != nil {
		return err
	}
	switch {
	case (g.Txid == nil) == (g.Lock == nil):
		return subjects.Errorf(subjects.BadRequest, `body: give either {"txid":812} or {"lock":"account.42"}`)
	case g.Lock != nil:
		return p.getByLock(m.reply, *g.Lock)
	case *g.Txid == 0:
		return subjects.Errorf(subjects.BadRequest, "txid is 0: txids begin at 1")
	}
	return p.get(m.reply, *g.Txid)
}

func (p *partition) getByLock(reply, lock string) error {
	if err := subjects.CheckLock(lock); err != nil {
		return err
	}
	p.replica.mu.Lock()
	txid, exact := p.replica.table.Newest(lock)
	p.replica.mu.Unlock()
	switch {
	case !exact && txid == 0:
		return subjects.Errorf(subjects.NotFound, "no transaction has recorded a lock that overlaps %q", lock)
	case !exact:
		return subjects.Errorf(subjects.NotFound, "no transaction after %d has recorded a lock that overlaps %q; older ones are forgotten", txid, lock)
	}
	return p.get(reply, txid)
}

func (p *partition) get(reply string, txid uint64) error {
	at := p.replica.position()
	switch {
	case txid > at.mark:
		return subjects.Errorf(subjects.Ahead, "txid %d is past the end of partition %d, whose high-water mark is %d", txid, p.id, at.mark)
	case txid < at.first:
		return wal.ErrTrimmed
	}
	var t wal.Transaction
	for _, b := range p.store.Batches(txid, at.index) {
		if b.Err != nil {
			return b.Err
		}
		records := b.Batch.Read()
		records.Skip(int(txid - b.Batch.First))
		if !records.Next(&t) {
			return errors.Join(wal.ErrDamaged, records.Err())
		}
		break
	}
	enc := encoder{partition: p.id, names: p.node.names}
	return p.node.reads.send(enc.append(nil, reply, &t, true))
}

package broker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// TestRandomHistoriesOfACertifier runs a certifier through random histories.
// After each step it compares its table with one that is built anew from what
// was committed and what is in flight: a certified transaction is in the table
// until it is committed or rolled back, and nothing else is.
func TestRandomHistoriesOfACertifier(t *testing.T) {
	tally := map[string]int{}
	const histories = 200
	for seed := range uint64(histories) {
		h := newCertifierHistory(t, seed, tally)
		for range 40 {
			h.step()
			h.check()
		}
	}
	t.Logf("%v", tally)
	for _, what := range []string{
		"certify", "pass", "conflict", "duplicate", "id_reused", "depends", "commit", "foreign", "foreign with batches in flight",
		"wrong_last", "session", "late", "rollback", "rebuild", "advance", "nothing passed",
	} {
		if tally[what] < histories/20 {
			t.Errorf("%q came up %d times only", what, tally[what])
		}
	}
}

type certifierHistory struct {
	t     *testing.T
	seed  uint64
	rand  *rand.Rand
	tally map[string]int
	opts  lockmgr.Options
	clock time.Time
	c     *certifier

	log      []wal.Transaction // committed; txid 1 first
	inFlight []certification   // oldest first
	lost     [][]byte          // batches that were rolled back
	last     int64             // the newest time given
	advanced int64
	term     uint64
}

func newCertifierHistory(t *testing.T, seed uint64, tally map[string]int) *certifierHistory {
	r := rand.New(rand.NewPCG(seed, 1))
	h := &certifierHistory{t: t, seed: seed, rand: r, tally: tally, clock: time.Unix(1000, 0), term: 1}
	h.opts = lockmgr.Options{Locks: 1 + r.IntN(6), IDs: 1 + r.IntN(4), IDWindow: time.Duration(1 + r.IntN(40))}
	h.c = newCertifier(h.opts, func() time.Time {
		h.clock = h.clock.Add(time.Duration(r.IntN(7) - 2)) // it also goes back
		return h.clock
	})
	return h
}

func (h *certifierHistory) fatalf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("seed %d: %s", h.seed, fmt.Sprintf(format, args...))
}

func (h *certifierHistory) step() {
	switch n := h.rand.IntN(100); {
	case n < 45:
		h.certify()
	case n < 72:
		h.commit()
	case n < 78:
		h.record(h.foreign(), "foreign")
	case n < 84:
		h.late()
	case n < 90:
		h.c.rollback()
		h.rolledBack()
		h.tally["rollback"]++
	case n < 94:
		h.rebuild()
	default:
		h.advanced = h.c.table.Time() + h.rand.Int64N(20)
		h.c.advance(h.advanced)
		h.tally["advance"]++
	}
}

// request makes a request as a client sends it, or the head of an atomic batch.
func (h *certifierHistory) request() *request {
	whole := subjects.AppendBlockStart(nil)
	last := uint64(len(h.log))
	for _, b := range h.inFlight {
		last += uint64(len(b.passed))
	}
	mark := last - min(last, uint64(h.rand.IntN(3)))
	whole = subjects.AppendField(whole, subjects.HeaderHighWaterMark, fmt.Sprint(mark))
	if h.rand.IntN(3) == 0 {
		whole = subjects.AppendField(whole, subjects.HeaderMsgID, fmt.Sprint("id", h.rand.IntN(5)))
	} else if h.rand.IntN(2) == 0 {
		whole = subjects.AppendField(whole, subjects.HeaderSession, fmt.Sprint("s", h.rand.IntN(3)))
		whole = subjects.AppendField(whole, subjects.HeaderSessionSeq, fmt.Sprint(1+h.rand.IntN(4)))
	}
	return h.decode(whole, func(block []byte) ([]byte, []byte) {
		names := []string{"a", "b", "a.a", "a.b", "a.>", ">"}
		for _, header := range []string{subjects.HeaderWriteLock, subjects.HeaderReadLock, subjects.HeaderAppendLock} {
			if h.rand.IntN(2) == 0 {
				block = subjects.AppendField(block, header, names[h.rand.IntN(len(names))])
			}
		}
		return block, []byte{byte(h.rand.IntN(2))}
	})
}

// decode decodes a request, or an atomic batch, whose header as a whole is
// given. fields adds to a header block those of one transaction, and returns
// its payload.
func (h *certifierHistory) decode(whole []byte, fields func(block []byte) (header, payload []byte)) *request {
	r := &request{}
	if h.rand.IntN(3) > 0 {
		block, payload := fields(whole)
		if err := r.decode(subjects.AppendBlockEnd(block), payload, 10_000); err != nil {
			h.fatalf("%v", err)
		}
		return r
	}
	var frame []byte
	for range 1 + h.rand.IntN(3) {
		block, payload := fields(subjects.AppendBlockStart(nil))
		frame = appendItem(frame, subjects.AppendBlockEnd(block), payload)
	}
	whole = subjects.AppendField(whole, subjects.HeaderAtomic, "true")
	if _, err := decodeBatchHeader(&natslink.Message{Header: subjects.AppendBlockEnd(whole)}, r); err != nil {
		h.fatalf("%v", err)
	}
	items, err := parseBatch(frame, 10)
	if err == nil {
		err = r.decodeAtomic(items, 10_000, func() *request { return new(request) })
	}
	if err != nil {
		h.fatalf("%v", err)
	}
	return r
}

func appendItem(frame, header, payload []byte) []byte {
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(header)))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(payload)))
	return append(append(frame, header...), payload...)
}

// stored returns the requests of what is stored if r passes.
func (r *request) stored() []*request {
	if r.items == nil {
		return []*request{r}
	}
	return r.items
}

func (h *certifierHistory) certify() {
	rs := make([]*request, h.rand.IntN(4))
	for i := range rs {
		rs[i] = h.request()
	}
	c := h.c.certify(h.term, rs)
	h.tally["certify"]++
	var asked []*request
	for _, r := range rs {
		if !slices.ContainsFunc(c.notPassed, func(j judged) bool { return j.r == r }) {
			asked = append(asked, r.stored()...)
			h.tally[fmt.Sprint("atomic batch of ", len(r.items))]++
		}
	}
	if !slices.Equal(c.passed, asked) {
		h.fatalf("%d passed and %d were refused of %d", len(c.passed), len(c.notPassed), len(rs))
	}
	for _, f := range c.notPassed {
		h.tally[f.verdict.Outcome.String()]++
		if f.verdict.DependsOn > 0 {
			h.tally["depends"]++
		}
	}
	if c.time <= h.last || c.time <= h.advanced {
		h.fatalf("a batch has time %d after %d and %d", c.time, h.last, h.advanced)
	}
	h.last = c.time + int64(len(c.passed))
	if len(c.passed) == 0 {
		if c.data != nil {
			h.fatalf("there is a batch though nothing passed")
		}
		h.tally["nothing passed"]++
		return
	}
	h.tally["pass"] += len(c.passed)
	for _, r := range c.passed {
		if r.tx.SessionSeq > 0 {
			h.tally["session"]++
		}
	}
	h.inFlight = append(h.inFlight, c)
}

// commit commits the oldest batch in flight, as it comes back from the log.
func (h *certifierHistory) commit() {
	if len(h.inFlight) == 0 {
		return
	}
	data := bytes.Clone(h.inFlight[0].data)
	h.inFlight = h.inFlight[1:]
	before := h.c.stats().InFlight
	n := h.apply(data)
	if got := h.c.stats().InFlight; got != before-n {
		h.fatalf("%d transactions are in flight after a batch of %d of %d", got, n, before)
	}
	h.tally["commit"]++
}

// foreign makes a batch that another leader certified.
func (h *certifierHistory) foreign() []byte {
	var w wal.BatchWriter
	at := h.c.table.Time() + 1 + h.rand.Int64N(5)
	w.BeginIn(h.term+1, uint64(len(h.log))+1, at, 0)
	for range 1 + h.rand.IntN(3) {
		for _, r := range h.request().stored() {
			w.Add(&r.tx)
		}
	}
	return w.Finish()
}

// late commits a batch that was rolled back, if it is still in turn.
func (h *certifierHistory) late() {
	if len(h.lost) == 0 {
		return
	}
	data := h.lost[h.rand.IntN(len(h.lost))]
	if b, _ := wal.ParseBatch(data); b.First == uint64(len(h.log))+1 && b.Time > h.c.table.Time() {
		h.record(data, "late")
	}
}

// record commits a batch that is not in flight.
func (h *certifierHistory) record(data []byte, what string) {
	if len(h.inFlight) > 0 {
		h.tally["foreign with batches in flight"]++
	}
	h.rolledBack()
	h.apply(data)
	h.tally[what]++
}

func (h *certifierHistory) rolledBack() {
	for _, b := range h.inFlight {
		h.lost = append(h.lost, b.data)
	}
	h.inFlight = nil
}

// apply applies a batch, and adds its transactions to the log.
func (h *certifierHistory) apply(data []byte) (count int) {
	b, err := wal.ParseBatch(data)
	if err != nil {
		h.fatalf("%v", err)
	}
	records := b.Read()
	for t := (wal.Transaction{}); records.Next(&t); t = (wal.Transaction{}) {
		h.log = append(h.log, t)
	}
	if committed, _, err := h.c.record(data, b); err != nil || committed != uint64(len(h.log)) {
		h.fatalf("%d are committed, want %d: %v", committed, len(h.log), err)
	}
	return b.Count
}

func (h *certifierHistory) rebuild() {
	err := h.c.rebuild(uint64(len(h.log)), h.c.table.Time(), 1, func(older func(*wal.Transaction) bool) error {
		for i := len(h.log) - 1; i >= 0 && older(&h.log[i]); i-- {
		}
		return nil
	})
	if err != nil {
		h.fatalf("%v", err)
	}
	h.rolledBack()
	h.tally["rebuild"]++
}

// check compares the table with one that is built anew.
func (h *certifierHistory) check() {
	h.t.Helper()
	want := lockmgr.New(h.opts)
	for i := range h.log {
		var cert lockmgr.Transaction
		lockTransaction(&h.log[i], &cert)
		want.Record(h.log[i].Txid, h.log[i].Time, &cert)
	}
	want.Advance(h.c.table.Time())
	for _, b := range h.inFlight {
		for i, r := range b.passed {
			cert := r.cert
			checked := cert
			checked.HighWaterMark = want.Last() // the floor may have risen past its own
			checked.Session = lockmgr.ID{}      // the number is that of the whole atomic batch
			if v := want.Check(&checked, b.time+int64(i)); v.Outcome != lockmgr.Pass {
				h.fatalf("txid %d is in flight and does not pass: %+v", b.first+uint64(i), v)
			}
			want.Enter(&cert, b.time+int64(i))
		}
	}
	got, wanted := lockmgr.StateOf(h.c.table), lockmgr.StateOf(want)
	if !got.Equal(wanted, false) {
		h.fatalf("table\n got %+v\nwant %+v", got, wanted)
	}
}

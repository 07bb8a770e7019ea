//go:build !race

package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/internal/sim"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// In the simulation of cursors that move, consumers share a few cursors. Each
// takes one over for a new session, from whoever has it, and has transactions
// move it, several in flight at once. Others set the cursors without an owner,
// and remove them. Nodes stop, lose each other and lead in turn meanwhile, as
// in the simulation of the data path.
//
// The model applies the log's entries to cursors of its own. A committed
// transaction must find the cursor its session's, and where the consumer began
// with what the transaction stands for. So each transaction is consumed exactly
// once, as long as nobody sets the cursor back.
func TestSimulationOfMovingCursors(t *testing.T) {
	sim.Run(t, sim.Config{
		Runs: testkit.Sized[uint64](1, 2, 100), Length: dataSimLength, Spacing: dataSimSpacing, Weights: sim.ReplicaWeights, Package: "broker",
		Nodes: func(uint64) int { return 3 },
		New: func(o sim.Options) sim.Simulation {
			s := newDataSim(o)
			s.consuming = true
			return s
		},
	})
}

const (
	dataSimCursors   = 2
	dataSimConsumers = 4
)

// consume runs the consumers, and those that disturb them, until ctx ends.
func (s *dataSim) consume(ctx context.Context, running *sync.WaitGroup) {
	if !s.consuming {
		return
	}
	for i := range uint64(dataSimConsumers) {
		id := 100 + int(i)
		c := &dataConsumer{dataClient{s: s, id: id, rng: rand.New(rand.NewPCG(s.seed, uint64(id)))}, fmt.Sprint("k", i%dataSimCursors)}
		running.Go(func() { c.run(ctx) })
	}
	c := &dataConsumer{dataClient{s: s, id: 200, rng: rand.New(rand.NewPCG(s.seed, 200))}, ""}
	running.Go(func() { c.disturb(ctx) })
}

// dataConsumer consumes the partition with a cursor.
type dataConsumer struct {
	dataClient
	cursor string
}

func (c *dataConsumer) run(ctx context.Context) {
	for ctx.Err() == nil {
		if at, ok := c.ask(nil); ok && at.Error == nil {
			c.consume(at)
		} else {
			c.node = c.rng.IntN(3)
		}
		time.Sleep(time.Duration(c.rng.Int64N(int64(60 * time.Millisecond))))
	}
}

// consume takes the cursor over where it is, and appends transactions that move
// it. If it is not known whether it was taken over, they are sent all the same:
// they are refused if it was not.
func (c *dataConsumer) consume(at *subjects.CursorReply) {
	c.seq++
	session := fmt.Sprintf("c%d-m%d", c.id, c.seq)
	owner := subjects.SessionOwner(session)
	taken, known := c.ask(&subjects.CursorRequest{Txid: &at.Txid, Expected: &at.Txid, Owner: &owner, ExpectedOwner: &at.Owner})
	if known && taken.Error != nil && final(&subjects.Reply{Error: taken.Error}) && taken.Owner != owner {
		return // somebody else was faster
	}
	isOurs := known && taken.Error == nil
	mark, from := max(at.HighWaterMark, at.Txid), at.Txid
	var open []*dataRequest
	for i := range uint64(1 + c.rng.IntN(5)) {
		to := min(mark, from+1+c.rng.Uint64N(4))
		if to == from {
			break
		}
		r := &dataRequest{session: session, seq: i + 1, id: numberOf(session, i+1), mark: mark, moves: subjects.Move{Cursor: c.cursor, Txid: to}, isOurs: isOurs}
		r.payload = fmt.Sprintf("%d %s", from, r.id)
		if c.rng.IntN(3) == 0 {
			r.locks = []dataLock{{wal.WriteLock, "own." + session}}
		}
		if c.s.atomic() && c.rng.IntN(3) == 0 {
			c.split(r)
		}
		open, from = append(open, r), to
		c.s.judge.begin(r)
	}
	c.sendInOrder(open)
}

// disturb sets cursors where they are, now and then, and makes them nobody's.
// It also removes them, and sets them to where they were a while ago.
func (c *dataConsumer) disturb(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(c.rng.Int64N(int64(150 * time.Millisecond))))
		c.cursor, c.node = fmt.Sprint("k", c.rng.IntN(dataSimCursors)), c.rng.IntN(3)
		at, ok := c.ask(nil)
		if !ok || at.Error != nil || at.Txid == 0 {
			continue
		}
		set := &subjects.CursorRequest{Txid: &at.Txid, Expected: &at.Txid}
		switch c.rng.IntN(6) {
		case 0:
			set.Txid, set.Expected = new(uint64), nil // removes it
		case 1:
			before := at.Txid - min(at.Txid-1, c.rng.Uint64N(3))
			set.Txid, set.Expected = &before, nil
		case 2:
			set.Owner, set.ExpectedOwner = &at.Owner, &at.Owner // changes nothing
			if at.Owner == "" {
				set.Owner = nil
			}
		}
		c.ask(set)
	}
}

// moveAll moves each cursor once more, when nobody else uses it any more: none
// may stay where it is for good.
func (s *dataSim) moveAll(ctx context.Context) {
	for i := range dataSimCursors {
		c := &dataConsumer{dataClient{s: s, id: 300 + i, rng: rand.New(rand.NewPCG(s.seed, 300+uint64(i)))}, fmt.Sprint("k", i)}
		moved := !s.consuming
		for began := time.Now(); !moved && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			if at, ok := c.ask(nil); ok && at.Error == nil {
				moved = at.HighWaterMark == 0 || c.moveOnce(at)
			}
			if c.node = c.rng.IntN(3); time.Since(began) > lastMove {
				s.cluster.Fail("cursor %s could not be moved in %v, when all was healed and nobody else used it", c.cursor, lastMove)
				return
			}
		}
	}
}

// lastMove is how long it may take to move a cursor that nobody else uses.
const lastMove = 20 * time.Second

// moveOnce takes the cursor over where it is, and has one transaction move it.
func (c *dataConsumer) moveOnce(at *subjects.CursorReply) bool {
	c.seq++
	session := fmt.Sprintf("c%d-m%d", c.id, c.seq)
	owner := subjects.SessionOwner(session)
	taken, known := c.ask(&subjects.CursorRequest{Txid: &at.Txid, Expected: &at.Txid, Owner: &owner, ExpectedOwner: &at.Owner})
	if !known || taken.Error != nil {
		return false
	}
	r := &dataRequest{session: session, seq: 1, id: numberOf(session, 1), mark: at.HighWaterMark, moves: subjects.Move{Cursor: c.cursor, Txid: at.HighWaterMark}, isOurs: true}
	r.payload = fmt.Sprintf("%d %s", at.Txid, r.id)
	c.s.judge.begin(r)
	c.sendInOrder([]*dataRequest{r})
	return r.reply != nil && r.reply.Error == nil
}

// ask sends a request to the cursor once, nil to read it, and waits for the
// answer.
func (c *dataConsumer) ask(set *subjects.CursorRequest) (*subjects.CursorReply, bool) {
	n := c.s.node(c.s.cluster.Nodes[c.node].Name)
	if n == nil || !n.p.group.Leading() {
		return nil, false
	}
	var body []byte
	if set != nil {
		body = mustJSON(set)
	}
	b, arrived := c.exchange(time.Duration(c.rng.Int64N(int64(2*time.Millisecond))), time.Duration(100+c.rng.IntN(900))*time.Millisecond, func(reply string) {
		n.p.cursors.onRequest(&natslink.Message{Subject: "cantus.cursor.0." + c.cursor, Reply: reply, Payload: body, Received: time.Now()})
	})
	if !arrived {
		return nil, false
	}
	var r subjects.CursorReply
	if err := json.Unmarshal(b, &r); err != nil {
		c.s.cluster.Fail("cursor %s: %s: %v", c.cursor, b, err)
		return nil, false
	}
	if e := r.Error; e != nil && e.Reason != subjects.WrongLast && final(&subjects.Reply{Error: e}) {
		c.s.cluster.Fail("cursor %s: %s was refused: %v", c.cursor, body, e)
	}
	return &r, true
}

// dataCursors is a model of a partition's cursors: what the entries up to index
// make of them.
type dataCursors struct {
	index   uint64
	now     map[string]cursor
	history map[uint64]string // what they were after each entry
	changes []dataChange
	moved   int
	healed  bool
	after   int // that have moved since all faults were healed
	others  int // transactions since then that have moved none
}

// dataChange is a cursor as it became.
type dataChange struct {
	name   string
	cursor cursor
	at     time.Time
}

func (m *dataCursors) set(name string, c cursor) {
	if m.now[name] = c; c == (cursor{}) {
		delete(m.now, name)
	}
	m.changes = append(m.changes, dataChange{name, c, time.Now()})
}

func textOf(cursors map[string]cursor) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(cursors)) {
		all = append(all, fmt.Sprint(name, cursors[name]))
	}
	return strings.Join(all, " ")
}

// appliedCursors applies an entry to the model, if no replica has applied it
// before, and compares the cursors of a replica that has applied all of some
// entries with those of the model.
func (j *dataJudge) appliedCursors(node string, state *partitionState, entries []raftstore.Committed, results []any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := &j.cursors
	if m.now == nil {
		m.now, m.history = map[string]cursor{}, map[uint64]string{}
	}
	for i, e := range entries {
		b, err := wal.ParseBatch(e.Data)
		if a, ok := results[i].(applied); err != nil || !ok || a.failed {
			return
		} else if e.Index > m.index {
			m.index = e.Index
			if !a.void {
				j.applyCursors(b)
			}
			m.history[e.Index] = textOf(m.now)
		}
	}
	state.mu.Lock()
	got := textOf(state.cursors)
	state.mu.Unlock()
	if last := entries[len(entries)-1].Index; got != m.history[last] {
		j.cluster.Fail("%s has the cursors %s after entry %d, want %s", node, got, last, m.history[last])
	}
}

func (j *dataJudge) applyCursors(b wal.Batch) {
	records, n := b.Read(), int64(0)
	switch b.Kind {
	case wal.Transactions:
		for t := (wal.Transaction{}); records.Next(&t); {
			if t.Cursor != nil {
				j.applyMove(&t)
			} else if j.cursors.healed {
				j.cursors.others++
			}
		}
	case wal.CursorWrites:
		for c := (wal.Cursor{}); records.NextCursor(&c); n++ {
			j.applyWrite(&c, b.Time+n)
		}
	}
}

// applyMove applies a transaction that moves a cursor.
func (j *dataJudge) applyMove(t *wal.Transaction) {
	m, name := &j.cursors, string(t.Cursor)
	was := m.now[name]
	from := uint64(0)
	if _, err := fmt.Sscan(string(t.Payload), &from); err != nil {
		j.cluster.Fail("transaction %d: %q: %v", t.Txid, t.Payload, err)
	}
	switch owner := "session:" + string(t.Session); {
	case was.Owner != owner:
		j.cluster.Fail("transaction %d of session %s moves cursor %s to %d, which is at %d and %q's", t.Txid, t.Session, name, t.CursorTxid, was.Txid, was.Owner)
	case t.CursorTxid >= t.Txid:
		j.cluster.Fail("transaction %d moves cursor %s to %d", t.Txid, name, t.CursorTxid)
	case was.Txid != from:
		j.cluster.Fail("transaction %d stands for what follows %d, and cursor %s is at %d", t.Txid, from, name, was.Txid)
	}
	m.set(name, cursor{t.CursorTxid, max(t.Time, was.Time+1), was.Owner})
	if m.moved++; m.healed {
		m.after++
	}
}

// applyWrite applies a cursor write.
func (j *dataJudge) applyWrite(c *wal.Cursor, at int64) {
	m, name := &j.cursors, string(c.Name)
	was, exists := m.now[name]
	if c.HasExpected && was.Txid != c.Expected || c.HasExpectedOwner && was.Owner != string(c.ExpectedOwner) {
		return
	}
	if !c.HasExpectedOwner && len(c.Owner) > 0 && exists && was.Owner != string(c.Owner) {
		return
	}
	if c.Txid == 0 && !strings.HasPrefix(string(c.Owner), "session:") {
		m.set(name, cursor{})
		return
	}
	m.set(name, cursor{c.Txid, max(at, was.Time+1), string(c.Owner)})
}

// stays reports whether a reply refuses a request because of the cursor that it
// moves: its number was right.
func (r *dataRequest) stays(reply *subjects.Reply) bool {
	e := reply.Error
	return r.moves.Cursor != "" && e != nil && e.Reason == subjects.WrongLast && e.SessionSeq != nil && *e.SessionSeq == r.seq-1
}

// healed notes that all faults are healed.
func (j *dataJudge) healed() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cursors.healed = true
}

// roomy is a disk that is never full.
type roomy struct{}

func (roomy) isTight() bool                               { return false }
func (roomy) isLow() bool                                 { return false }
func (roomy) isFull() bool                                { return false }
func (roomy) reserve() int64                              { return 0 }
func (roomy) hasRoom(string, time.Time) (room, full bool) { return true, false }
func (roomy) setFull(bool)                                {}
func (roomy) takesProposed(int64) bool                    { return true }

// judgeStays checks a refusal of a transaction because its cursor is not its
// session's: it must have been another one's by then if it was taken over.
func (j *dataJudge) judgeStays(r *dataRequest) {
	if !r.isOurs {
		return
	}
	owner, is := subjects.SessionOwner(r.session), false
	for _, c := range j.cursors.changes {
		if c.name != r.moves.Cursor || c.at.After(r.until) {
			continue
		}
		if is = is || c.cursor.Owner == owner; is && c.cursor.Owner != owner {
			return
		}
	}
	j.cluster.Fail("%s was refused because of cursor %s, which was its session's all the time: %v", r.id, r.moves.Cursor, r.reply.Error)
}

// judgeCursors checks that the cursors have moved, also after the faults if
// other transactions were committed then.
func (j *dataJudge) judgeCursors() {
	if m := &j.cursors; m.moved == 0 || m.after == 0 && m.others > 20 {
		j.cluster.Fail("cursors have moved %d times, %d of them since all faults were healed, and then %d other transactions have committed", m.moved, m.after, m.others)
	}
}

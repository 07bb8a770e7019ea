package broker

import (
	"context"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// cursorBatch bounds the writes that go into one entry.
const cursorBatch = 1000

// onCursor queues cursor requests; like onAppend it must not block.
func (p *partition) onCursor(m *natslink.Message) {
	if m.Reply == "" && len(m.Payload) == 0 {
		return // there is nowhere to send the answer
	}
	p.refusals.enqueue(p.cursors, m)
}

// cursorCall is a cursor request that was checked.
type cursorCall struct {
	reply string
	name  string
	write bool
	wal.Cursor
}

func (p *partition) parseCursor(m *natslink.Message) (cursorCall, error) {
	c := cursorCall{reply: m.Reply, name: trailing(m.Subject), write: len(m.Payload) > 0}
	if err := subjects.CheckCursor(c.name); err != nil || !c.write {
		return c, err
	}
	var body subjects.CursorRequest
	if err := smallJSON(m.Payload, &body); err != nil {
		return c, err
	}
	if body.Txid == nil {
		return c, subjects.Errorf(subjects.BadRequest, `body: txid is missing: give the position to set, such as {"txid":812,"expected":800}`)
	}
	c.Cursor = wal.Cursor{Name: []byte(c.name), Txid: *body.Txid}
	if body.Expected != nil {
		c.Expected, c.HasExpected = *body.Expected, true
	}
	return c, p.replica.checkCursor(p.id, c)
}

// checkCursor refuses a position past the high-water mark, and one cursor too many.
func (r *replica) checkCursor(partition int, c cursorCall) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if mark := r.mark.Load(); c.Txid > mark {
		return aheadError("position", c.Txid, partition, mark)
	}
	if _, known := r.cursors[c.name]; !known && c.Txid > 0 && len(r.cursors) >= subjects.MaxCursors {
		return subjects.Errorf(subjects.TooLarge, "the partition has %d cursors already: set unused ones to 0, which removes them", subjects.MaxCursors)
	}
	return nil
}

// writeCursors answers cursor requests as the leader in a term, until ctx ends. Writes
// that wait are committed in one entry together.
func (p *partition) writeCursors(ctx context.Context, term uint64) {
	for p.cursors.wait(ctx) {
		calls := make([]cursorCall, 0, cursorBatch)
		for _, m := range p.cursors.take(cursorBatch, batchBytes) {
			c, err := p.parseCursor(m)
			if err != nil {
				p.requests.answer(p.refuseCursor(c, p.requests.confirmRefusal(term, p.requests.wireError(err))))
				continue
			}
			calls = append(calls, c)
		}
		p.serveCursors(ctx, term, calls)
	}
}

func (p *partition) serveCursors(ctx context.Context, term uint64, calls []cursorCall) {
	began := time.Now()
	results, err := p.commitCursors(calls)
	readErr := err
	if results == nil {
		readErr = p.group.VerifyLeader(ctx, term) // reads must be the latest; a commit proves it too
	}
	var out []byte
	for _, c := range calls {
		switch {
		case c.write && err != nil:
			out = append(out, p.refuseCursor(c, p.requests.wireError(err))...)
		case !c.write && readErr != nil:
			out = append(out, p.refuseCursor(c, p.requests.wireError(readErr))...)
		case !c.write:
			out = p.appendCursor(out, c, p.replica.cursor(c.name), nil)
		default:
			r := results[0]
			results = results[1:]
			var refused *subjects.Error
			if !r.done {
				refused = subjects.Errorf(subjects.WrongLast, "cursor %q stands at %d, not at %d", c.name, r.Txid, c.Expected)
			}
			out = p.appendCursor(out, c, r.cursor, refused)
		}
	}
	p.metrics.answered("cursor", len(calls), time.Since(began))
	p.requests.answer(out)
}

// commitCursors commits the writes among calls and returns their results.
func (p *partition) commitCursors(calls []cursorCall) ([]cursorResult, error) {
	var w wal.BatchWriter
	w.Begin(wal.CursorWrites, p.replica.position().mark, p.host.now().UnixNano(), 0)
	for _, c := range calls {
		if c.write {
			w.AddCursor(c.Cursor)
		}
	}
	if w.Count() == 0 {
		return nil, nil
	}
	if err := p.gate.fullError(); err != nil {
		return nil, err
	}
	a, err := p.gate.outcome(p.group.Propose(w.Finish()))
	if err != nil {
		return nil, err
	}
	if a.failed {
		return nil, raftstore.ErrUnknown // it is in the log
	}
	return a.cursors, nil
}

func (r *replica) cursor(name string) cursor {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cursors[name]
}

func (p *partition) refuseCursor(c cursorCall, e *subjects.Error) []byte {
	return p.appendCursor(nil, c, p.replica.cursor(c.name), e)
}

func (p *partition) appendCursor(out []byte, c cursorCall, at cursor, refused *subjects.Error) []byte {
	if refused != nil {
		p.metrics.refused("cursor", refused.Reason)
	}
	if c.reply == "" {
		if refused == nil {
			return out
		}
		return append(out, p.refusals.advisory("cursor", nil, refused)...)
	}
	body := subjects.CursorReply{
		Partition: p.id, Name: c.name, Txid: at.Txid, HighWaterMark: p.replica.position().mark, Error: refused,
	}
	if at.Time != 0 {
		body.Time = time.Unix(0, at.Time).UTC()
	}
	if refused != nil {
		return appendRefusal(out, c.reply, refused, body)
	}
	return natslink.AppendPub(out, c.reply, mustJSON(body))
}

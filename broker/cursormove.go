package broker

import (
	"bytes"
	"errors"
	"slices"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// cursorOrder decides whether transactions may move cursors.
//
// A transaction moves a cursor only if the cursor is its session's, and it is
// certified before that can be seen: what lies before it in the log may give
// the cursor to another session, and a transaction that has passed must commit
// as a whole. Only cursor writes change whose a cursor is, and the same leader
// proposes them. So it suffices to know them:
//
//   - From the decision on a batch that moves cursors until the batch is
//     proposed, no cursor write is proposed, and the other way round: proposing
//     is held. So of a cursor write and a transaction that are in flight, the
//     decision on the transaction knows whether the write comes first.
//   - A cursor write is in partitionState.writing from before it is proposed
//     until it is applied. If one of a cursor comes first, the transaction is
//     refused as unavailable, and sent again. What the write leaves is known
//     when it is applied, and not before.
//   - A cursor write that comes later is decided when it is applied, as all
//     are, and finds the cursor where the transaction has left it.
//
// When a tenure begins, nothing is in flight: writes that never came are
// forgotten. The lock order is proposing, then partitionState.mu.
type cursorOrder struct {
	state     *partitionState
	proposing chan struct{} // of capacity 1, and full while it is held: raft may block for long
}

func newCursorOrder(state *partitionState) *cursorOrder {
	return &cursorOrder{state, make(chan struct{}, 1)}
}

// hold waits until proposing is held. release releases it.
func (o *cursorOrder) hold()    { o.proposing <- struct{}{} }
func (o *cursorOrder) release() { <-o.proposing }

// cursorEntry is an entry of cursor writes in flight, which its bytes identify.
type cursorEntry struct {
	data  []byte
	names []string
}

// cursorMove is a cursor that moves with a transaction.
type cursorMove struct {
	name, owner string
	txid        uint64
	time        int64 // of the transaction
}

// addMove adds the cursor that a transaction moves to moves.
func addMove(moves []cursorMove, t *wal.Transaction, at int64) []cursorMove {
	if len(t.Cursor) == 0 {
		return moves
	}
	return append(moves, cursorMove{string(t.Cursor), subjects.SessionOwner(string(t.Session)), t.CursorTxid, at})
}

// check notes for each request that moves a cursor why it may not, if so.
// proposing is held.
func (o *cursorOrder) check(rs []*request, partition int) {
	s := o.state
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rs {
		if len(r.tx.Cursor) > 0 {
			r.stays = s.staysWhere(r, partition)
		}
	}
}

// staysWhere returns why a request may not move its cursor, nil if it may. mu
// is held.
func (s *partitionState) staysWhere(r *request, partition int) *subjects.Error {
	name, session := string(r.tx.Cursor), string(r.tx.Session)
	inFlight := func(e cursorEntry) bool { return slices.Contains(e.names, name) }
	before := r.tx.SessionSeq - 1 // its number is the next one, or this is not its refusal
	wrong := func(format string, args ...any) *subjects.Error {
		e := subjects.Errorf(subjects.WrongLast, format, args...)
		e.SessionSeq = &before
		return e
	}
	at, known := s.cursors[name]
	switch owner := subjects.SessionOwner(session); {
	case r.tx.CursorTxid > s.mark.Load():
		return s.beyond("cursor position", r.tx.CursorTxid, partition)
	case slices.ContainsFunc(s.writing, inFlight):
		return subjects.Errorf(subjects.Unavailable, "cursor %q is being set: nothing was done, send it again", name)
	case !known:
		return wrong(`there is no cursor %q: give it to the session first, by "owner":%q`, name, owner)
	case at.Owner == "":
		return wrong(`cursor %q stands at %d and has no owner: give it to the session first, by "owner":%q,"expected_owner":""`, name, at.Txid, owner)
	case at.Owner != owner:
		return wrong(`cursor %q stands at %d and is %s's, not the session's: whoever reads for it now goes on; to take it give "owner":%q,"expected_owner":%q`, name, at.Txid, at.Owner, owner, at.Owner)
	}
	return nil
}

// beyond refuses a position past the high-water mark. A follower may have shown
// the transaction there before this leader applies it.
func (s *partitionState) beyond(what string, txid uint64, partition int) *subjects.Error {
	if txid <= s.certifier.last() {
		return subjects.Errorf(subjects.Unavailable, "%s %d: that transaction is not applied here yet: nothing was done, send it again", what, txid)
	}
	return aheadError(what, txid, partition, s.mark.Load())
}

// stays refuses a request that has passed but for the cursor that it moves. The
// refusal says that the transaction before it in its session was accepted. mu
// is held.
func (c *certifier) stays(j judged) judged {
	j.stays, j.verdict = j.r.stays, lockmgr.Verdict{Outcome: lockmgr.WrongLast}
	if last := c.table.Last(); last > c.table.Committed() {
		j.verdict.DependsOn = last
	}
	return j
}

// moveCursor moves a cursor with the transaction that is applied. In a log that
// is restored it stays: cursors come there on their own, and have no owners. mu
// is held.
func (s *partitionState) moveCursor(m cursorMove) {
	now := s.cursors[m.name]
	owned := now.Owner == m.owner
	invariant.CursorMoves.Check(owned || s.isRestoring(), m.txid, now.Txid)
	if owned {
		s.cursors[m.name] = cursor{m.txid, max(m.time, now.Time+1), now.Owner}
		s.dirty[m.name] = true
	}
}

// keepsCursor reports whether a cursor exists after a write. A session needs
// one to move even before it has read anything.
func keepsCursor(c wal.Cursor) bool { return c.Txid > 0 || c.Kept }

// write proposes an entry of cursor writes.
func (o *cursorOrder) write(data []byte, names []string, propose func(data []byte) proposal) proposal {
	o.hold()
	defer o.release()
	o.state.mu.Lock()
	o.state.writing = append(o.state.writing, cursorEntry{data, names})
	o.state.mu.Unlock()
	return cursorProposal{o, data, propose(data)}
}

// cursorProposal is a proposed entry of cursor writes.
type cursorProposal struct {
	order *cursorOrder
	data  []byte
	proposal
}

// Wait implements proposal. One that was not appended is no longer in flight.
// One whose outcome is unknown is until it is applied, or another tenure
// begins.
func (p cursorProposal) Wait() (any, error) {
	result, err := p.proposal.Wait()
	if errors.Is(err, raftstore.ErrNotLeader) || errors.Is(err, raftstore.ErrClosed) || errors.Is(err, wal.ErrNoSpace) {
		p.order.notWritten(p.data)
	}
	return result, err
}

// endWrite notes that an entry of cursor writes is applied, or never will be.
// mu is held.
func (s *partitionState) endWrite(data []byte) {
	same := func(e cursorEntry) bool { return bytes.Equal(e.data, data) }
	if i := slices.IndexFunc(s.writing, same); i >= 0 {
		s.writing = slices.Delete(s.writing, i, i+1)
	}
}

// notWritten notes that an entry of cursor writes was not appended.
func (o *cursorOrder) notWritten(data []byte) {
	o.state.mu.Lock()
	defer o.state.mu.Unlock()
	o.state.endWrite(data)
}

// begin forgets the writes that an earlier tenure has proposed: all that came
// of them is applied.
func (o *cursorOrder) begin() {
	o.state.mu.Lock()
	defer o.state.mu.Unlock()
	o.state.writing = nil
}

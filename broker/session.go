package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

const (
	// batchCount and batchBytes bound a batch. A lone transaction may be
	// larger.
	batchCount = 4096
	batchBytes = 1 << 20
	// flightDepth is how many batches of a partition may be in flight: one
	// being synced, one waiting behind it, one being answered.
	flightDepth = 3
)

// session is one unbroken time of leading a partition. Its sequencer
// certifies and proposes; its settler answers and its publisher feeds, in the same
// order.
type session struct {
	p         *partition
	term      uint64 // in which this node leads
	end       func(error)
	flights   chan *flight // from the sequencer to the settler
	committed chan *flight // from the settler to the publisher, if somebody follows
	packed    string       // where packed messages are fed
	direct    string       // where appends come without a key
	enc       encoder
	writer    wal.BatchWriter

	// owned by the settler
	broken error // the failure that ended the session
}

// flight is a batch from certification to its answers, and the refusals that
// rest on it or on batches ahead of it.
type flight struct {
	proposal raftstore.Proposal
	proposed bool
	data     []byte
	rolled   int    // the replica's, when it was certified
	first    uint64 // txid
	time     int64  // of the first
	roster   *roster
	passed   []*request
	rest     []grounded
	came     time.Time // the oldest message
	began    time.Time
	given    time.Time // to raft
	applied  applied
	land     func() // gives the node's place for a flight back
	singles  int    // messages that carried one transaction
	batches  int    // and many

	users atomic.Int32 // of the roster: settler and publisher
}

// release says that one of the users is through with the flight.
func (f *flight) release() {
	if f.users.Add(-1) == 0 {
		f.roster.free()
	}
}

// number gives the transactions their txids and times.
func (f *flight) number() {
	for i, r := range f.passed {
		r.tx.Txid, r.tx.Time = f.first+uint64(i), f.time+int64(i)
	}
}

// grounded is an outcome that is not the request's own commit. Unless firm, it
// rests on transactions in flight, and holds only if those commit.
type grounded struct {
	r       *request
	outcome outcome
	firm    bool
}

func newSession(p *partition, term uint64, end func(error)) *session {
	return &session{
		p: p, term: term, end: end, flights: make(chan *flight, flightDepth), committed: make(chan *flight, flightDepth),
		packed: p.node.names.PackedFeed(p.id), direct: p.node.names.Append(p.id), enc: encoder{partition: p.id, names: p.node.names},
	}
}

// sequence certifies and proposes what is queued, batch by batch, until ctx
// ends. While batches are in flight requests gather until there are as
// many again, and the next batch takes them all; alone, a request leaves at once.
func (s *session) sequence(ctx context.Context) {
	defer close(s.flights)
	for s.p.queue.wait(ctx) {
		if s.p.node.flying.Acquire(ctx, 1) != nil {
			return
		}
		ms := s.p.queue.take(batchCount, batchBytes)
		bytes := cost(ms)
		s.p.queue.fly(bytes)
		f := s.fly(ms)
		place := s.p.node.place()
		f.land = func() {
			place()
			s.p.queue.fly(-bytes)
		}
		select {
		case s.flights <- f: // also the bound on the partition's own flights
		case <-ctx.Done():
			s.flights <- f // the settler goes on until all are settled
		}
	}
}

// slowFlight is how long a batch counts as one of the node's in flight. One
// that takes longer waits for the partition's followers, and must not hold up
// other partitions.
const slowFlight = 50 * time.Millisecond

// place gives what returns the place in flight that was acquired; after a time
// it returns by itself.
func (n *Node) place() (land func()) {
	release := sync.OnceFunc(func() { n.flying.Release(1) })
	timer := time.AfterFunc(slowFlight, release)
	return func() {
		timer.Stop()
		release()
	}
}

// fly certifies messages and proposes those that pass as one batch.
func (s *session) fly(ms []*natslink.Message) *flight {
	f := &flight{began: time.Now(), came: ms[0].Received, roster: newRoster()}
	rs := make([]*request, 0, len(ms))
	for _, m := range ms {
		rs = s.decode(f, rs, m)
	}
	if why := s.p.fullError(); why != nil {
		s.refuseFull(f, rs, why)
		return f
	}
	s.certify(f, rs)
	if s.writer.Count() > 0 {
		f.data = s.writer.Finish()
		s.p.replica.propose(f.data, len(f.passed), f.rolled)
		f.given = time.Now()
		f.proposal, f.proposed = s.p.group.Propose(f.data), true
	}
	return f
}

// refuseFull refuses what can't be stored for want of room. What was stored
// before is answered as ever.
func (s *session) refuseFull(f *flight, rs []*request, why error) {
	e := wireError(why)
	rep := s.p.replica
	rep.mu.Lock()
	defer rep.mu.Unlock()
	for _, r := range rs {
		g := grounded{r, outcome{err: e}, true}
		if v := rep.table.Repeat(&r.cert, time.Now().UnixNano()); v.Outcome != lockmgr.Pass {
			g = grounded{r, s.refusal(r, v), v.Ground == 0}
		}
		f.rest = append(f.rest, g)
	}
}

// decode adds a message's transactions to rs; those that are malformed go to
// the flight's refusals.
func (s *session) decode(f *flight, rs []*request, m *natslink.Message) []*request {
	limit := s.p.node.nats.maxTransaction()
	if !s.p.isBatch(m) {
		f.singles++
		r := f.roster.add(m.Reply)
		err := s.checkKey(m)
		if err == nil {
			err = r.decode(m.Header, m.Payload, limit)
		}
		if err != nil {
			f.rest = append(f.rest, grounded{r, outcome{err: err}, true})
			return rs
		}
		return append(rs, r)
	}
	f.batches++
	items, err := cutBatch(m, s.p.node.nats.maxBatch())
	if err != nil {
		f.rest = append(f.rest, grounded{f.roster.add(m.Reply), outcome{err: err}, true})
		return rs
	}
	rs = slices.Grow(rs, items.count)
	call := &batchCall{reply: m.Reply, left: items.count, outcomes: make([]outcome, items.count)}
	for i := range items.count {
		r := f.roster.add(m.Reply)
		r.batch, r.index = call, i
		header, payload := items.next()
		if err := r.decode(header, payload, limit); err != nil {
			f.rest = append(f.rest, grounded{r, outcome{err: err}, true})
			continue
		}
		rs = append(rs, r)
	}
	return rs
}

// checkKey refuses an append by key whose key leads to another partition: a
// client that may publish it may choose the key, not the partition.
func (s *session) checkKey(m *natslink.Message) *subjects.Error {
	if len(m.Subject) == len(s.direct) {
		return nil
	}
	key := trailing(m.Subject)
	if p := subjects.PartitionOf(key, s.p.node.Partitions()); p != s.p.id {
		shown := clip([]byte(key))
		return subjects.Errorf(subjects.BadRequest, "key %q leads to partition %d, not %d: append to %s",
			shown, p, s.p.id, s.p.node.names.AppendKey(shown))
	}
	return nil
}

func (p *partition) isBatch(m *natslink.Message) bool {
	verb := len(p.node.names.Prefix) + 1
	return len(m.Subject) > verb && m.Subject[verb] == 'b'
}

// certify decides on each request in turn and puts those that pass into the
// batch.
func (s *session) certify(f *flight, rs []*request) {
	rep := s.p.replica
	rep.mu.Lock()
	defer rep.mu.Unlock()
	// Time never goes back: not behind what is applied, nor behind what is in
	// flight.
	f.time = max(time.Now().UnixNano(), rep.time+1, s.p.stamped+1)
	f.first, f.rolled = rep.table.Last()+1, rep.rolled
	s.writer.BeginIn(s.term, f.first, f.time, batchSize(rs))
	for _, r := range rs {
		v := rep.table.Certify(&r.cert, f.time+int64(s.writer.Count()))
		if v.Outcome == lockmgr.Pass {
			s.writer.Add(&r.tx)
			f.passed = append(f.passed, r)
			continue
		}
		f.rest = append(f.rest, grounded{r, s.refusal(r, v), v.Ground == 0})
	}
	s.p.stamped = f.time + int64(s.writer.Count())
}

func batchSize(rs []*request) int {
	n := 64
	for _, r := range rs {
		n += len(r.tx.Payload) + len(r.tx.Header) + len(r.tx.MsgID) + 64
		for _, l := range r.tx.Locks {
			n += len(l.Name) + 3
		}
	}
	return n
}

// refusal puts a verdict into a client's words. The replica's mu is held.
func (s *session) refusal(r *request, v lockmgr.Verdict) outcome {
	switch v.Outcome {
	case lockmgr.Duplicate:
		return outcome{txid: v.Txid, time: v.Time, duplicate: true}
	case lockmgr.IDReused:
		e := subjects.Errorf(subjects.IDReused, "message id %q stands for another payload, of txid %d: use a new id", clip(r.tx.MsgID), v.Txid)
		e.Txid = v.Txid
		return outcome{err: e}
	case lockmgr.Ahead:
		return outcome{err: aheadError("high-water mark", r.cert.HighWaterMark, s.p.id, s.p.replica.table.Last())}
	case lockmgr.WrongLast:
		return outcome{err: subjects.Errorf(subjects.WrongLast,
			"expected last sequence %d is not the high-water mark", r.cert.ExpectedLast)}
	}
	return outcome{err: conflict(v.Conflicts, r.cert.HighWaterMark)}
}

// conflict puts violated locks into a client's words, the newest first.
func conflict(violated []lockmgr.Conflict, mark uint64) *subjects.Error {
	newest := violated[0]
	how := fmt.Sprintf("was recorded by txid %d", newest.Txid)
	if newest.Forgotten {
		how = fmt.Sprintf("is not remembered and counts as recorded at the floor, txid %d", newest.Txid)
	}
	e := subjects.Errorf(subjects.Conflict, "%s lock %q %s, after high-water mark %d: apply up to %d, recompute and send again",
		newest.Mode, newest.Name, how, mark, newest.Txid)
	e.Lock, e.Txid = newest.Name, newest.Txid
	e.Conflicts = make([]subjects.ConflictingLock, len(violated))
	for i, c := range violated {
		e.Conflicts[i] = subjects.ConflictingLock{Lock: c.Name, Mode: c.Mode.String(), Txid: c.Txid, Forgotten: c.Forgotten}
	}
	return e
}

// settle answers flights in order, each when its outcome is known. What is
// committed goes to the publisher before that, so that a follower has a transaction
// about when its writer has the answer. A publisher that has its fill gets it after
// the answers.
func (s *session) settle() {
	defer close(s.committed)
	for f := range s.flights {
		err := s.await(f)
		f.land()
		if err != nil && s.broken == nil {
			s.broken = err
			s.end(err)
		}
		f.users.Store(1)
		publish := err == nil && f.proposed && s.followed(f)
		if publish {
			f.users.Add(1)
			select {
			case s.committed <- f:
				publish = false
				runtime.Gosched() // with no processor idle the publisher would come after the answers
			default:
			}
		}
		s.answer(f, err)
		if err == nil && f.proposed {
			s.p.node.metrics.stages.observe(f, time.Now())
		}
		s.p.metrics.answered("append", f.singles, time.Since(f.began))
		s.p.metrics.answered("batch", f.batches, time.Since(f.began))
		if f.proposed {
			s.p.replica.settled(f.data)
		}
		if publish {
			s.committed <- f
		}
		f.release()
	}
}

// errVoid is how a batch fails that came out of turn.
var errVoid = errors.New("broker: batch is void")

func (s *session) await(f *flight) error {
	if !f.proposed {
		return nil
	}
	result, err := f.proposal.Wait()
	if err != nil {
		return err
	}
	a := result.(applied)
	switch f.applied = a; {
	case a.failed:
		return raftstore.ErrUnknown // it is in the log
	case a.void:
		return errVoid
	}
	s.p.metrics.committed(len(f.passed), len(f.data), time.Since(f.began))
	return nil
}

// answer sends the flight's answers.
func (s *session) answer(f *flight, err error) {
	mark := s.p.replica.position().mark
	s.verify(f, mark)
	out := make([]byte, 0, 160*f.singles+1024*f.batches)
	failed := outcome{err: wireError(err)}
	if errors.Is(err, errVoid) {
		failed.err = subjects.Errorf(subjects.Unavailable, "the leader changed: nothing was done, try again")
	}
	for i, r := range f.passed {
		o := outcome{txid: f.first + uint64(i), time: f.time + int64(i)}
		if err != nil {
			o = failed
		}
		out = s.tell(out, r, o, mark)
	}
	for _, g := range f.rest {
		o := g.outcome
		if !g.firm && s.broken != nil {
			o = outcome{err: subjects.Errorf(subjects.Unavailable, "it was refused because of a transaction that did not commit: nothing was done, try again")}
		}
		out = s.tell(out, g.r, o, mark)
	}
	if err := s.p.node.appends.Send(out); err != nil {
		s.p.log.Debug("answers not sent", "err", err)
	}
}

// verify takes back that requests are ahead of the log, or expect an end that it
// has not come to, where that is not sure: another leader may have got further.
func (s *session) verify(f *flight, mark uint64) {
	sure := sync.OnceValue(func() bool { return s.broken == nil && s.p.leads(s.term) })
	for i := range f.rest {
		g := &f.rest[i]
		if g.outcome.err == nil {
			continue
		}
		reason := g.outcome.err.Reason
		further := reason == subjects.Ahead || reason == subjects.WrongLast && g.r.cert.ExpectedLast > mark
		if further && !sure() {
			g.outcome = outcome{err: s.p.unsure()}
		}
	}
}

// tell appends the answer to one request, or keeps it until its batch
// message's other transactions have theirs.
func (s *session) tell(out []byte, r *request, o outcome, mark uint64) []byte {
	endpoint, room := "append", s.p.node.nats.maxPayload()
	if c := r.batch; c != nil {
		endpoint = "batch"
		c.outcomes[r.index] = o
		if c.left--; c.left == 0 && c.reply != "" {
			out = appendBatchReply(out, c, s.p.id, mark, room)
		}
	}
	if o.err != nil {
		s.p.metrics.refused(endpoint, o.err.Reason)
	}
	switch {
	case r.reply == "" && o.err != nil:
		return append(out, s.p.adviseRefused(endpoint, r.tx.MsgID, o.err)...)
	case r.reply == "" || r.batch != nil:
		return out
	}
	return appendReply(out, r.reply, s.p.id, o, mark, room)
}

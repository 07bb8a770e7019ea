//go:build !race

package broker

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// sessions reports whether some messages of this run are in sessions.
func (s *dataSim) sessions() bool {
	return s.seed%9 == 4 || s.seed%9 == 5 || s.conditional()
}

// numberOf returns the id that a number in a session is known by here.
func numberOf(session string, seq uint64) string { return fmt.Sprint(session, "/", seq) }

// appendID appends the message id, or the session and its number.
func (r *dataRequest) appendID(block []byte) []byte {
	if r.session == "" {
		return subjects.AppendField(block, subjects.HeaderMsgID, r.id)
	}
	block = subjects.AppendField(block, subjects.HeaderSession, r.session)
	return subjects.AppendField(block, subjects.HeaderSessionSeq, strconv.FormatUint(r.seq, 10))
}

// pipeline sends some messages in a session, without waiting for answers in
// between, and sends all that have none again, in order.
func (c *dataClient) pipeline() {
	c.seq++
	name := fmt.Sprintf("c%d-s%d", c.id, c.seq)
	mark := c.mark
	var open []*dataRequest
	for i := range uint64(1 + c.rng.IntN(6)) {
		r := c.request() // all are computed on one state, and on those before
		r.session, r.seq, r.id = name, i+1, numberOf(name, i+1)
		if r.mark = mark; c.rng.IntN(4) == 0 {
			r.mark -= min(mark, c.rng.Uint64N(6)) // as a writer that has not noticed what it applied
		}
		r.locks = append(r.locks, dataLock{wal.WriteLock, "own." + name})
		for i := range r.parts {
			r.parts[i].locks = append(r.parts[i].locks, dataLock{wal.WriteLock, "own." + name})
		}
		if r.parts != nil {
			r.locks = nil
		}
		for i := range r.unless {
			r.unless[i].besides = name
		}
		c.s.judge.begin(r)
		open = append(open, r)
	}
	c.sendInOrder(open)
}

// sendInOrder sends the messages of a session, and all that have no answers
// again.
func (c *dataClient) sendInOrder(open []*dataRequest) {
	over, accepted := false, uint64(0) // one was refused for good; those before it
	for began := time.Now(); len(open) > 0 && time.Since(began) < dataSimGiveUp; {
		replies := c.sendAll(open)
		for i, r := range open {
			if replies[i] != nil {
				c.judgeNumber(r, replies[i], accepted)
			}
		}
		for i, r := range open {
			reply := replies[i]
			if reply == nil || !final(reply) || !over && reply.Error != nil && reply.Error.Reason == subjects.WrongLast && !r.stays(reply) {
				open = open[i:]
				break
			}
			c.learn(reply)
			if over = over || reply.Error != nil; !over {
				accepted = r.seq
			}
			c.s.judge.end(r, reply)
			if i == len(open)-1 {
				open = nil
				break
			}
		}
		c.node = c.rng.IntN(3)
		time.Sleep(time.Duration(c.rng.Int64N(int64(40 * time.Millisecond))))
	}
	for range open {
		c.s.judge.abandon()
	}
}

// judgeNumber checks what a refusal says of a session whose numbers up to
// accepted were accepted before the message was sent. A number may be too early
// for the node that it arrives at. But a node that does not lead any more must
// not refuse it, and none forgets a session within the time of message ids.
func (c *dataClient) judgeNumber(r *dataRequest, reply *subjects.Reply, accepted uint64) {
	e := reply.Error
	switch {
	case e == nil || e.Reason != subjects.WrongLast:
	case e.SessionSeq == nil && accepted > 0:
		c.s.cluster.Fail("%s was refused because its session is not known, and number %d was accepted", r.id, accepted)
	case e.SessionSeq == nil, r.stays(reply):
	case *e.SessionSeq < accepted || *e.SessionSeq >= r.seq-1:
		c.s.cluster.Fail("%s was refused, the last number is said to be %d, and %d was accepted before", r.id, *e.SessionSeq, accepted)
	}
}

// lateNumber makes a message one of a session that others use, with a number
// that is far too high, and returns a number that was accepted.
func (c *dataClient) lateNumber(r *dataRequest) (accepted uint64) {
	j := c.s.judge
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.session == "" || c.s.consuming || c.rng.IntN(2) == 0 { // consumers' sessions are short: a clock that jumps ends them
		return 0
	}
	r.session, r.seq, r.first = j.session, 1_000_000*uint64(c.node+1)+uint64(c.seq), false
	r.id = numberOf(r.session, r.seq)
	return j.accepted
}

// sendAll sends messages to a node, in order, and waits for the replies. One is
// nil if it did not come.
func (c *dataClient) sendAll(open []*dataRequest) []*subjects.Reply {
	replies := make([]*subjects.Reply, len(open))
	n := c.s.node(c.s.cluster.Nodes[c.node].Name)
	if n == nil || !n.p.group.Leading() {
		return replies
	}
	patience := time.Duration(100+c.rng.IntN(900)) * time.Millisecond
	var waiting sync.WaitGroup
	for i, r := range open {
		waiting.Go(func() {
			if reply, answered := c.sendTo(n, r, time.Duration(i)*time.Microsecond, patience); answered {
				replies[i] = reply
			}
		})
	}
	waiting.Wait()
	return replies
}

// newestBesides returns the newest of some transactions that is not of a
// session, 0 if there is none.
func (j *dataJudge) newestBesides(session string, all []uint64) uint64 {
	for i := len(all) - 1; i >= 0; i-- {
		if session == "" || j.log[all[i]-1].session != session {
			return all[i]
		}
	}
	return 0
}

// isCertain reports whether a conflict justifies a refusal: the lock is known,
// the log was trimmed, or a transaction after the request's mark, and not of
// its session, has recorded it. One that was found in the log counts as
// forgotten, too, if the table has forgotten more by then: a newer one may have
// recorded it.
func (j *dataJudge) isCertain(r *dataRequest, c subjects.ConflictingLock) bool {
	if !c.Forgotten || c.Txid < j.keeps {
		return true
	}
	item := queryItem{locks: []string{c.Lock}, besides: r.session}
	for txid := r.mark + 1; txid <= min(c.Txid, uint64(len(j.log))); txid++ {
		if j.log[txid-1].matches(&item) {
			return true
		}
	}
	return false
}

// judgeSessions checks that the numbers of each session are in the log in
// order, without gaps.
func (j *dataJudge) judgeSessions() {
	last := map[string]uint64{}
	for i, t := range j.log {
		if t.session == "" || t.place.Index > 0 {
			continue
		}
		if t.seq != last[t.session]+1 {
			j.cluster.Fail("transaction %d is number %d of %s, and the last was %d", i+1, t.seq, t.session, last[t.session])
		}
		last[t.session] = t.seq
	}
}

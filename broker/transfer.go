package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// A transfer of leadership begins with requestTransfer, which ends the session that
// is under way. runLeader then waits until every batch in flight is answered, while
// new messages wait in the queues, makes the transferee the leader and forwards the
// queues to it once it serves the partition. If the transfer fails, this node leads
// on, in a new session.

// transferError ends a session whose leadership is to go to another node.
type transferError struct{ to string }

func (e transferError) Error() string { return "leadership is transferred to " + e.to }

// requestTransfer ends the session that is under way so that its leadership goes to
// a node, unless such a transfer has just failed.
func (p *partition) requestTransfer(_ context.Context, to string) error {
	if since := time.Since(time.Unix(0, p.transferFailed.Load())); since < transferPause {
		return fmt.Errorf("leadership could not be transferred %v ago", since.Round(time.Millisecond))
	}
	if end := p.endSession.Load(); end != nil {
		(*end)(transferError{to})
	}
	return nil
}

// transferTime bounds one transfer of leadership.
const transferTime = 2 * time.Second

// transferLeadership makes a node the leader, or for "" the one that pickTransferee
// returns. It reports whether this node no longer leads.
func (p *partition) transferLeadership(to string) bool {
	if !p.group.Leading() {
		return true
	}
	if to == "" {
		to = p.pickTransferee()
	}
	if to == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), transferTime)
	defer cancel()
	err := p.group.Transfer(ctx, to)
	if err != nil {
		p.log.Warn("leadership was not transferred", "to", to, "err", err)
	}
	return err == nil
}

// pickTransferee returns the other living voter that has applied most, "" if there is
// none.
func (p *partition) pickTransferee() (name string) {
	now := time.Now()
	best := uint64(0)
	for _, r := range p.group.Status().Replicas {
		g, there := p.host.peers.report(r.Name, p.id, now)
		if there && r.Voter && p.host.peers.alive(r.Name, now) && g.Fenced == "" && g.Applied >= best {
			name, best = r.Name, g.Applied
		}
	}
	return name
}

// newLeaderTime is how long messages wait for the new leader to serve the partition.
const newLeaderTime = 500 * time.Millisecond

// awaitNewLeader waits until another node says that it serves the partition, and
// reports whether one did within newLeaderTime.
func (p *partition) awaitNewLeader() bool {
	patience := time.NewTimer(newLeaderTime)
	defer patience.Stop()
	for {
		heard := p.host.peers.next()
		if _, r, ok := p.host.peers.leader(p.id, time.Now()); ok && r.Serves && r.Term >= p.group.Status().Term {
			return true
		}
		select {
		case <-heard:
		case <-patience.C:
			return false
		}
	}
}

// closeQueues closes the queues. Messages that wait in them are forwarded to the new
// leader, if one serves the partition, and rejected otherwise.
func (p *partition) closeQueues(newLeader bool) {
	for _, q := range []struct {
		*queue
		subject string
	}{{p.queue, p.host.names.Append(p.id)}, {p.cursors, p.host.names.Cursor(p.id, "any")}} {
		rest := q.close()
		if newLeader && p.host.nats.Interested(q.subject) {
			p.forward(rest)
		} else {
			p.rejectUnavailable(rest)
		}
	}
}

// forward publishes messages again, for the node that leads now.
func (p *partition) forward(ms []*natslink.Message) {
	for _, m := range ms {
		p.host.sender.Send(natslink.AppendForward(nil, m))
	}
}

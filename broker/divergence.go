package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

// The replicas of a group have the same log, or one of them is broken. A
// majority of the group's voters decides which one, not any single report.
// Announcements carry points of the senders' digest chains. Each node compares
// them with its own, and remembers the result of the last comparison with each
// replica.
//
//   - If a majority of the voters differs from this replica, this replica is wrong. It is
//     fenced, durably, until an operator has it rebuilt.
//   - If it differs from its leader, and no majority agrees with it, it may be wrong. It
//     takes no part, and reports that, until the voters decide. This is not durable.
//   - If it agrees with a majority of the voters, it continues.

// verdicts holds the results of the last comparisons with other replicas.
type verdicts struct {
	mu sync.Mutex
	by map[string]verdict // by node
}

type verdict struct {
	comparison
	txid uint64
}

// set records a result. One without a common point leaves the earlier result.
func (v *verdicts) set(name string, is verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.by == nil {
		v.by = map[string]verdict{}
	}
	if is.comparison != nothing {
		v.by[name] = is
	}
}

// drop forgets the result for a replica that no longer counts.
func (v *verdicts) drop(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.by, name)
}

// count counts the voters that agree with this replica, itself included if it votes, and
// those that differ. Of the latter it names the leader if that is among them.
func (v *verdicts) count(self, leader string, replicas []raftstore.Replica) (c tally) {
	v.mu.Lock()
	defer v.mu.Unlock()
	voters := 0
	for _, r := range replicas {
		if !r.Voter {
			continue
		}
		voters++
		is := v.by[r.Name]
		switch {
		case r.Name == self || is.comparison == equal:
			c.agree++
		case is.comparison == different:
			c.differ++
			if c.other == "" || r.Name == leader {
				c.other, c.txid = r.Name, is.txid
			}
			c.leader = c.leader || r.Name == leader
		}
	}
	c.majority = voters/2 + 1
	return c
}

// tally counts a group's voters by whether they agree with this node's replica.
type tally struct {
	agree, differ, majority int
	leader                  bool   // the leader differs
	other                   string // a voter that differs
	txid                    uint64 // the first one that differs
}

// compare compares the replica with another node's, and fences, disputes or resumes it
// according to the result.
func (p *partition) compare(name string, r groupReport) {
	if why := r.Forgot[p.host.name]; why != "" && r.leads() {
		p.accuser.Store(&name)
		p.dispute(fmt.Sprintf("its leader %s says that it has lost entries: %s", name, why))
		return
	} else if by := p.accuser.Load(); by != nil && *by == name {
		p.accuser.Store(nil)
	}
	if r.Fenced != "" {
		p.verdicts.drop(name)
		return
	}
	result, txid := p.digests.compare(r.Digests)
	p.verdicts.set(name, verdict{result, txid})
	if result == nothing {
		return
	}
	status := p.group.Status()
	leader := status.Leader
	if r.leads() && r.Term >= status.Term {
		leader = name
	}
	c := p.verdicts.count(p.host.name, leader, status.Replicas)
	if result == different {
		p.log.Warn("replicas have different logs", "other", name, "txid", txid, "agree", c.agree, "differ", c.differ, "majority", c.majority)
	}
	switch {
	case c.differ >= c.majority:
		p.fence(fmt.Sprintf("its log differs from that of %s, and of %d of the %d voters that make a majority, at txid %d", c.other, c.differ, c.majority, c.txid))
	case c.leader && c.agree < c.majority:
		p.dispute(fmt.Sprintf("its log differs from that of its leader %s at txid %d, and no majority of voters is there to say which of the two is wrong: "+
			"start the others", c.other, c.txid))
	case p.accuser.Load() == nil && (c.agree >= c.majority || c.differ == 0):
		p.endDispute()
	}
}

var errDisputed = errors.New("broker: replica takes no part for now")

// dispute halts the replica until it is known whether its log is wrong.
func (p *partition) dispute(why string) {
	if p.fenced.Load() != nil || !p.disputed.CompareAndSwap(nil, &why) {
		return
	}
	p.log.Error("replica takes no part: it may have lost or changed what was acknowledged", "because", why)
	p.host.advise("diverged", map[string]any{"partition": p.id, "because": why})
	err := fmt.Errorf("%w: %s", errDisputed, why)
	p.group.Halt(err)
	if end := p.endSession.Load(); end != nil {
		(*end)(err)
	}
}

// endDispute resumes a replica that dispute has halted.
func (p *partition) endDispute() {
	if why := p.disputed.Swap(nil); why != nil && p.fenced.Load() == nil {
		p.log.Info("replica takes part again: a majority of the voters has its log", "was", *why)
		p.group.Resume()
	}
}

// contradicted is called when the group has halted itself because of err.
func (p *partition) contradicted(err error) {
	if errors.Is(err, raftstore.ErrTermBack) {
		p.host.fail(fmt.Errorf("partition %d: %w", p.id, err))
		return
	}
	p.fence(err.Error())
}

// peerForgot is called when a member has lost entries that it had acknowledged. The
// leader sends it no more.
func (p *partition) peerForgot(peer string, has, had uint64) {
	why := fmt.Sprintf("its newest entry is %d, and it had acknowledged %d", has, had)
	p.log.Error("a replica has lost entries that it had acknowledged, and counts for nothing: its data directory was put back to an older state; "+
		"remove the node, give it an empty directory and add it again", "peer", peer, "has", has, "had", had)
	p.host.advise("amnesia", map[string]any{"partition": p.id, "member": peer, "because": why})
	p.host.announce()
}

// compare compares the facts with another node's. A node with wrong facts stops.
func (m *meta) compare(h announcement) {
	if m == nil || h.Meta == nil {
		return
	}
	result, index := m.chain.compare(h.Meta.Digests)
	if m.verdicts.set(h.Name, verdict{result, index}); result == nothing {
		return
	}
	status := m.group.Status()
	c := m.verdicts.count(m.opts.Name, status.Leader, status.Replicas)
	switch {
	case c.differ >= c.majority:
		m.fail(fmt.Errorf("%w: they differ from those of %s, and of %d of the %d voters that make a majority, from entry %d on. "+
			"Keep a copy of its data directory: it may hold what the others have lost. Then remove this node, give it an empty directory and add it again",
			errFacts, c.other, c.differ, c.majority, c.txid))
	case c.leader && c.agree < c.majority:
		m.dispute(fmt.Errorf("%w: they differ from those of the leader %s from entry %d on, and no majority is there to say which of the two is wrong: "+
			"start the others", errFacts, c.other, c.txid))
	case c.agree >= c.majority || c.differ == 0:
		m.dispute(nil)
	}
}

var errFacts = errors.New("broker: this node's facts differ from the other nodes'")

// dispute halts the replica of the facts because of why, or resumes it if why is nil.
func (m *meta) dispute(why error) {
	if why == nil {
		if m.disputed.Swap(nil) != nil {
			m.group.Resume()
		}
		return
	}
	if m.disputed.CompareAndSwap(nil, &why) {
		m.log.Error("the replica of the facts takes no part", "because", why)
		m.advise("diverged", map[string]any{"because": why.Error()})
		m.group.Halt(why)
	}
}

// contradicted is called when the group of the facts has halted itself because of err.
// The node stops, but first connects to the others, which then learn what it remembers of
// their directories: one of them may run on an older copy without knowing it.
func (m *meta) contradicted(err error) {
	m.background(func() {
		m.greetMembers()
		m.fail(fmt.Errorf("facts of the cluster: %w: another node runs on an older copy of its data directory, or this one does. "+
			"Keep a copy of this directory: it may hold what the others have lost. Then remove the node on the older copy, give it an empty directory and add it again", err))
	})
}

// lastGreetings bounds how long a node that stops connects to others.
const lastGreetings = 5 * time.Second

// greetMembers connects to every other member once. It ignores errors.
func (m *meta) greetMembers() {
	ctx, cancel := context.WithTimeout(context.Background(), lastGreetings)
	defer cancel()
	var greeting sync.WaitGroup
	facts, _ := m.current()
	for _, name := range facts.Names() {
		if name != m.opts.Name {
			greeting.Go(func() {
				if err := m.greet(ctx, name); err != nil {
					m.log.Debug("connect to a member", "node", name, "err", err)
				}
			})
		}
	}
	greeting.Wait()
}

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
//   - If a majority of the voters differs from this replica, this replica is
//     wrong. It is fenced, durably, until an operator has it rebuilt.
//   - If it differs from its leader, and no majority agrees with it, it may be
//     wrong. It is halted, and reports that, until the voters decide. This
//     is not durable.
//   - If it agrees with a majority of the voters, it continues.

// comparisons holds the results of the last comparisons with other replicas.
type comparisons struct {
	mu sync.Mutex
	by map[string]comparedAt // by node
}

// comparedAt is the result of a comparison, and the txid that it was made at.
type comparedAt struct {
	comparison
	txid uint64
}

// set records a result. One without a common point leaves the earlier result.
func (v *comparisons) set(name string, is comparedAt) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.by == nil {
		v.by = map[string]comparedAt{}
	}
	if is.comparison != nothing {
		v.by[name] = is
	}
}

// with returns the last result with a replica.
func (v *comparisons) with(name string) comparison {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.by[name].comparison
}

// drop forgets the result for a replica that no longer counts.
func (v *comparisons) drop(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.by, name)
}

// count counts the voters that agree with this replica, itself included if it
// votes, and those that differ. Of the latter it names the leader if that is
// among them.
func (v *comparisons) count(self, leader string, replicas []raftstore.Replica) (c tally) {
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

// compare compares the facts with another node's. A node with wrong facts
// stops.
func (m *meta) compare(a announcement) {
	if m == nil || a.Meta == nil {
		return
	}
	result, index := m.chain.compare(a.Meta.Digests)
	if m.comparisons.set(a.Name, comparedAt{result, index}); result == nothing {
		return
	}
	status := m.group.Status()
	c := m.comparisons.count(m.opts.Name, status.Leader, status.Replicas)
	switch {
	case c.differ >= c.majority:
		m.fail(fmt.Errorf("%w: they differ from those of %s, and of %d of the %d voters that make a majority, from entry %d on. "+
			"Keep a copy of its data directory: it may hold what the others have lost. Then remove this node, give it an empty directory and add it again",
			errFacts, c.other, c.differ, c.majority, c.txid))
	case c.leader && c.agree < c.majority:
		m.halt(fmt.Errorf("%w: they differ from those of the leader %s from entry %d on, and no majority is there to say which of the two is wrong: "+
			"start the others", errFacts, c.other, c.txid))
	case c.agree >= c.majority || c.differ == 0:
		m.resume()
	}
}

var errFacts = errors.New("broker: this node's facts differ from the other nodes'")

// halt halts the replica of the facts because of why.
func (m *meta) halt(why error) {
	if m.halted.CompareAndSwap(nil, &why) {
		m.log.Error("the replica of the facts is halted", "because", why)
		m.advise("diverged", map[string]any{"because": why.Error()})
		m.group.Halt(why)
	}
}

// resume ends halt.
func (m *meta) resume() {
	if m.halted.Swap(nil) != nil {
		m.group.Resume()
	}
}

// contradicted is called when the group of the facts has halted itself because
// of err. The node stops, but first connects to the others, which then learn
// what it remembers of their directories: one of them may run on an older copy
// without knowing it.
func (m *meta) contradicted(err error) {
	m.background(func() {
		m.handshakeMembers()
		m.fail(fmt.Errorf("facts of the cluster: %w: another node runs on an older copy of its data directory, or this one does. "+
			"Keep a copy of this directory: it may hold what the others have lost. Then remove the node on the older copy, give it an empty directory and add it again", err))
	})
}

// lastGreetings bounds how long a node that stops connects to others.
const lastGreetings = 5 * time.Second

// handshakeMembers connects to every other member once. It ignores errors.
func (m *meta) handshakeMembers() {
	ctx, cancel := context.WithTimeout(context.Background(), lastGreetings)
	defer cancel()
	var handshakes sync.WaitGroup
	facts, _ := m.current()
	for _, name := range facts.Names() {
		if name != m.opts.Name {
			handshakes.Go(func() {
				if err := m.handshake(ctx, name); err != nil {
					m.log.Debug("connect to a member", "node", name, "err", err)
				}
			})
		}
	}
	handshakes.Wait()
}

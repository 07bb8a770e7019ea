package broker

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// metaGroup is the Raft group of the cluster's facts.
const metaGroup = math.MaxUint32

// meta is this node's replica of the cluster's facts. It is a raftstore.FSM.
//
// A goroutine, run, waits until this node leads the group. While it does, lead
// serves the requests of operators, and changes the group's members to what the
// facts say. Apply and Snapshot run on the group's goroutine.
type meta struct {
	*identity
	services
	stored     *wal.Log
	group      *raftstore.Group
	peers      *peers
	replicas   *replicaSet
	starts     *generations // the starts of members that are recorded in the facts
	operations *operations  // served while this node leads
	handshake  func(ctx context.Context, node string) error
	announce   func() // has this node's status sent at once
	// chain holds the digests of the facts after each entry.
	chain       digests
	comparisons comparisons
	halted      atomic.Pointer[error] // why the replica is halted
	// transferred says that this node has transferred leadership since it began
	// to lead. run owns it.
	transferred bool

	state   sync.Mutex // guards what follows
	facts   cluster.Facts
	index   uint64
	changed chan struct{} // closed at the next change, then replaced
}

// open opens the replica's group.
func (m *meta) open(groupOptions func(id uint32, log *wal.Log, fsm raftstore.FSM, logger *slog.Logger) raftstore.Options) error {
	m.facts, m.changed = bootstrapFacts(*m.founded), make(chan struct{})
	opts := groupOptions(metaGroup, m.stored, m, m.log.With("group", "meta"))
	opts.Voters, opts.HaltedItself = bootstrapVoters(*m.founded, m.facts.MetaVoters()), m.contradicted
	var err error
	if m.group, err = raftstore.Open(opts); err != nil {
		return fmt.Errorf("facts of the cluster: %w", err)
	}
	return nil
}

// bootstrapFacts returns the facts of a new cluster, the same on each of its
// nodes.
func bootstrapFacts(id wal.Identity) cluster.Facts {
	founders, replicas := id.Founders, id.Replicas
	if len(founders) == 0 { // founded by a version that recorded no founders
		founders = map[string]string{id.Node: id.NodeID}
	}
	return cluster.Bootstrap(founders, id.Partitions, max(replicas, 1))
}

// bootstrapVoters returns the first voters of a group on a node that is one of
// them, nil on others. A node with the name of a founder and another directory
// is not one of them: it must not begin the group once more.
func bootstrapVoters(id wal.Identity, voters []string) []string {
	if slices.Contains(voters, id.Node) && (len(id.Founders) == 0 || id.Founders[id.Node] == id.NodeID) {
		return voters
	}
	return nil
}

// current returns the facts, and a channel that is closed when they change.
func (m *meta) current() (cluster.Facts, <-chan struct{}) {
	m.state.Lock()
	defer m.state.Unlock()
	return m.facts, m.changed // a change replaces the facts and leaves these as they are
}

// now returns the current facts, zero while the node is starting.
func (m *meta) now() cluster.Facts {
	if m == nil {
		return cluster.Facts{}
	}
	facts, _ := m.current()
	return facts
}

// Apply applies committed commands. The result is nil or the error of each.
func (m *meta) Apply(entries []raftstore.Committed) []any {
	results := make([]any, len(entries))
	m.state.Lock()
	defer m.state.Unlock()
	first := m.facts.Version
	for i, e := range entries {
		m.index = e.Index
		was := m.facts.Version
		results[i] = m.apply(e)
		invariant.FactsVersionRises.Check(m.facts.Version >= was, m.facts.Version, was)
		m.chain.add(chainPoint{wal.Base{Txid: e.Index, Digest: m.digest()}, e.Index})
		m.chain.setApplied(e.Index)
	}
	close(m.changed)
	m.changed = make(chan struct{})
	if m.facts.Version > first && m.announce != nil {
		m.announce() // an operator may wait for it: see operations.decided
	}
	return results
}

// digest returns the digest of the facts. state is held.
func (m *meta) digest() wal.Digest { return sha256.Sum256(mustJSON(m.facts)) }

func (m *meta) apply(e raftstore.Committed) error {
	c, err := decodeCommand(e.Data)
	if err == nil {
		err = m.facts.Apply(c)
	}
	if err != nil && !errors.Is(err, cluster.ErrStale) && !errors.Is(err, cluster.ErrCommand) {
		m.fail(fmt.Errorf("apply entry %d of the facts: %w", e.Index, err))
	}
	return err
}

func encodeCommand(c cluster.Command) []byte {
	var w wal.BatchWriter
	w.Begin(wal.Commands, 0, time.Now().UnixNano(), 0)
	w.AddRaw(mustJSON(c))
	return w.Finish()
}

func decodeCommand(data []byte) (c cluster.Command, err error) {
	b, err := wal.ParseBatch(data)
	if err != nil {
		return c, fmt.Errorf("%w: %w", wal.ErrDamaged, err)
	}
	r := b.Read()
	record, ok := r.NextRaw()
	if !ok || b.Kind != wal.Commands || b.Count != 1 {
		return c, fmt.Errorf("%w: batch of kind %d is not a command", wal.ErrFormat, b.Kind)
	}
	if err := json.Unmarshal(record, &c); err != nil {
		return c, fmt.Errorf("%w: command: %w", wal.ErrFormat, err)
	}
	return c, nil
}

// metaSnapshot is the state in a snapshot.
type metaSnapshot struct {
	Index uint64        `json:"index"`
	Facts cluster.Facts `json:"facts"`
}

// Snapshot returns the facts.
func (m *meta) Snapshot() raftstore.Snapshot {
	m.state.Lock()
	defer m.state.Unlock()
	return raftstore.Snapshot{State: mustJSON(metaSnapshot{m.index, m.facts})}
}

// Restore sets the facts to those of a snapshot.
func (m *meta) Restore(state []byte) error {
	var s metaSnapshot
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("%w: snapshot of the facts: %w", wal.ErrDamaged, err)
	}
	if err := s.Facts.Check(); err != nil {
		return fmt.Errorf("%w: snapshot of the facts: %w", wal.ErrDamaged, err)
	}
	m.state.Lock()
	defer m.state.Unlock()
	if has, had := len(s.Facts.Placement), len(m.facts.Placement); has != had {
		return fmt.Errorf("%w: snapshot of the facts: it places %d partitions of %d", wal.ErrDamaged, has, had)
	}
	m.index, m.facts = s.Index, s.Facts
	m.chain.begin(wal.Base{Txid: s.Index, Digest: m.digest()}, s.Index)
	return nil
}

// change changes the facts. It calls compute for a command and proposes it, and
// does so again if the facts have changed in between. Only the leader can.
func (m *meta) change(ctx context.Context, compute func(cluster.Facts) (cluster.Command, error)) error {
	for {
		facts, _ := m.current()
		c, err := compute(facts)
		if err != nil {
			return err
		}
		result, err := m.group.Propose(encodeCommand(c)).Wait()
		if err != nil {
			return err
		}
		refused, _ := result.(error)
		if !errors.Is(refused, cluster.ErrStale) || ctx.Err() != nil {
			return refused
		}
	}
}

// report returns the node's report of its replica of the facts.
func (m *meta) report() groupReport {
	r := statusReport(m.group.Status())
	facts, _ := m.current()
	r.Txid, r.Digests = facts.Version, m.chain.newest()
	r.Halted = m.halted.Load() != nil
	if r.leads() && !r.Halted {
		now := time.Now()
		r.CaughtUp = votersCaughtUp(m.group.Status().Replicas, m.opts.Name, func(name string) (groupReport, bool) { return m.reportOf(name, now) }, m.group.Reachable)
	}
	return r
}

// reportOf returns what a living node says of its replica of the facts.
func (m *meta) reportOf(name string, now time.Time) (groupReport, bool) {
	q, ok := m.peers.get(name)
	if !ok || q.Meta == nil || !m.peers.alive(name, now) {
		return groupReport{}, false
	}
	return *q.Meta, true
}

// statusReport returns the part of a report that Raft knows.
func statusReport(s raftstore.Status) groupReport {
	r := groupReport{State: s.State, Term: s.Term, Applied: s.AppliedIndex, Commit: s.CommitIndex}
	if s.State == "leader" {
		r.Voters = map[string]bool{}
		for _, m := range s.Replicas {
			r.Voters[m.Name] = m.Voter
		}
	}
	return r
}

// run calls lead whenever this node leads the group, until ctx ends.
func (m *meta) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.group.Leadership():
		}
		for m.group.Leading() && ctx.Err() == nil {
			m.transferred = false
			if err := m.lead(ctx); err != nil && ctx.Err() == nil {
				m.log.Log(ctx, endedLevel(err, m.transferred), "leading the facts ended", "because", endedBecause(ctx, err))
				select {
				case <-ctx.Done():
				case <-time.After(leadPause):
				}
			}
		}
	}
}

// lead serves operators' requests and changes the group's members to what the
// facts say, until leadership is lost or ctx ends.
func (m *meta) lead(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := m.group.Barrier(ctx); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	ids, err := m.operations.subscribeLeader(ctx)
	defer unsubscribeAll(ids, m.log)
	if err != nil {
		return err
	}
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	for {
		_, changed := m.current()
		done, err := m.step(ctx)
		if err != nil && ctx.Err() == nil {
			m.log.Debug("the group of the facts does not match them yet", "err", err)
		}
		again := tick.C
		if done && !m.opts.clustered() {
			again = nil // there is no other node whose state could change
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.group.Leadership():
			return raftstore.ErrNotLeader
		case <-changed:
		case <-again:
		}
	}
}

// step takes one step: it changes a member of the group, records a start of a
// member, or removes a member that has left. It reports whether there was
// nothing to do.
func (m *meta) step(ctx context.Context) (done bool, err error) {
	facts, _ := m.current()
	voters := facts.MetaVoters()
	want := map[string]bool{}
	for name, member := range facts.Nodes {
		if !member.Leaving {
			want[name] = slices.Contains(voters, name)
		}
	}
	now := time.Now()
	w := desiredGroup{
		group: m.group, transfer: m.transfer, self: m.opts.Name, voters: want, preferred: m.opts.Name,
		report:      func(name string) (groupReport, bool) { return m.reportOf(name, now) },
		steady:      func(name string) bool { return m.peers.steady(name, steadyTime, now) },
		mayTransfer: func() bool { return false },
	}
	if done, err := w.step(ctx); err != nil || !done {
		return false, err
	}
	if c, ok := m.starts.startToRecord(facts); ok {
		result, err := m.group.Propose(encodeCommand(c)).Wait()
		if refused, is := result.(error); err == nil && is && !errors.Is(refused, cluster.ErrCommand) {
			err = refused
		}
		return false, err
	}
	done = true
	for name, member := range facts.Nodes {
		done = done && !member.Leaving
		if member.Leaving && !m.replicas.mayHold(facts, name, now) {
			if err := m.change(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.Remove(name), nil }); err != nil {
				return false, err
			}
			m.advise("member", map[string]any{"name": name, "change": "removed"})
			return false, nil
		}
	}
	return done, nil
}

// names returns the names of a group's members, in order.
func names(members map[string]bool) []string { return slices.Sorted(maps.Keys(members)) }

// transfer transfers the leadership of the facts to another node.
func (m *meta) transfer(ctx context.Context, to string) error {
	err := m.group.Transfer(ctx, to)
	m.transferred = m.transferred || err == nil
	return err
}

// transferAway transfers the leadership of the facts to another node, before
// this one stops.
func (m *meta) transferAway() {
	if !m.group.Leading() || len(m.group.Status().Replicas) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), transferTime)
	defer cancel()
	if err := m.group.Transfer(ctx, ""); err != nil {
		m.log.Debug("leadership of the facts was not transferred", "err", err)
	}
}

// isCurrent reports whether the facts are not outdated, as far as this node can
// know.
func (m *meta) isCurrent() bool { return m.group.Current() }

// checkMember returns an error if a node that has the secret is not a member.
// While this node follows no leader of the facts, or has not caught up with it,
// it can't know the members and returns nil for any node: nodes that were added
// while it was away must be able to bring it up to date.
func (m *meta) checkMember(name, id string) error {
	if m == nil {
		return nil
	}
	facts, _ := m.current()
	member, known := facts.Nodes[name]
	self, is := facts.Nodes[m.opts.Name]
	switch {
	case known && member.ID == id:
		return nil
	case !is || self.ID != m.directory() || !m.isCurrent():
		return nil
	case known:
		return fmt.Errorf("node %s has another data directory than the member of that name: remove that one and add this one", name)
	}
	return fmt.Errorf("node %s is not a member of this cluster: it was removed, or never added", name)
}

// nameTaken reports whether a node that belongs to no cluster yet has the name
// of a member of this one, and another data directory.
func (m *meta) nameTaken(a announcement) bool {
	if m == nil || a.ClusterID != "" {
		return false
	}
	facts, _ := m.current()
	member, is := facts.Nodes[a.Name]
	return is && member.ID != a.NodeID
}

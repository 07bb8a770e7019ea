package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Group is one replica of a Raft group, running.
type Group struct {
	node             string
	log              *logStore
	heartbeatTimeout time.Duration
	electionTimeout  time.Duration
	raft             *raft.Raft
	transport        raft.Transport
	network          *transport           // transport, nil without a network
	inmem            *raft.InmemTransport // transport of a standalone replica, else nil
	snapshotter      *snapshotter
	info             func(msg string, args ...any)
	warn             func(msg string, args ...any)
	closing          atomic.Bool
	closeOnce        sync.Once
	closeErr         error

	// entering is held for reading while something is put into raft's queues, and
	// locked by Close to wait for that. It guards closed.
	entering sync.RWMutex
	closed   bool
	// outstanding counts what is in raft's queues or log without an outcome.
	outstanding atomic.Int64
}

// Open starts the replica. It bootstraps the group if the log is empty and
// Voters is set, restores the FSM from the last snapshot, and returns; entries
// after the snapshot are applied once a leader is known. It returns
// [ErrFetching] for a log that is being fetched: see [Fetching]. An error that
// wraps [wal.ErrDamaged] says that the log can't be read.
func Open(opts Options) (*Group, error) {
	g := &Group{node: opts.Node, log: &logStore{log: opts.Log, standalone: opts.Network == nil, halt: &halt{haltedItself: opts.HaltedItself}}, info: func(string, ...any) {}, warn: func(string, ...any) {}}
	g.log.halt.request(opts.Halted)
	if opts.Logger != nil {
		g.info, g.warn = opts.Logger.Info, opts.Logger.Warn
	}
	opts.logger = raftLogger(opts.Logger, &g.closing)
	opts, config, err := opts.filled()
	if err != nil {
		return nil, err
	}
	if Fetching(opts.Log) {
		return nil, ErrFetching
	}
	g.heartbeatTimeout, g.electionTimeout = opts.HeartbeatTimeout, opts.ElectionTimeout
	if err := g.connect(opts); err != nil {
		return nil, err
	}
	if err = g.start(config, opts); err != nil {
		return nil, errors.Join(err, g.closeTransport())
	}
	return g, nil
}

// connect makes the transport.
func (g *Group) connect(opts Options) error {
	if opts.Network == nil {
		_, g.inmem = raft.NewInmemTransport(raft.ServerAddress(opts.Node))
		g.transport = g.inmem
		return nil
	}
	if name := opts.Network.peers.Node(); name != opts.Node {
		return fmt.Errorf("a replica of %s can't be on the network of %s", opts.Node, name)
	}
	e, err := opts.Network.attach(opts.ID, g.log.halt)
	if err != nil {
		return err
	}
	g.network = newTransport(e, opts, &g.log.writes)
	g.transport = g.network
	return nil
}

// start bootstraps the group if need be, and runs raft.
func (g *Group) start(config *raft.Config, opts Options) (err error) {
	snapshots := snapshotStore{opts.Log}
	if err := bootstrap(config, g.log, snapshots, g.transport, opts); err != nil {
		return err
	}
	if g.snapshotter, err = newSnapshotter(opts, g.snapshotIfRunning, g.warn); err != nil {
		return err
	}
	defer func() { // raft panics if it can't read an entry
		if r, is := recover().(error); is {
			err = fmt.Errorf("start raft: %w", r)
		}
	}()
	var restored error
	g.raft, err = raft.NewRaft(config, fsmAdapter{opts.FSM, &g.log.writes, g.snapshotter, &restored}, g.log, g.log, snapshots, g.transport)
	if err != nil && restored != nil {
		return fmt.Errorf("restore the state: %w", restored)
	}
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	g.log.raft.Store(g.raft)
	if g.network != nil {
		g.raft.RegisterObserver(raft.NewObserver(nil, false, g.network.end.bypass.revoke))
		g.network.use(g)
	} else {
		g.leadStandalone()
	}
	return nil
}

// bootstrap gives a new group its first configuration, if this replica is one
// of its founders and has no log.
func bootstrap(c *raft.Config, store *logStore, snapshots snapshotStore, t raft.Transport, opts Options) error {
	has, err := raft.HasExistingState(store, store, snapshots)
	if err != nil || has || opts.Network != nil && len(opts.Voters) == 0 {
		return err
	}
	var config raft.Configuration
	for _, v := range slices.Sorted(slices.Values(opts.Voters)) { // all replicas store the same entry
		config.Servers = append(config.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(v), Address: raft.ServerAddress(v),
		})
	}
	if err := raft.BootstrapCluster(c, store, store, snapshots, t, config); err != nil {
		return fmt.Errorf("bootstrap raft group: %w", err)
	}
	return nil
}

// Leadership returns a channel that receives true when this replica becomes
// leader and false when it stops being leader. It holds the newest change only.
func (g *Group) Leadership() <-chan bool { return g.raft.LeaderCh() }

// Leading reports whether this replica believes that it leads.
func (g *Group) Leading() bool { return g.raft.State() == raft.Leader }

// Propose proposes an entry. It does not wait for the outcome, but blocks while
// raft has many proposals waiting. Proposals made one after another are in the
// log in that order, if they are in it. The group owns data from then on.
func (g *Group) Propose(data []byte) Proposal {
	g.entering.RLock()
	defer g.entering.RUnlock()
	if g.closed {
		return Proposal{}
	}
	g.outstanding.Add(1)
	return Proposal{g, g.raft.Apply(data, 0)}
}

// Proposal is a proposed entry.
type Proposal struct {
	group  *Group
	future raft.ApplyFuture // nil if the group was closed
}

// Wait blocks until the entry is committed and applied here, and returns the
// FSM's result; or until it is known that the entry was not appended
// ([ErrNotLeader], [ErrClosed], [wal.ErrNoSpace]), or that its outcome can't be
// known ([ErrUnknown]). It is called once.
func (p Proposal) Wait() (result any, err error) {
	if p.future == nil {
		return nil, ErrClosed
	}
	err = p.future.Error()
	p.group.outstanding.Add(-1)
	if err != nil {
		return nil, proposalError(err)
	}
	result = p.future.Response()
	if n, is := result.(notSynced); is {
		return nil, fmt.Errorf("%w: it could not be synced: %w", ErrUnknown, n.err)
	}
	return result, nil
}

// Barrier returns nil when everything that was committed before is applied here
// and this replica leads. It blocks until then, until leadership is lost
// ([ErrNotLeader]), or until ctx ends; the barrier itself then goes on. After
// Close it returns [ErrClosed].
func (g *Group) Barrier(ctx context.Context) error {
	return g.await(ctx, func() raft.Future { return g.raft.Barrier(0) }, notLeading)
}

// Term returns the term that this replica is in.
func (g *Group) Term() uint64 { return g.raft.CurrentTerm() }

// Applied returns Status's AppliedIndex.
func (g *Group) Applied() uint64 { return g.raft.AppliedIndex() }

// VerifyLeader returns nil when a majority has confirmed that this replica
// leads in a term, in reply to heartbeats that were sent after the call. If a
// barrier has passed in that term, what this replica has applied is then the
// latest. The errors are those of [Group.Barrier].
//
// Raft's own VerifyLeader accepts any reply, also one that was on its way
// before the call, or lay unread while this process was stopped. Here it only
// has heartbeats sent and detects the loss of leadership.
func (g *Group) VerifyLeader(ctx context.Context, term uint64) error {
	defer g.expediteHeartbeats()()
	began := time.Now()
	for {
		if err := g.await(ctx, g.raft.VerifyLeader, notLeading); err != nil {
			return err
		}
		if now := g.Term(); now != term {
			return notLeading(fmt.Errorf("term %d is over, the current term is %d", term, now))
		}
		if g.confirmed(term, began) {
			return nil
		}
	}
}

// confirmed reports whether a majority has replied to heartbeats of a term that
// were sent at since or later.
func (g *Group) confirmed(term uint64, since time.Time) bool {
	voters, confirm := 0, 0
	for _, r := range g.replicas() {
		if !r.Voter {
			continue
		}
		voters++
		if r.Name == g.node || g.network != nil && g.network.peer(raft.ServerID(r.Name)).confirmedSince(term, since) {
			confirm++
		}
	}
	return confirm > voters/2
}

// expediteHeartbeats has heartbeats sent without delay until done is called.
func (g *Group) expediteHeartbeats() (done func()) {
	if g.network == nil {
		return func() {}
	}
	return g.network.expediteHeartbeats()
}

func notLeading(err error) error { return fmt.Errorf("%w: %w", ErrNotLeader, err) }

// await puts a question to raft and waits for the answer. explain maps an error
// of raft.
func (g *Group) await(ctx context.Context, ask func() raft.Future, explain func(error) error) error {
	f := g.ask(ask)
	if f == nil {
		return ErrClosed
	}
	done := make(chan error, 1)
	go func() { // ends when raft answers, at the latest in Close
		err := f.Error()
		g.outstanding.Add(-1)
		done <- err
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		if err != nil {
			return explain(err)
		}
		return nil
	}
}

// ask puts a question to raft. It returns nil if the group is closed.
func (g *Group) ask(question func() raft.Future) raft.Future {
	g.entering.RLock()
	defer g.entering.RUnlock()
	if g.closed {
		return nil
	}
	g.outstanding.Add(1)
	return question()
}

// Snapshot takes a snapshot now, if there is anything new.
func (g *Group) Snapshot() error { return g.snapshot(g.raft) }

func (g *Group) snapshot(r *raft.Raft) error {
	err := r.Snapshot().Error()
	switch {
	case errors.Is(err, raft.ErrNothingNewToSnapshot):
		return nil
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	case err == nil:
		return g.snapshotter.recordLast(snapshotStore{g.log.log})
	}
	return err
}

// snapshotIfRunning is Snapshot for the snapshotter: it does nothing before
// raft runs, and returns ErrClosed once the group is closing.
func (g *Group) snapshotIfRunning() error {
	r := g.log.raft.Load()
	if g.closing.Load() {
		return ErrClosed
	}
	if r == nil {
		return nil
	}
	return g.snapshot(r)
}

// Trim removes the log's entries up to and including index through, as far as
// raft can do without them: the entry of the last snapshot and what follows it
// stay.
func (g *Group) Trim(through uint64) error {
	snap, err := snapshotStore{g.log.log}.load()
	if err != nil || snap.Index == 0 {
		return err
	}
	return g.log.trim(min(through, snap.Index-1))
}

// Behind returns a channel that is closed when the leader has trimmed what this
// replica's log lacks. The replica gets no more entries then: its owner closes
// it, calls [Fetch] and opens it again. Without a network the channel is nil,
// and never ready.
func (g *Group) Behind() <-chan struct{} {
	if g.network == nil {
		return nil
	}
	return g.network.filter.behind
}

// Status is the state of a group as a replica sees it.
type Status struct {
	Leader string // "" if none is known
	Term   uint64
	// State is "leader", "follower", "candidate" or "shutdown".
	State    string
	Replicas []Replica
	// CommitIndex is the newest entry known to be committed. The entries up to
	// AppliedIndex were passed to the FSM, which may still be applying the last
	// of them. LastIndex is the newest entry in the log.
	CommitIndex, AppliedIndex, LastIndex uint64
}

// Replica is a member of the group.
type Replica struct {
	Name  string
	Voter bool
}

// Status returns the group's state as this replica sees it now. It does not
// block.
func (g *Group) Status() Status {
	_, leader := g.raft.LeaderWithID()
	return Status{
		Leader: string(leader), Term: g.raft.CurrentTerm(), State: stateName(g.raft.State()),
		Replicas:    g.replicas(),
		CommitIndex: g.log.writes.limit(g.raft.CommitIndex()), AppliedIndex: g.raft.AppliedIndex(), LastIndex: g.raft.LastIndex(),
	}
}

func (g *Group) replicas() (all []Replica) {
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		all = append(all, Replica{Name: string(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	return all
}

func stateName(s raft.RaftState) string {
	switch s {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Shutdown:
		return "shutdown"
	default:
		return "follower"
	}
}

// Close stops the replica and waits for it. What was proposed before gets its
// outcome first: a leader that can't commit it steps down, and the outcome is
// unknown. Close is idempotent.
func (g *Group) Close() error { return g.close(func() {}) }

// CloseWithSnapshot takes a last snapshot and closes. The next start then
// replays little, and knows the commit index even if it starts alone. A failure
// to take the snapshot is logged and not returned.
func (g *Group) CloseWithSnapshot() error { return g.close(g.takeLastSnapshot) }

func (g *Group) close(last func()) error {
	g.closeOnce.Do(func() {
		g.entering.Lock()
		g.closed = true
		g.entering.Unlock()
		g.drainQueues()
		g.closing.Store(true)
		if g.network != nil {
			g.network.end.stopDialing()
		}
		last()
		g.closeErr = errors.Join(g.raft.Shutdown().Error(), g.closeTransport())
		_ = g.log.writes.waitSynced(allEntries) // nothing uses the log any more
	})
	return g.closeErr
}

// takeLastSnapshot takes a snapshot once nothing more is replicated. Raft takes
// none during a leadership transfer, which it gives up after an election
// timeout, so it retries.
func (g *Group) takeLastSnapshot() {
	err := g.Snapshot()
	for since := time.Now(); errors.Is(err, raft.ErrLeadershipTransferInProgress) && time.Since(since) < 4*g.electionTimeout; err = g.Snapshot() {
		time.Sleep(lastSnapshotPause)
	}
	if err != nil {
		g.warn("no snapshot taken at close: the next start replays more", "err", err)
	}
}

// lastSnapshotPause is the pause between attempts to take a last snapshot.
const lastSnapshotPause = 2 * time.Millisecond

func (g *Group) closeTransport() error {
	if c, ok := g.transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// drainTimeout is how long proposals may take to commit once the group is being
// closed.
const drainTimeout = 2 * time.Second

// drainQueues waits until raft has handled what is in its queues: it never
// answers what is still there when it shuts down.
func (g *Group) drainQueues() {
	if g.outstanding.Load() == 0 {
		return
	}
	if g.network != nil {
		// A leader that is cut off steps down, and so answers everything.
		defer time.AfterFunc(drainTimeout, g.network.end.stopDialing).Stop()
	}
	defer g.expediteHeartbeats()()
	_ = g.raft.Barrier(0).Error() // both queues are first in, first out
	_ = g.raft.VerifyLeader().Error()
}

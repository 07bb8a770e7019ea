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

	"github.com/cantuslog/cantus/wal"
)

// Group is a running replica of a Raft group.
//
// Raft runs its own goroutines: the main one, which also stores entries; one
// that calls the FSM; one that takes snapshots; and, on a leader, at least two
// for each peer. The group adds one, the request filter's. A Group's methods
// wait for raft's goroutines, never the other way round.
type Group struct {
	node             string
	log              *logStore
	heartbeatTimeout time.Duration
	electionTimeout  time.Duration
	raft             *raft.Raft
	transport        raft.Transport
	network          *transport           // the transport if there is a network, else nil
	inmem            *raft.InmemTransport // the transport of a standalone replica, else nil
	snapshotter      *snapshotter
	info             func(msg string, args ...any)
	warn             func(msg string, args ...any)
	closing          atomic.Bool
	closeOnce        sync.Once
	closeErr         error

	// enqueueing counts the calls that add something to raft's queues, which
	// may be full. Close sets closed and waits for them.
	enqueueing sync.WaitGroup
	closeMu    sync.Mutex // guards closed
	closed     bool
	// outstanding counts the proposals and other requests in raft's queues or
	// log that have no outcome yet.
	outstanding atomic.Int64
}

// Open starts the replica. It bootstraps the group if the log is empty and
// Voters is set, restores the FSM from the last snapshot, and returns. The
// entries after the snapshot are applied once a leader is known. Open returns
// [ErrFetching] for a log that is being fetched: see [Fetching]. An error that
// wraps [wal.ErrDamaged] means that the log can't be read.
func Open(opts Options) (*Group, error) {
	g := &Group{
		node: opts.Node, info: func(string, ...any) {}, warn: func(string, ...any) {},
		log: &logStore{truncating: make(chan struct{}, 1), log: opts.Log, standalone: opts.Network == nil, halt: &halt{haltedItself: opts.HaltedItself}},
	}
	g.log.halt.request(opts.Halted)
	if opts.Logger != nil {
		g.info, g.warn = opts.Logger.Info, opts.Logger.Warn
	}
	unreached := &outages{}
	if opts.Network != nil {
		unreached = &opts.Network.unreached
	}
	opts.logger = raftLogger(opts.Logger, &g.closing, unreached)
	opts, config, err := opts.withDefaults()
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

// connect creates the transport.
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

// start bootstraps the group if necessary, and starts raft.
func (g *Group) start(config *raft.Config, opts Options) (err error) {
	snapshots := snapshotStore{opts.Log}
	if err := bootstrap(config, g.log, snapshots, g.transport, opts); err != nil {
		return err
	}
	if g.snapshotter, err = newSnapshotter(opts, g.snapshotIfRunning, g.warn); err != nil {
		return err
	}
	defer func() { // raft panics if it can't read an entry
		if r, ok := recover().(error); ok {
			err = fmt.Errorf("start raft: %w", r)
		}
	}()
	var restoreErr error
	g.raft, err = raft.NewRaft(config, fsmAdapter{opts.FSM, opts.Log, &g.log.writes, g.snapshotter, &restoreErr}, g.log, g.log, snapshots, g.transport)
	if err != nil && restoreErr != nil {
		return fmt.Errorf("restore the state: %w", restoreErr)
	}
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	g.log.raft.Store(g.raft)
	if g.network != nil {
		g.raft.RegisterObserver(raft.NewObserver(nil, false, g.network.endpoint.bypass.revoke))
		g.network.setGroup(g)
	} else {
		g.leadStandalone()
	}
	return nil
}

// bootstrap stores the first configuration of a new group, if Voters is set and
// the log is empty.
func bootstrap(c *raft.Config, store *logStore, snapshots snapshotStore, t raft.Transport, opts Options) error {
	exists, err := raft.HasExistingState(store, store, snapshots)
	if err != nil || exists || opts.Network != nil && len(opts.Voters) == 0 {
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

// Leadership returns a channel that receives true when this replica becomes the
// leader and false when it is no longer the leader. A change replaces an older
// one that was not received.
func (g *Group) Leadership() <-chan bool { return g.raft.LeaderCh() }

// Leading reports whether this replica believes that it leads.
func (g *Group) Leading() bool { return g.raft.State() == raft.Leader }

// Propose proposes an entry. It does not wait for the outcome, but blocks while
// raft's queue is full. Proposals that are made one after another, and that are
// appended, are in the log in that order. The group owns data from then on.
func (g *Group) Propose(data []byte) Proposal { return g.propose(raft.Log{Data: data}) }

// ProposeRestored is Propose for a batch that was committed in another log, and
// is restored into this one as it is: see [wal.Entry.Restored].
func (g *Group) ProposeRestored(data []byte) Proposal {
	return g.propose(raft.Log{Data: data, Extensions: []byte(wal.RestoredMark)})
}

func (g *Group) propose(l raft.Log) Proposal {
	if !g.beginEnqueue() {
		return Proposal{}
	}
	defer g.enqueueing.Done()
	g.outstanding.Add(1)
	return Proposal{g, g.raft.ApplyLog(l, 0)}
}

// Proposal is a proposed entry.
type Proposal struct {
	group  *Group
	future raft.ApplyFuture // nil if the group was closed
}

// Wait blocks until the entry is committed and applied here, and returns the
// FSM's result. The error is [ErrNotLeader], [ErrClosed] or [wal.ErrNoSpace] if
// the entry was not appended, and [ErrUnknown] if its outcome can't be known.
// Wait must be called only once.
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
	if n, ok := result.(notSynced); ok {
		return nil, fmt.Errorf("%w: it could not be synced: %w", ErrUnknown, n.err)
	}
	return result, nil
}

// Barrier returns nil when this replica leads and has applied every entry that
// was committed before the call. It returns [ErrNotLeader] if this replica does
// not lead or loses the leadership, [ErrClosed] after Close, and ctx's error if
// ctx ends; the barrier itself then remains in the log.
func (g *Group) Barrier(ctx context.Context) error {
	return g.await(ctx, func() raft.Future { return g.raft.Barrier(0) }, notLeading)
}

// Term returns this replica's current term.
func (g *Group) Term() uint64 { return g.raft.CurrentTerm() }

// Applied returns the AppliedIndex of [Group.Status].
func (g *Group) Applied() uint64 { return g.raft.AppliedIndex() }

// Current reports whether this replica knows its leader and has applied all
// that was committed before that leader's term: an entry of the term is among
// what it has applied. A replica that is behind may know its leader from
// heartbeats alone.
func (g *Group) Current() bool {
	if _, leader := g.raft.LeaderWithID(); leader == "" {
		return false
	}
	var last raft.Log
	return g.log.GetLog(g.raft.AppliedIndex(), &last) == nil && last.Term == g.raft.CurrentTerm()
}

// VerifyLeader returns nil when a majority has confirmed that this replica
// leads in a term, in reply to heartbeats that were sent after the call. If a
// barrier has succeeded in that term, this replica has then applied every entry
// that was committed before the call. The errors are those of [Group.Barrier].
//
// Raft's own VerifyLeader accepts any reply, even one that was sent before the
// call, or that this process received before it was suspended. Here it only
// triggers heartbeats and detects the loss of leadership.
func (g *Group) VerifyLeader(ctx context.Context, term uint64) error {
	defer g.expediteHeartbeats()()
	began := time.Now()
	for {
		another := g.nextConfirmation()
		if err := g.await(ctx, g.raft.VerifyLeader, notLeading); err != nil {
			return err
		}
		if now := g.Term(); now != term {
			return notLeading(fmt.Errorf("term %d has ended, the current term is %d", term, now))
		}
		if g.confirmed(term, began) {
			return nil
		}
		// Raft has counted replies that were on their way, or, on a starved
		// node, replies that are only presumed. The real ones follow.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-another:
		case <-time.After(g.heartbeatTimeout / verifyAttempts):
		}
	}
}

// verifyAttempts is how often VerifyLeader sends heartbeats within a heartbeat
// timeout while none is answered.
const verifyAttempts = 10

// Ping returns when this replica's Raft loop has answered, whether it leads or
// not, when the group is closed, or when ctx ends.
func (g *Group) Ping(ctx context.Context) {
	// Only a leader can verify that it leads, but Raft answers in any state.
	_ = g.await(ctx, g.raft.VerifyLeader, notLeading)
}

// nextConfirmation returns a channel that is closed when a peer next confirms
// that this replica leads.
func (g *Group) nextConfirmation() <-chan struct{} {
	if g.network == nil {
		return nil
	}
	g.network.mu.Lock()
	defer g.network.mu.Unlock()
	return g.network.confirmation
}

// confirmed reports whether a majority has replied to heartbeats of a term that
// were sent at since or later.
func (g *Group) confirmed(term uint64, since time.Time) bool {
	voters, confirmed := 0, 0
	for _, r := range g.replicas() {
		if !r.Voter {
			continue
		}
		voters++
		if r.Name == g.node || g.network != nil && g.network.peer(raft.ServerID(r.Name)).confirmedSince(term, since) {
			confirmed++
		}
	}
	return confirmed > voters/2
}

// expediteHeartbeats sends heartbeats without delay until done is called.
func (g *Group) expediteHeartbeats() (done func()) {
	if g.network == nil {
		return func() {}
	}
	return g.network.expediteHeartbeats()
}

func notLeading(err error) error { return fmt.Errorf("%w: %w", ErrNotLeader, err) }

// await makes a request to raft and waits for its outcome. mapError maps raft's
// error.
func (g *Group) await(ctx context.Context, request func() raft.Future, mapError func(error) error) error {
	f := g.enqueue(request)
	if f == nil {
		return ErrClosed
	}
	done := make(chan error, 1)
	go func() { // ends when raft sets the outcome, in Close at the latest
		err := f.Error()
		g.outstanding.Add(-1)
		done <- err
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		if err != nil {
			return mapError(err)
		}
		return nil
	}
}

// enqueue makes a request to raft. It returns nil if the group is closed.
func (g *Group) enqueue(request func() raft.Future) raft.Future {
	if !g.beginEnqueue() {
		return nil
	}
	defer g.enqueueing.Done()
	g.outstanding.Add(1)
	return request()
}

// beginEnqueue counts a call in enqueueing, unless the group is closed.
func (g *Group) beginEnqueue() bool {
	g.closeMu.Lock()
	defer g.closeMu.Unlock()
	if !g.closed {
		g.enqueueing.Add(1)
	}
	return !g.closed
}

// Snapshot takes a snapshot now, if entries were applied since the last one.
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

// snapshotIfRunning is Snapshot for the snapshotter. It does nothing before
// raft is started, and returns ErrClosed once the group is closing.
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

// Trim removes the log's entries up to and including index through. It keeps
// the entries that raft needs: that of the last snapshot and those after it.
func (g *Group) Trim(through uint64) error {
	snap, err := snapshotStore{g.log.log}.load()
	if err != nil || snap.Index == 0 {
		return err
	}
	return g.log.trim(min(through, snap.Index-1))
}

// Behind returns a channel that is closed when the leader has trimmed entries
// that this replica lacks. The replica then receives no more entries: its owner
// closes it, calls [Fetch] and opens it again. Without a network the channel is
// nil.
func (g *Group) Behind() <-chan struct{} {
	if g.network == nil {
		return nil
	}
	return g.network.filter.behind
}

// Status is the state of a group as known to a replica.
type Status struct {
	Leader string // "" if none is known
	Term   uint64
	// State is "leader", "follower", "candidate" or "shutdown".
	State    string
	Replicas []Replica
	// CommitIndex is the newest entry known to be committed. AppliedIndex is
	// the newest that was passed to the FSM, which may still be applying it.
	// LastIndex is the newest entry in the log.
	CommitIndex, AppliedIndex, LastIndex uint64
}

// Replica is a member of the group.
type Replica struct {
	Name  string
	Voter bool
}

// Status returns the current state of the group, as known to this replica. It
// does not block.
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

// Close stops the replica and waits until it has stopped. Before that,
// proposals in progress get their outcome: a leader that can't commit them
// steps down, and their outcome is unknown. Close is idempotent.
func (g *Group) Close() error { return g.close(func() {}) }

// Abandon makes a leader step down that can't commit what was proposed, so that
// the proposals get their outcome, which is unknown. After that the replica
// does not lead again: it must be closed.
func (g *Group) Abandon() {
	if g.network != nil {
		g.network.endpoint.stopDialing()
	}
}

// CloseWithSnapshot takes a last snapshot and closes. The next start then
// replays little, and knows the commit index even if no other replica is
// running. A failure to take the snapshot is logged and not returned.
func (g *Group) CloseWithSnapshot() error { return g.close(g.takeLastSnapshot) }

// close stops accepting calls, waits until raft has answered those before,
// stops replication, calls last, and stops raft and the transport.
func (g *Group) close(last func()) error {
	g.closeOnce.Do(func() {
		g.closeMu.Lock()
		g.closed = true
		g.closeMu.Unlock()
		g.enqueueing.Wait()
		g.drainQueues()
		g.closing.Store(true)
		if g.network != nil {
			g.network.endpoint.stopDialing()
		}
		last()
		g.closeErr = errors.Join(g.raft.Shutdown().Error(), g.closeTransport())
		_ = g.log.writes.waitSynced(allEntries) // after this, nothing uses the log
	})
	return g.closeErr
}

// takeLastSnapshot takes a snapshot after replication has stopped. Raft rejects
// it during a leadership transfer, which it abandons after an election timeout,
// so takeLastSnapshot retries.
func (g *Group) takeLastSnapshot() {
	err := g.Snapshot()
	for since := time.Now(); errors.Is(err, raft.ErrLeadershipTransferInProgress) && time.Since(since) < 4*g.electionTimeout; err = g.Snapshot() {
		time.Sleep(lastSnapshotPause)
	}
	if err != nil {
		g.warn("no snapshot taken at close: the next start replays more entries", "err", err)
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

// drainTimeout is how long Close waits for proposals to commit.
const drainTimeout = 2 * time.Second

// drainQueues waits until raft has handled the requests in its queues, and the
// FSM the committed entries. Raft never answers those that are there when it
// shuts down.
func (g *Group) drainQueues() {
	if g.outstanding.Load() == 0 {
		return
	}
	if g.network != nil {
		// A leader without connections steps down, and so answers all requests.
		defer time.AfterFunc(drainTimeout, g.network.endpoint.stopDialing).Stop()
	}
	defer g.expediteHeartbeats()()
	// Raft has two queues. It has handled a queue when it answers a request at
	// the end of it.
	for errors.Is(g.raft.Barrier(0).Error(), raft.ErrLeadershipTransferInProgress) {
		time.Sleep(drainPause) // proposals from before the transfer may still commit
	}
	_ = g.raft.VerifyLeader().Error()
	// A leader that has stepped down may have passed committed entries to the
	// FSM's goroutine, which does not answer what it finds in its queue when
	// raft shuts down.
	for g.raft.Stats()["fsm_pending"] != "0" {
		time.Sleep(drainPause)
	}
}

// drainPause is the pause between two looks at what Close waits for.
const drainPause = 2 * time.Millisecond

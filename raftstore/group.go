package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// Group is one replica of a Raft group, running.
type Group struct {
	node      string
	log       *wal.Log
	raft      *raft.Raft
	transport raft.Transport
	closeOnce sync.Once
	closeErr  error
	behind    chan struct{}
	isBehind  sync.Once
	stopping  chan struct{} // closed when Close begins
	started   atomic.Pointer[raft.Raft]

	// entering is held by who puts something into raft's queue, and by Close
	// to wait for them; it guards closed.
	entering sync.RWMutex
	closed   bool
	// unsettled counts what is in raft's queue or log without an outcome.
	unsettled atomic.Int64
}

// Open starts the replica. It founds the group if the log is empty and voters
// are given, restores the FSM from the last marker, and returns; entries after
// the marker are applied once a leader is known. The error wraps [ErrFetching]
// for a log that was not fetched to its end.
func Open(opts Options) (*Group, error) {
	config, err := opts.config()
	if err != nil {
		return nil, err
	}
	if Fetching(opts.Log) {
		return nil, ErrFetching
	}
	g := &Group{node: opts.Node, log: opts.Log, behind: make(chan struct{}), stopping: make(chan struct{})}
	store := &logStore{log: opts.Log}
	marks := markers{log: opts.Log, behind: func() { g.isBehind.Do(func() { close(g.behind) }) }}
	if err := g.connect(opts, config); err != nil {
		return nil, err
	}
	if opts.Network != nil {
		store.catchUp = g.catchUp(opts.Network)
	}
	if err := foundGroup(config, store, marks, g.transport, opts.Voters); err != nil {
		return nil, errors.Join(err, g.disconnect())
	}
	if g.raft, err = raft.NewRaft(config, fsmAdapter{opts.FSM}, store, store, marks, g.transport); err != nil {
		return nil, errors.Join(fmt.Errorf("start raft: %w", err), g.disconnect())
	}
	g.started.Store(g.raft)
	return g, nil
}

// connect gives the group its way to the other replicas.
func (g *Group) connect(opts Options, config *raft.Config) error {
	if opts.Network == nil {
		_, g.transport = raft.NewInmemTransport(raft.ServerAddress(opts.Node))
		return nil
	}
	e, err := opts.Network.join(opts.ID, opts.Log)
	if err != nil {
		return err
	}
	g.transport = newTransport(e, config.Logger)
	return nil
}

func (g *Group) disconnect() error {
	if c, ok := g.transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// catchUp holds reads back that are made for followers which are behind, and
// no others: those when raft starts, and those of a follower.
func (g *Group) catchUp(n *Network) func(int) {
	return func(bytes int) {
		if r := g.started.Load(); r != nil && r.State() == raft.Leader {
			_ = n.waitCatchUp(bytes, g.stopping)
		}
	}
}

func foundGroup(c *raft.Config, store *logStore, marks markers, t raft.Transport, voters []string) error {
	has, err := raft.HasExistingState(store, store, marks)
	if err != nil || has || len(voters) == 0 {
		return err
	}
	var config raft.Configuration
	for _, v := range voters {
		config.Servers = append(config.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(v), Address: raft.ServerAddress(v),
		})
	}
	if err := raft.BootstrapCluster(c, store, store, marks, t, config); err != nil {
		return fmt.Errorf("found raft group: %w", err)
	}
	return nil
}

// Leadership tells when this replica begins and ceases to lead. It holds the
// newest change only.
func (g *Group) Leadership() <-chan bool { return g.raft.LeaderCh() }

// Leading tells whether this replica believes that it leads.
func (g *Group) Leading() bool { return g.raft.State() == raft.Leader }

// Propose puts an entry to the group. It does not wait for the outcome, but
// blocks while raft has many proposals waiting. Proposals made one after
// another are in the log in that order, if they are. data is the group's from
// then on.
func (g *Group) Propose(data []byte) Proposal {
	g.entering.RLock()
	defer g.entering.RUnlock()
	if g.closed {
		return Proposal{}
	}
	g.unsettled.Add(1)
	return Proposal{g, g.raft.Apply(data, 0)}
}

// Proposal is a proposed entry.
type Proposal struct {
	group  *Group
	future raft.ApplyFuture // nil if the group was closed
}

// Wait blocks until the entry is committed and applied here, and gives the
// FSM's result; or until it is known that it was not done ([ErrNotLeader],
// [ErrClosed], [wal.ErrNoSpace]) or can't be known ([ErrUnknown]). It is called
// once.
func (p Proposal) Wait() (result any, err error) {
	if p.future == nil {
		return nil, ErrClosed
	}
	err = p.future.Error()
	p.group.unsettled.Add(-1)
	if err != nil {
		return nil, outcome(err)
	}
	return p.future.Response(), nil
}

// Barrier returns nil when everything that was committed before is applied
// here and this replica leads. It blocks until then, until leadership is lost
// ([ErrNotLeader]), or until ctx ends, when the barrier itself goes on. After
// Close it gives [ErrClosed].
func (g *Group) Barrier(ctx context.Context) error {
	return g.await(ctx, func() raft.Future { return g.raft.Barrier(0) })
}

// VerifyLeader returns nil when a majority has confirmed, since the call,
// that this replica leads: what it has applied is then the latest. The errors
// are as of [Group.Barrier].
func (g *Group) VerifyLeader(ctx context.Context) error { return g.await(ctx, g.raft.VerifyLeader) }

func (g *Group) await(ctx context.Context, ask func() raft.Future) error {
	err := g.settle(ctx, ask)
	if err == nil || errors.Is(err, ErrClosed) || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNotLeader, err)
}

// settle puts a question to raft and waits for the answer, or for ctx's end.
func (g *Group) settle(ctx context.Context, ask func() raft.Future) error {
	f := g.ask(ask)
	if f == nil {
		return ErrClosed
	}
	done := make(chan error, 1)
	go func() { // ends when raft answers, at the latest in Close
		err := f.Error()
		g.unsettled.Add(-1)
		done <- err
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		return err
	}
}

// ask puts a question to raft; nil says that the group is closed.
func (g *Group) ask(question func() raft.Future) raft.Future {
	g.entering.RLock()
	defer g.entering.RUnlock()
	if g.closed {
		return nil
	}
	g.unsettled.Add(1)
	return question()
}

// Mark takes a marker now, if there is anything new.
func (g *Group) Mark() error {
	err := g.raft.Snapshot().Error()
	switch {
	case errors.Is(err, raft.ErrNothingNewToSnapshot):
		return nil
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	}
	return err
}

// Status is how a replica sees its group.
type Status struct {
	Leader string // "" if none is known
	Term   uint64
	// State is "leader", "follower", "candidate" or "shutdown".
	State    string
	Replicas []Replica
	// LastContact is when a leader was last heard of.
	LastContact time.Time
	// CommitIndex is the last entry known to be committed, AppliedIndex the
	// last that the FSM has, LastIndex the last of the log.
	CommitIndex, AppliedIndex, LastIndex uint64
}

// Replica is a member of the group.
type Replica struct {
	Name  string
	Voter bool
}

// Status gives how this replica sees the group now.
func (g *Group) Status() Status {
	_, leader := g.raft.LeaderWithID()
	s := Status{
		Leader: string(leader), Term: g.raft.CurrentTerm(), State: stateName(g.raft.State()), LastContact: g.raft.LastContact(),
		CommitIndex: g.raft.CommitIndex(), AppliedIndex: g.raft.AppliedIndex(), LastIndex: g.raft.LastIndex(),
	}
	if f := g.raft.GetConfiguration(); f.Error() == nil {
		for _, server := range f.Configuration().Servers {
			s.Replicas = append(s.Replicas, Replica{Name: string(server.ID), Voter: server.Suffrage == raft.Voter})
		}
	}
	return s
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

// Close stops the replica and waits for it. What was proposed before has its
// outcome first, which takes until a leader without a majority has noticed. It
// is idempotent.
func (g *Group) Close() error {
	g.closeOnce.Do(func() {
		g.entering.Lock()
		g.closed = true
		g.entering.Unlock()
		close(g.stopping)
		g.drain()
		if t, ok := g.transport.(*transport); ok {
			t.impatient()
		}
		stopped := g.raft.Shutdown()
		err := g.disconnect() // what waits for others must not hold it up
		g.closeErr = errors.Join(stopped.Error(), err)
	})
	return g.closeErr
}

// drain waits until raft has taken up what is in its queues: it never answers
// what is still in there when it shuts down.
func (g *Group) drain() {
	if g.unsettled.Load() == 0 {
		return
	}
	_ = g.raft.Barrier(0).Error() // both queues are first in, first out
	_ = g.raft.VerifyLeader().Error()
}

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// AddReplica adds a node's replica to the group as a nonvoter. It does nothing
// if the replica is already a member, voter or not. When it returns nil, the
// change is committed. The errors are [ErrNotLeader], [ErrUnknown],
// [ErrClosed], and ctx's if ctx ends first: the change may then still be made.
func (g *Group) AddReplica(ctx context.Context, node string) error {
	if _, member := g.member(node); member && g.Leading() {
		return g.awaitConfiguration(ctx)
	}
	if g.network != nil && g.Leading() { // it may be a new replica of an old name
		g.network.peer(raft.ServerID(node)).replaced()
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.AddNonvoter(raft.ServerID(node), raft.ServerAddress(node), 0, timeout)
	})
}

// Promote makes a member a voter. The member should have caught up: until it
// has, it counts in the size of a majority and can't be part of one. The errors
// are those of [Group.AddReplica], and one if the node is not a member.
func (g *Group) Promote(ctx context.Context, node string) error {
	r, member := g.member(node)
	switch {
	case member && r.Voter && g.Leading():
		return g.awaitConfiguration(ctx)
	case !member && g.Leading():
		return fmt.Errorf("promote %s: it is not a member of the group: add it first", node)
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.AddVoter(raft.ServerID(node), raft.ServerAddress(node), 0, timeout)
	})
}

// Demote makes a voter a nonvoter. A leader that demotes itself steps down. The
// errors are those of [Group.AddReplica].
func (g *Group) Demote(ctx context.Context, node string) error {
	if r, member := g.member(node); (!member || !r.Voter) && g.Leading() {
		return g.awaitConfiguration(ctx)
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.DemoteVoter(raft.ServerID(node), 0, timeout)
	})
}

// Remove removes a node's replica from the group. The replica may not learn of
// it. A leader that removes itself steps down. The errors are those of
// [Group.AddReplica].
func (g *Group) Remove(ctx context.Context, node string) error {
	if _, member := g.member(node); !member && g.Leading() {
		return g.awaitConfiguration(ctx)
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.RemoveServer(raft.ServerID(node), 0, timeout)
	})
}

// awaitConfiguration returns nil when the current configuration, which the
// caller has seen, is committed.
func (g *Group) awaitConfiguration(ctx context.Context) error { return g.Barrier(ctx) }

func (g *Group) member(node string) (Replica, bool) {
	all := g.replicas()
	i := slices.IndexFunc(all, func(r Replica) bool { return r.Name == node })
	if i < 0 {
		return Replica{}, false
	}
	return all[i], true
}

// changeTimeout is how long a membership change waits for the one before, if
// ctx has no deadline.
const changeTimeout = 30 * time.Second

// change makes a membership change. Raft makes one change at a time.
func (g *Group) change(ctx context.Context, request func(timeout time.Duration) raft.Future) error {
	timeout := changeTimeout
	if at, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(at), time.Millisecond)
	}
	return g.await(ctx, func() raft.Future { return request(timeout) }, proposalError)
}

// reachableTimeouts is the number of heartbeat timeouts within which a voter
// must have replied to be a transferee.
const reachableTimeouts = 2

// Transfer transfers leadership to a voter, or if to is "" to any voter that
// has replied recently. It returns nil when this replica no longer leads.
// Proposals are rejected until Transfer returns. If it fails, this replica
// still leads, unless the error is [ErrNotLeader].
func (g *Group) Transfer(ctx context.Context, to string) error {
	if !g.Leading() {
		return fmt.Errorf("%w: there is no leadership to transfer", ErrNotLeader)
	}
	candidates := []string{to}
	if to == "" {
		candidates = g.transferees()
	}
	errs := []error{}
	for _, node := range candidates {
		err := g.transferTo(ctx, node)
		if err == nil || !g.Leading() {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("transfer leadership to %s: %w", node, err))
	}
	if len(errs) == 0 {
		return errors.New("transfer leadership: no other voter can be reached")
	}
	return errors.Join(errs...)
}

// transferees returns the other voters that can be reached, the one with the
// latest contact first.
func (g *Group) transferees() []string {
	var names []string
	for _, r := range g.replicas() {
		if r.Voter && r.Name != g.node && g.Reachable(r.Name) {
			names = append(names, r.Name)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int {
		return int(g.lastContact(b) - g.lastContact(a))
	})
	return names
}

func (g *Group) lastContact(node string) int64 {
	if g.network == nil {
		return 0
	}
	return g.network.peer(raft.ServerID(node)).lastContact.Load()
}

// Reachable reports whether leadership can be transferred to a peer: it has
// replied recently and no request to it is being retried, as to one that takes
// no entries. Two attempts to transfer to another peer would make raft reject
// proposals permanently.
func (g *Group) Reachable(node string) bool {
	if g.network == nil {
		return false
	}
	since := time.Now().UnixNano() - g.lastContact(node)
	return since < int64(reachableTimeouts*g.heartbeatTimeout) && g.network.peer(raft.ServerID(node)).retrying.Load() == 0
}

func (g *Group) transferTo(ctx context.Context, node string) error {
	r, member := g.member(node)
	switch {
	case !member || !r.Voter:
		return errors.New("it is not a voter")
	case node == g.node:
		return errors.New("it is the leader")
	case !g.Reachable(node):
		return errors.New("it can't be reached")
	}
	g.network.transfers.Add(1)
	defer g.network.transfers.Add(-1)
	return g.await(ctx, func() raft.Future {
		return g.raft.LeadershipTransferToServer(raft.ServerID(node), raft.ServerAddress(node))
	}, func(err error) error { return err })
}

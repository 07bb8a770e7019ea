package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// AddReplica makes a node's replica a member without a vote; it is a no-op if
// it is one, with a vote or without. When this returns nil, the change is
// committed. The errors are [ErrNotLeader], [ErrUnknown], [ErrClosed], and
// ctx's when it ends first: the change may then still be made.
func (g *Group) AddReplica(ctx context.Context, node string) error {
	if _, member := g.member(node); member && g.Leading() {
		return g.awaitConfiguration(ctx)
	}
	if g.network != nil && g.Leading() { // it may be another node of that name
		g.network.peer(raft.ServerID(node)).acks.reset()
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.AddNonvoter(raft.ServerID(node), raft.ServerAddress(node), 0, timeout)
	})
}

// Promote gives a member the vote. It should have caught up: until then the
// group needs it for a majority and can't have it. The errors are as of
// [Group.AddReplica], and one if the node is no member.
func (g *Group) Promote(ctx context.Context, node string) error {
	r, member := g.member(node)
	switch {
	case member && r.Voter && g.Leading():
		return g.awaitConfiguration(ctx)
	case !member && g.Leading():
		return fmt.Errorf("promote %s: it is no replica of the group: add it first", node)
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.AddVoter(raft.ServerID(node), raft.ServerAddress(node), 0, timeout)
	})
}

// Demote takes a member's vote. A leader that demotes itself steps down. The
// errors are as of [Group.AddReplica].
func (g *Group) Demote(ctx context.Context, node string) error {
	if r, member := g.member(node); (!member || !r.Voter) && g.Leading() {
		return g.awaitConfiguration(ctx)
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.DemoteVoter(raft.ServerID(node), 0, timeout)
	})
}

// Remove takes a node's replica out of the group. It may not hear of it. A
// leader that removes itself steps down. The errors are as of
// [Group.AddReplica].
func (g *Group) Remove(ctx context.Context, node string) error {
	if _, member := g.member(node); !member && g.Leading() {
		return g.awaitConfiguration(ctx)
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.RemoveServer(raft.ServerID(node), 0, timeout)
	})
}

// settled returns nil when the newest configuration is committed: it may be
// what was looked at.
func (g *Group) awaitConfiguration(ctx context.Context) error { return g.Barrier(ctx) }

func (g *Group) member(node string) (Replica, bool) {
	all := g.replicas()
	i := slices.IndexFunc(all, func(r Replica) bool { return r.Name == node })
	if i < 0 {
		return Replica{}, false
	}
	return all[i], true
}

// changeTimeout is how long a change of members waits for the one before, if
// ctx doesn't say.
const changeTimeout = 30 * time.Second

// change makes a change of members. Raft takes one after another.
func (g *Group) change(ctx context.Context, ask func(timeout time.Duration) raft.Future) error {
	timeout := changeTimeout
	if at, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(at), time.Millisecond)
	}
	return g.await(ctx, func() raft.Future { return ask(timeout) }, proposalError)
}

// contactWithin is how many heartbeat timeouts ago a voter must have answered
// to be handed the leadership.
const reachableTimeouts = 2

// Transfer hands the leadership to a voter, or for "" to any one that has
// answered lately. It returns nil when this replica leads no more. Until it
// returns, proposals are turned away; if it fails, this replica goes on
// leading. The error is [ErrNotLeader] if it doesn't lead.
func (g *Group) Transfer(ctx context.Context, to string) error {
	if !g.Leading() {
		return fmt.Errorf("%w: there is nothing to hand over", ErrNotLeader)
	}
	candidates := []string{to}
	if to == "" {
		candidates = g.successors()
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
		errs = append(errs, fmt.Errorf("hand over to %s: %w", node, err))
	}
	if len(errs) == 0 {
		return errors.New("hand over: no other voter can be reached")
	}
	return errors.Join(errs...)
}

// successors gives the other voters that can be reached, who answered last
// first.
func (g *Group) successors() []string {
	var names []string
	for _, r := range g.replicas() {
		if r.Voter && r.Name != g.node && g.reachable(r.Name) {
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

// reachable tells whether a peer has answered lately, and nothing waits for it
// to do so. Raft would turn proposals away for ever if it were asked twice to
// hand over to one to which it can't send.
func (g *Group) reachable(node string) bool {
	if g.network == nil {
		return false
	}
	since := time.Now().UnixNano() - g.lastContact(node)
	return since < int64(reachableTimeouts*g.heartbeatTimeout) && g.network.peer(raft.ServerID(node)).blocked.Load() == 0
}

func (g *Group) transferTo(ctx context.Context, node string) error {
	r, member := g.member(node)
	switch {
	case !member || !r.Voter:
		return errors.New("it has no vote")
	case node == g.node:
		return errors.New("it leads")
	case !g.reachable(node):
		return errors.New("it can't be reached")
	}
	g.network.transfers.Add(1)
	defer g.network.transfers.Add(-1)
	return g.await(ctx, func() raft.Future {
		return g.raft.LeadershipTransferToServer(raft.ServerID(node), raft.ServerAddress(node))
	}, func(err error) error { return err })
}

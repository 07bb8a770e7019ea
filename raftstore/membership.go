package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// AddReplica makes a node's replica a member without a vote. It does nothing if
// the replica is a member already, with a vote or without. When it returns nil,
// the change is committed. The errors are [ErrNotLeader], [ErrUnknown],
// [ErrClosed], and ctx's if that ends first: the change may then still be made.
func (g *Group) AddReplica(ctx context.Context, node string) error {
	if _, member := g.member(node); member && g.Leading() {
		return g.awaitConfiguration(ctx)
	}
	if g.network != nil && g.Leading() { // this may be another node with that name
		g.network.peer(raft.ServerID(node)).replaced()
	}
	return g.change(ctx, func(timeout time.Duration) raft.Future {
		return g.raft.AddNonvoter(raft.ServerID(node), raft.ServerAddress(node), 0, timeout)
	})
}

// Promote makes a member a voter. The member should have caught up: until then
// the group needs it for a majority and can't have it. The errors are those of
// [Group.AddReplica], and one if the node is not a member.
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

// Demote takes a member's vote away. A leader that demotes itself steps down.
// The errors are those of [Group.AddReplica].
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

// awaitConfiguration returns nil when the newest configuration is committed:
// the caller has looked at one that may not be.
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
// ctx has no deadline.
const changeTimeout = 30 * time.Second

// change makes a change of members. Raft makes one after another.
func (g *Group) change(ctx context.Context, ask func(timeout time.Duration) raft.Future) error {
	timeout := changeTimeout
	if at, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(at), time.Millisecond)
	}
	return g.await(ctx, func() raft.Future { return ask(timeout) }, proposalError)
}

// reachableTimeouts is the number of heartbeat timeouts within which a voter
// must have replied to be a transferee.
const reachableTimeouts = 2

// Transfer transfers leadership to a voter, or for "" to any one that has
// replied lately. It returns nil when this replica no longer leads. Until it
// returns, proposals are rejected; if it fails, this replica goes on leading.
// The error is [ErrNotLeader] if it does not lead.
func (g *Group) Transfer(ctx context.Context, to string) error {
	if !g.Leading() {
		return fmt.Errorf("%w: there is no leadership to transfer", ErrNotLeader)
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
		errs = append(errs, fmt.Errorf("transfer leadership to %s: %w", node, err))
	}
	if len(errs) == 0 {
		return errors.New("transfer leadership: no other voter can be reached")
	}
	return errors.Join(errs...)
}

// successors returns the other voters that can be reached, latest contact
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

// reachable reports whether a peer has replied lately and no request to it is
// being retried. If raft were asked twice to transfer to a peer that it can't
// send to, it would reject proposals for good.
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

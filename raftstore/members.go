package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// memberTime bounds how long a change of members waits for raft to take it up.
const memberTime = 5 * time.Second

// AddReplica makes a node's replica a member of the group, without a vote. It
// does nothing if it is one. Like [Group.Promote], [Group.Demote] and
// [Group.Remove] it is for the leader, returns nil when the change is committed,
// and gives [ErrNotLeader], [ErrUnknown] or [ErrClosed]; when ctx ends first, the
// change goes on.
func (g *Group) AddReplica(ctx context.Context, node string) error {
	return g.change(ctx, func() raft.Future {
		return g.raft.AddNonvoter(raft.ServerID(node), raft.ServerAddress(node), 0, memberTime)
	})
}

// Promote gives a replica a vote.
func (g *Group) Promote(ctx context.Context, node string) error {
	return g.change(ctx, func() raft.Future {
		return g.raft.AddVoter(raft.ServerID(node), raft.ServerAddress(node), 0, memberTime)
	})
}

// Demote takes a replica's vote.
func (g *Group) Demote(ctx context.Context, node string) error {
	return g.change(ctx, func() raft.Future { return g.raft.DemoteVoter(raft.ServerID(node), 0, memberTime) })
}

// Remove takes a replica out of the group.
func (g *Group) Remove(ctx context.Context, node string) error {
	return g.change(ctx, func() raft.Future { return g.raft.RemoveServer(raft.ServerID(node), 0, memberTime) })
}

// Transfer hands leadership over to a node, or, for "", to the replica that has
// most. When it returns nil this one does not lead any more. The errors are as of
// [Group.AddReplica].
func (g *Group) Transfer(ctx context.Context, to string) error {
	if t, ok := g.transport.(*transport); ok {
		t.impatient()
		defer t.patient()
	}
	return g.change(ctx, func() raft.Future {
		if to == "" {
			return g.raft.LeadershipTransfer()
		}
		return g.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
	})
}

func (g *Group) change(ctx context.Context, ask func() raft.Future) error {
	err := g.settle(ctx, ask)
	if err == nil || errors.Is(err, ErrClosed) || ctx.Err() != nil {
		return err
	}
	return outcome(err)
}

// Behind is closed when the leader's log does not reach back to the end of this
// one: the replica gets nothing more until its log was fetched. The owner
// closes the group, calls [Fetch] and opens it again.
func (g *Group) Behind() <-chan struct{} { return g.behind }

// Trim removes the entries up to and including index through, or up to the
// last marker, behind which a restart begins. Raft sends entries before that to
// nobody any more. The errors are as of [wal.Log.TrimHead].
func (g *Group) Trim(through uint64) error {
	k, err := markers{log: g.log}.load()
	if err != nil {
		return err
	}
	last := g.log.LastIndex()
	if through = min(through, k.Index, max(last, 1)-1); through == 0 {
		return nil
	}
	if err := g.log.TrimHead(through); err != nil {
		return fmt.Errorf("trim group of %s: %w", g.node, err)
	}
	return nil
}

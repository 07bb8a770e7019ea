package raftstore

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// A node whose process has died says so, in a way: the system closes its
// connections and refuses new ones. Whoever followed it need not wait for the
// heartbeat timeout, and then for all others to have waited too. A node that is
// silent for another reason (cut off, frozen, its machine gone) is found by
// the timeouts, as ever. Which of the followers stands is for speed only: Raft
// decides who is elected.

// staggerShare is which share of a heartbeat timeout followers let each other go
// first.
const staggerShare = 5

// lost is told that the connection broke over which a node has sent heartbeats.
func (n *Network) heartbeatConnEnded(node string) {
	if n.hasHeartbeatConn(node) || !n.peers.PortClosed(n.ctx, node) || n.hasHeartbeatConn(node) {
		return
	}
	n.mu.Lock()
	all := slices.Collect(maps.Values(n.groups))
	n.mu.Unlock()
	for _, e := range all {
		n.running.Go(func() { e.leaderGone(node) })
	}
}

// hears tells whether a node has a connection for its heartbeats.
func (n *Network) hasHeartbeatConn(node string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heartbeatConns[node] > 0
}

// orphaned has this replica stand for election if its group's leader was on a
// node that is gone. Those of a group's voters that are left do so one after
// another, beginning with another one in each group, until somebody leads.
func (e *endpoint) leaderGone(gone string) {
	g := e.group.Load()
	if g == nil {
		return
	}
	var voters []string
	for _, r := range g.replicas() {
		if r.Voter && r.Name != gone {
			voters = append(voters, r.Name)
		}
	}
	slices.Sort(voters)
	i := slices.Index(voters, g.node)
	if i < 0 || g.Halted() != nil || !g.follows(gone) {
		return
	}
	turn := (i + int(e.id)) % len(voters)
	select {
	case <-e.open.Done():
		return
	case <-time.After(time.Duration(turn) * g.heartbeatTimeout / staggerShare):
	}
	if g.follows(gone) && !e.network.hasHeartbeatConn(gone) {
		g.info("the leader's process is gone: standing for election", "leader", gone)
		g.campaign(e.open)
	}
}

// follows tells whether this replica takes a node for the leader.
func (g *Group) follows(node string) bool {
	_, leader := g.raft.LeaderWithID()
	return string(leader) == node && g.raft.State() == raft.Follower
}

// stand begins an election, as if the leader had asked for it when it hands over.
func (g *Group) campaign(ctx context.Context) {
	rpc := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: make(chan raft.RPCResponse, 1),
	}
	select {
	case <-ctx.Done():
	case g.network.filter.out <- rpc:
	}
}

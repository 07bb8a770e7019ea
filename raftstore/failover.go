package raftstore

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// When a process dies, its system closes its connections and refuses new ones.
// Its followers use that: they need not wait for the heartbeat timeout, and
// then for all of them to have waited.
//
// A follower learns of it when the last connection breaks on which the node
// sent heartbeats. It probes the node's port; if that is closed
// (peernet.Network.PortClosed), each group whose leader was on the node
// campaigns. The voters that are left do so one after another, a share of the
// heartbeat timeout apart, until one of them leads; the order differs between
// groups. A node that is silent for another reason (cut off, frozen, its
// machine gone) is found by the timeouts, as always.
//
// All this is for speed only: Raft decides who is elected.

// staggerShare divides the heartbeat timeout: followers campaign one after
// another, heartbeatTimeout/staggerShare apart.
const staggerShare = 5

// heartbeatConnEnded handles the end of a connection on which a node has sent
// heartbeats.
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

// hasHeartbeatConn reports whether a node has a connection open for its
// heartbeats.
func (n *Network) hasHeartbeatConn(node string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heartbeatConns[node] > 0
}

// leaderGone has this replica campaign, when its turn comes, if the leader of
// its group was on a node whose process is gone and no other leader is known by
// then.
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

// follows reports whether this replica takes a node for the leader.
func (g *Group) follows(node string) bool {
	_, leader := g.raft.LeaderWithID()
	return string(leader) == node && g.raft.State() == raft.Follower
}

// campaign begins an election, as if the leader had transferred its leadership
// to this replica.
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

package raftstore

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// When a process dies, its operating system closes its connections and refuses
// new ones. The followers of its leaders detect that, and elect a new leader
// without waiting for the heartbeat timeout.
//
// A follower checks a node when the last connection on which the node sent
// heartbeats breaks. It probes the node's port. If the port is closed
// (peernet.Network.PortClosed), each group whose leader was on the node
// campaigns. The remaining voters do so one after another, a fraction of the
// heartbeat timeout apart, until one of them leads; the order differs between
// groups. If the node is silent for another reason (partitioned, frozen, its
// machine is down), Raft's timeouts apply as usual.
//
// The probe runs on the goroutine of the connection's handler, and the wait for
// a voter's turn on one goroutine for each group. Both end when the network is
// closed, the latter also when the group is.
//
// All this only makes a failover faster: Raft decides which replica is elected.

// staggerFraction divides the heartbeat timeout: voters campaign one after
// another, heartbeatTimeout/staggerFraction apart.
const staggerFraction = 5

// heartbeatConnEnded is called when a connection on which a node has sent
// heartbeats has ended.
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

// hasHeartbeatConn reports whether a node has an open connection to this one
// for its heartbeats.
func (n *Network) hasHeartbeatConn(node string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heartbeatConns[node] > 0
}

// leaderGone is called after the process of a node has died. If the group's
// leader was on the node, leaderGone waits for this replica's turn, and starts
// an election if no other leader is known by then.
func (e *endpoint) leaderGone(node string) {
	g := e.group.Load()
	if g == nil {
		return
	}
	var voters []string
	for _, r := range g.replicas() {
		if r.Voter && r.Name != node {
			voters = append(voters, r.Name)
		}
	}
	slices.Sort(voters)
	i := slices.Index(voters, g.node)
	if i < 0 || g.Halted() != nil || !g.follows(node) {
		return
	}
	turn := (i + int(e.id)) % len(voters)
	select {
	case <-e.ctx.Done():
		return
	case <-time.After(time.Duration(turn) * g.heartbeatTimeout / staggerFraction):
	}
	if g.follows(node) && !e.network.hasHeartbeatConn(node) {
		if ok, withheld := e.network.ended.due(node, time.Now()); ok {
			g.info("a leader's process has ended: its groups start elections", "node", node, "not_logged_before", withheld)
		}
		g.campaign(e.ctx)
	}
}

// follows reports whether this replica follows a leader on a node.
func (g *Group) follows(node string) bool {
	_, leader := g.raft.LeaderWithID()
	return string(leader) == node && g.raft.State() == raft.Follower
}

// campaign starts an election, in the way in which a leader has a transferee
// start one.
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

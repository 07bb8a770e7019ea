package raftstore

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// A standalone replica, one without a network, has no peers, so it does not
// need raft's timeouts: it starts an election when it is opened, and again
// after it has stepped down, as it does when it can't store entries. Its
// timeouts are long, so that raft does not wake idle groups.

// campaignRetry is how long a standalone replica waits before it starts another
// election.
const campaignRetry = time.Second

// leadStandalone makes a standalone replica lead whenever it can.
func (g *Group) leadStandalone() {
	if !slices.Contains(g.replicas(), Replica{Name: g.node, Voter: true}) {
		return
	}
	g.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if state, ok := o.Data.(raft.RaftState); ok && state == raft.Follower {
			time.AfterFunc(campaignRetry, g.campaignStandalone)
		}
		return false
	}))
	g.campaignStandalone()
}

// campaignStandalone starts an election, unless the replica leads. The replica
// sends itself the request that a leader sends to a transferee.
func (g *Group) campaignStandalone() {
	if g.closing.Load() || g.Leading() {
		return
	}
	address, caller := raft.NewInmemTransport("")
	defer caller.Close()
	self := g.inmem.LocalAddr()
	caller.Connect(self, g.inmem)
	request := raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(g.node), Addr: g.inmem.EncodePeer(raft.ServerID(g.node), address),
	}}
	if err := caller.TimeoutNow(raft.ServerID(g.node), self, &request, &raft.TimeoutNowResponse{}); err != nil && !g.closing.Load() {
		g.warn("the replica could not start an election: retrying", "err", err)
		time.AfterFunc(campaignRetry, g.campaignStandalone)
	}
}

package raftstore

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// A standalone replica, one without a network, has no peer to wait for or to
// lose, so it does not depend on raft's timeouts: it campaigns when it is
// opened, and again when it has stepped down, as it does when it can't store.
// Its timeouts are long, because all that raft would do on them is wake each
// group to find that nothing has changed.

// campaignRetry is how long a standalone replica waits before it campaigns
// again.
const campaignRetry = time.Second

// leadStandalone has a standalone replica lead whenever it can.
func (g *Group) leadStandalone() {
	if !slices.Contains(g.replicas(), Replica{Name: g.node, Voter: true}) {
		return
	}
	g.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if state, is := o.Data.(raft.RaftState); is && state == raft.Follower {
			time.AfterFunc(campaignRetry, g.campaignStandalone)
		}
		return false
	}))
	g.campaignStandalone()
}

// campaignStandalone has a standalone replica stand for election, unless it
// leads. It sends itself the request with which a leader transfers its
// leadership.
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
		g.warn("the replica could not stand for election: retrying", "err", err)
		time.AfterFunc(campaignRetry, g.campaignStandalone)
	}
}

package raftstore

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A replica starts an election because its leader's process has ended. Another
// one wins that term, and is gone after a heartbeat. The replica votes for the
// third one, which has the longer log: nobody else can lead.
func TestACandidateForgetsALeader(t *testing.T) {
	g, _ := isolated(t, time.Second, "n1", "n2", "n3")
	n := g.network.endpoint.network
	before := g.Term()
	g.campaign(t.Context())
	eventually(t, "the replica starts an election", func() bool { return g.raft.State() == raft.Candidate && g.Term() > before })
	term := g.Term()
	if a := n.handleInMain(1, "n2", 1, term); len(a) != heartbeatReplySize || a[4] != heartbeatAccepted {
		t.Fatalf("the reply to the heartbeat is %x", a)
	}
	if _, leader := g.raft.LeaderWithID(); leader != "n2" || g.raft.State() != raft.Candidate || g.Term() != term {
		t.Fatalf("the replica is a %v in term %d, and knows the leader %q", g.raft.State(), g.Term(), leader)
	}
	eventually(t, "the replica votes for n3", func() bool {
		q := &raft.RequestPreVoteRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("n3"), Addr: []byte("n3")},
			Term:      g.Term() + 1, LastLogIndex: 100, LastLogTerm: term,
		}
		answered := make(chan raft.RPCResponse, 1)
		g.network.filter.pass(raft.RPC{Command: q, RespChan: answered})
		a := within(t, "the vote is answered", answered)
		vote, ok := a.Response.(*raft.RequestPreVoteResponse)
		return ok && vote.Granted
	})
}

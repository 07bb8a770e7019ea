package raftstore

import (
	"testing"

	"github.com/hashicorp/raft"
)

// TestALateReplyDoesNotBlameANewReplica replaces a peer while requests to it are under
// way. The new replica of that name has nothing, and answers the old one's requests.
func TestALateReplyDoesNotBlameANewReplica(t *testing.T) {
	told := 0
	tr := &transport{peers: map[raft.ServerID]*peer{}, peerLostEntries: func(string, uint64, uint64) { told++ }}
	p := tr.peer("n1")
	old := p.acks.Load()
	old.record(1, 16)
	p.replaced()
	if err := tr.reportLoss("n1", p, old, 0, 16); err == nil {
		t.Error("the request has no error")
	}
	old.record(1, 17)
	old.recordPipeline(1)
	had, err := p.acks.Load().beforeRequest(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 20})
	if told > 0 || had > 0 || err != nil {
		t.Errorf("told %d times, had entry %d, %v", told, had, err)
	}
}

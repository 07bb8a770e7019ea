package raftstore

import (
	"testing"

	"github.com/hashicorp/raft"
)

// A peer is replaced while requests to it are in flight. The new replica of the
// same name has no entries, and answers the requests. The leader does not
// report a loss.
func TestALateReplyReportsNoLossOfANewReplica(t *testing.T) {
	reports := 0
	tr := &transport{peers: map[raft.ServerID]*peer{}, peerLostEntries: func(string, uint64, uint64) { reports++ }}
	p := tr.peer("n1")
	old := p.acks.Load()
	old.record(1, 16)
	p.replaced()
	if err := tr.reportLoss("n1", p, old, 0, 16); err == nil {
		t.Error("reportLoss returns no error")
	}
	old.record(1, 17)
	old.recordPipeline(1)
	had, err := p.acks.Load().beforeRequest(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 20})
	if reports > 0 || had > 0 || err != nil {
		t.Errorf("%d reports, acknowledged up to entry %d, %v", reports, had, err)
	}
}

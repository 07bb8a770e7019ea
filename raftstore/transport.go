package raftstore

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// patience is how long entries for a replica that is away are held before
	// raft hears of it. Raft answers each failure with a longer pause, up to
	// ten seconds, and a node that comes back would wait as long.
	patience = time.Minute
	// retryEvery is how often a replica that is away is tried meanwhile.
	retryEvery = 50 * time.Millisecond
	// rpcTime bounds a request to another replica.
	rpcTime = 10 * time.Second
)

// transport is raft's way to the other replicas of a group.
type transport struct {
	*raft.NetworkTransport

	// mu guards what follows.
	mu      sync.Mutex
	hurried int           // how many want nobody to wait
	hurry   chan struct{} // closed while there are any
}

func newTransport(e *endpoint, logger hclog.Logger) *transport {
	return &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: e, MaxPool: 3, Timeout: rpcTime, Logger: logger, MaxRPCsInFlight: rpcsInFlight,
		}),
		hurry: make(chan struct{}),
	}
}

// AppendEntries sends entries, and waits for a replica that can't be reached to
// come back. Heartbeats fail at once.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	deadline := time.Now().Add(patience)
	for {
		err := t.NetworkTransport.AppendEntries(id, target, args, resp)
		if err == nil || isHeartbeat(args) || !errors.Is(err, errAway) || time.Now().After(deadline) {
			return err
		}
		*resp = raft.AppendEntriesResponse{}
		select {
		case <-t.hurrying():
			return err
		case <-time.After(retryEvery):
		}
	}
}

// isHeartbeat is how raft tells, too.
func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return len(a.Entries) == 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && a.LeaderCommitIndex == 0
}

// impatient has requests fail, until patient, that would wait: a transfer of
// leadership would wait for them.
func (t *transport) impatient() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hurried++; t.hurried == 1 {
		close(t.hurry)
	}
}

func (t *transport) patient() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hurried--; t.hurried == 0 {
		t.hurry = make(chan struct{})
	}
}

func (t *transport) hurrying() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hurry
}

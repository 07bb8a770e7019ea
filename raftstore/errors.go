package raftstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/raftstore/peernet"
	"github.com/cantuslog/cantus/wal"
)

var (
	// ErrNotLeader is returned when this replica does not lead, and what was
	// asked was not done.
	ErrNotLeader = errors.New("raftstore: not the leader")
	// ErrUnknown is returned when leadership or the storage was lost after
	// the proposal: it may or may not become committed.
	ErrUnknown = errors.New("raftstore: outcome unknown")
	// ErrClosed is returned after Close. Nothing was done.
	ErrClosed = errors.New("raftstore: closed")
	// ErrFetching is returned when a log is opened that a fetch has begun on
	// and not ended, or that was reset: call Fetch.
	ErrFetching = errors.New("raftstore: the log is being fetched")
	// ErrRefused is returned when a peer refuses a connection, and says why.
	ErrRefused = peernet.ErrRefused
	// ErrHalted is returned by a replica that takes no part in its group.
	ErrHalted = errors.New("raftstore: the replica is halted")
	// ErrCommittedCut is why a replica has halted by itself: it was to give up
	// entries that it knows to be committed.
	ErrCommittedCut = errors.New("raftstore: committed entries would be cut")
	// ErrTermBack is why a replica has halted by itself: a term or vote that it
	// has stored was to be followed by an older one.
	ErrTermBack = errors.New("raftstore: a stored term would go back")
	// ErrStale is returned when the replica that a log is fetched from may lack
	// what this one has acknowledged before: fetch from the leader, or later.
	ErrStale = errors.New("raftstore: the other replica is not up to date")
)

// outcome maps an error of raft's on a proposal to one of ours. What is not
// known for sure to have been turned away counts as unknown. A leader stores
// an entry before it sends it to anybody: one that found no room is nowhere.
func proposalError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, wal.ErrNoSpace):
		return err
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}

package raftstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/raftstore/peernet"
	"github.com/cantuslog/cantus/wal"
)

var (
	// ErrNotLeader is returned when this replica does not lead. Nothing was
	// done.
	ErrNotLeader = errors.New("raftstore: not the leader")
	// ErrUnknown is returned when leadership or the storage was lost after the
	// proposal: the entry may or may not be committed.
	ErrUnknown = errors.New("raftstore: outcome unknown")
	// ErrClosed is returned after Close. Nothing was done.
	ErrClosed = errors.New("raftstore: closed")
	// ErrFetching is returned by Open for a log whose fetch has begun and not
	// ended, or that was reset: call Fetch.
	ErrFetching = errors.New("raftstore: the log is being fetched")
	// ErrRefused is returned when a peer refuses a connection. The error's text
	// says why.
	ErrRefused = peernet.ErrRefused
	// ErrHalted is returned by a replica that takes no part in its group.
	ErrHalted = errors.New("raftstore: the replica is halted")
	// ErrCommittedCut is a reason why a replica has halted by itself: a leader
	// would have had it remove entries that it knows to be committed.
	ErrCommittedCut = errors.New("raftstore: committed entries would be cut")
	// ErrTermBack is a reason why a replica has halted by itself: a term or vote
	// that it has stored would have been followed by an older one.
	ErrTermBack = errors.New("raftstore: a stored term would go back")
	// ErrStale is returned by Fetch when the other replica may lack what this one
	// has acknowledged before: fetch from the leader, or later.
	ErrStale = errors.New("raftstore: the other replica is not up to date")
)

// proposalError maps an error of raft on a proposal to one of this package. An
// outcome is unknown unless the proposal was certainly rejected. A leader
// stores an entry before it sends it to anybody: an entry for which it had no
// room is nowhere.
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

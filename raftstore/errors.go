package raftstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/raftstore/peernet"
	"github.com/cantuslog/cantus/wal"
)

var (
	// ErrNotLeader is returned if this replica does not lead. Nothing was done.
	ErrNotLeader = errors.New("raftstore: not the leader")
	// ErrUnknown is returned if this replica lost the leadership, or its
	// storage failed, after the proposal. The entry may or may not be
	// committed.
	ErrUnknown = errors.New("raftstore: outcome unknown")
	// ErrClosed is returned after Close. Nothing was done.
	ErrClosed = errors.New("raftstore: closed")
	// ErrFetching is returned by Open if a fetch of the log has begun and not
	// ended, or if the log was reset: call Fetch.
	ErrFetching = errors.New("raftstore: the log is being fetched")
	// ErrRefused is returned when a peer refuses a connection. The error's text
	// contains the reason.
	ErrRefused = peernet.ErrRefused
	// ErrHalted is returned by a replica that is halted.
	ErrHalted = errors.New("raftstore: the replica is halted")
	// ErrCommittedCut is the reason of a replica that halted itself because a
	// leader had it remove entries that it knows to be committed.
	ErrCommittedCut = errors.New("raftstore: committed entries would be removed")
	// ErrTermBack is the reason of a replica that halted itself because raft
	// replaced a stored term, or the term of a stored vote, by a lower one.
	ErrTermBack = errors.New("raftstore: a stored term would decrease")
	// ErrStale is returned by Fetch if the other replica may lack entries that
	// this one has acknowledged: fetch from the leader, or later.
	ErrStale = errors.New("raftstore: the other replica is not up to date")
)

// proposalError maps raft's error for a proposal to one of this package. The
// outcome is unknown unless the proposal was certainly rejected. A leader
// stores an entry before it sends it to any follower, so an entry that it had
// no room for is on no replica.
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

package raftstore

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// SoleVoter makes the replica with this log the only member of its group,
// without the others: they are lost. It appends a configuration that says so,
// and then record, which the FSM is to apply, unless that is nil. Both are of a
// term that the log has not seen. Every entry before them counts as committed
// as soon as the replica leads, which it does alone.
//
// What another replica has that this one has not is lost, and so is the
// protection against two histories: the others must never take part again as
// they are. The log must not be in use. When SoleVoter returns nil the change
// is durable; after an error or a crash it is made or not, as a whole. The
// errors to test for are [ErrFetching] and those of [wal.Log.Append].
func SoleVoter(log *wal.Log, node string, record []byte) error {
	if Fetching(log) {
		return ErrFetching
	}
	return appendSoleVoter(log, node, record)
}

func appendSoleVoter(log *wal.Log, node string, record []byte) error {
	term := max(storedTerm(log), lastTerm(log)) + 1
	if err := log.SetMeta(wal.Meta{Name: stablePrefix + keyTerm, Value: binary.BigEndian.AppendUint64(nil, term)}); err != nil {
		return fmt.Errorf("store the term: %w", err)
	}
	config := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(node), Address: raft.ServerAddress(node)}}}
	next := log.LastIndex() + 1
	entries := []wal.Entry{{Index: next, Term: term, Type: uint8(raft.LogConfiguration), Data: raft.EncodeConfiguration(config)}}
	if record != nil {
		entries = append(entries, wal.Entry{Index: next + 1, Term: term, Type: uint8(raft.LogCommand), Data: record})
	}
	return log.Append(entries...)
}

// BeginEmpty deletes what is in the log and makes its replica the only member
// of its group, which has no entries then. The log must not be in use. When
// BeginEmpty returns nil the change is durable; after an error or a crash, call
// it again.
func BeginEmpty(log *wal.Log, node string) error {
	if err := reset(log); err != nil {
		return fmt.Errorf("reset log: %w", err)
	}
	if err := appendSoleVoter(log, node, nil); err != nil {
		return err
	}
	return log.SetMeta(wal.Meta{Name: metaFetching})
}

// LastSnapshot returns the index of the log's last snapshot, up to which its
// entries are known to be committed, and the FSM's state there. Without a
// snapshot the index is 0.
func LastSnapshot(log *wal.Log) (index uint64, state []byte, err error) {
	snap, err := snapshotStore{log}.load()
	return snap.Index, snap.State, err
}

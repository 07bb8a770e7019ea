package raftstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/wal"
)

// metaSnapshot is the key of the snapshot in the log's small state, and in the
// header of a fetch.
const metaSnapshot = "marker"

// storedSnapshot is a snapshot in its stored form.
type storedSnapshot struct {
	Index       uint64             `json:"index"`
	Term        uint64             `json:"term"`
	Config      raft.Configuration `json:"config"`
	ConfigIndex uint64             `json:"config_index"`
	State       []byte             `json:"state"`
}

// snapshotStore is raft's SnapshotStore. It holds only the newest snapshot, in
// the log's small state.
type snapshotStore struct{ log *wal.Log }

// load returns the snapshot, or the zero value if there is none.
func (s snapshotStore) load() (storedSnapshot, error) {
	var snap storedSnapshot
	v := s.log.Meta(metaSnapshot)
	if v == nil {
		return snap, nil
	}
	if err := json.Unmarshal(v, &snap); err != nil {
		return snap, fmt.Errorf("%w: snapshot: %w", wal.ErrDamaged, err)
	}
	return snap, nil
}

func (snap storedSnapshot) meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: metaSnapshot, Index: snap.Index, Term: snap.Term,
		Configuration: snap.Config, ConfigurationIndex: snap.ConfigIndex, Size: int64(len(snap.State)),
	}
}

func (s snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	snap, err := s.load()
	if err != nil || snap.Index == 0 {
		return nil, err
	}
	return []*raft.SnapshotMeta{snap.meta()}, nil
}

func (s snapshotStore) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	snap, err := s.load()
	if err != nil {
		return nil, nil, err
	}
	return snap.meta(), io.NopCloser(bytes.NewReader(snap.State)), nil
}

func (s snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, config raft.Configuration,
	configIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &snapshotSink{log: s.log, snapshot: storedSnapshot{Index: index, Term: term, Config: config, ConfigIndex: configIndex}}, nil
}

// snapshotSink receives the FSM's state and stores the snapshot when it is
// closed.
type snapshotSink struct {
	log      *wal.Log
	snapshot storedSnapshot
	state    bytes.Buffer
	// local means that this replica's FSM has made the snapshot. Another
	// replica's is rejected, since the log may lack the entries before it.
	local bool
	// metas are stored atomically with the snapshot.
	metas  []wal.Meta
	closed bool
}

func (s *snapshotSink) ID() string { return metaSnapshot }

func (s *snapshotSink) Write(p []byte) (int, error) {
	if !s.local {
		return 0, errForeignSnapshot
	}
	return s.state.Write(p)
}

func (s *snapshotSink) Cancel() error {
	s.closed = true
	return nil
}

func (s *snapshotSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if !s.local {
		return errForeignSnapshot
	}
	if have, err := (snapshotStore{s.log}).load(); err == nil {
		invariant.SnapshotRises.Check(s.snapshot.Index >= have.Index, s.snapshot.Index, have.Index)
	}
	s.snapshot.State = s.state.Bytes()
	v, err := json.Marshal(s.snapshot)
	if err != nil {
		return fmt.Errorf("encode snapshot: %w", err)
	}
	return s.log.SetMeta(append(s.metas, wal.Meta{Name: metaSnapshot, Value: v})...)
}

var (
	errForeignSink     = errors.New("raftstore: the sink is not one of the group's own store")
	errForeignSnapshot = errors.New("raftstore: another replica's snapshot can't be installed without its log")
)

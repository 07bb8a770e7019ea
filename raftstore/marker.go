package raftstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

const metaMarker = "marker"

// marker is a snapshot as it is stored: the newest one replaces the last.
type marker struct {
	Index       uint64             `json:"index"`
	Term        uint64             `json:"term"`
	Config      raft.Configuration `json:"config"`
	ConfigIndex uint64             `json:"config_index"`
	State       []byte             `json:"state"`
}

// markers is raft's SnapshotStore: it holds one marker, in the log's small
// state.
type markers struct{ log *wal.Log }

func (m markers) load() (marker, error) {
	var k marker
	v := m.log.Meta(metaMarker)
	if v == nil {
		return k, nil
	}
	if err := json.Unmarshal(v, &k); err != nil {
		return k, fmt.Errorf("%w: marker: %w", wal.ErrDamaged, err)
	}
	return k, nil
}

func (k marker) meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: metaMarker, Index: k.Index, Term: k.Term,
		Configuration: k.Config, ConfigurationIndex: k.ConfigIndex, Size: int64(len(k.State)),
	}
}

func (m markers) List() ([]*raft.SnapshotMeta, error) {
	k, err := m.load()
	if err != nil || k.Index == 0 {
		return nil, err
	}
	return []*raft.SnapshotMeta{k.meta()}, nil
}

func (m markers) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	k, err := m.load()
	if err != nil {
		return nil, nil, err
	}
	return k.meta(), io.NopCloser(bytes.NewReader(k.State)), nil
}

func (m markers) Create(_ raft.SnapshotVersion, index, term uint64, config raft.Configuration,
	configIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &markerSink{log: m.log, marker: marker{Index: index, Term: term, Config: config, ConfigIndex: configIndex}}, nil
}

// markerSink takes the FSM's bytes and stores the marker when it is closed.
type markerSink struct {
	log    *wal.Log
	marker marker
	state  bytes.Buffer
	// own says that this replica's FSM made the marker: another one's would
	// come without the entries before it.
	own bool
	// metas are stored with the marker, all or none.
	metas  []wal.Meta
	closed bool
}

func (s *markerSink) ID() string { return metaMarker }

func (s *markerSink) Write(p []byte) (int, error) {
	if !s.own {
		return 0, errForeignMarker
	}
	return s.state.Write(p)
}

func (s *markerSink) Cancel() error {
	s.closed = true
	return nil
}

func (s *markerSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if !s.own {
		return errForeignMarker
	}
	s.marker.State = s.state.Bytes()
	v, err := json.Marshal(s.marker)
	if err != nil {
		return fmt.Errorf("encode marker: %w", err)
	}
	return s.log.SetMeta(append(s.metas, wal.Meta{Name: metaMarker, Value: v})...)
}

var (
	errForeignSink   = errors.New("raftstore: a marker goes into its own store only")
	errForeignMarker = errors.New("raftstore: another replica's marker is no state without its log")
)

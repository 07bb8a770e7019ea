package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// logStore is raft's LogStore and StableStore over a log of package wal.
type logStore struct {
	log *wal.Log

	// mu guards term, the value of a term that could not be stored, nil if it
	// was. Nothing else is stored before it is.
	mu   sync.Mutex
	term []byte

	// cutting is held by who shortens the log.
	cutting sync.Mutex
}

func (s *logStore) FirstIndex() (uint64, error) { return s.log.FirstIndex(), nil }
func (s *logStore) LastIndex() (uint64, error)  { return s.log.LastIndex(), nil }

// GetLog must give raft.ErrLogNotFound itself, unwrapped: raft compares.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	e, err := s.log.Entry(index)
	if errors.Is(err, wal.ErrNotFound) {
		return raft.ErrLogNotFound
	}
	if err != nil {
		return err
	}
	*l = raft.Log{Index: e.Index, Term: e.Term, Type: raft.LogType(e.Type), Data: e.Data, Extensions: e.Extensions}
	if e.AppendedAt != 0 {
		l.AppendedAt = time.Unix(0, e.AppendedAt)
	}
	return nil
}

func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// storeAtOnce is about how many bytes are stored at once: they must fit into
// a segment of the journal.
const storeAtOnce = 24 << 20

// StoreLogs stores entries, at once unless they are very large.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if err := s.oweTerm(); err != nil {
		return err
	}
	entries, bytes := make([]wal.Entry, 0, len(logs)), 0
	for i, l := range logs {
		e := wal.Entry{Index: l.Index, Term: l.Term, Type: uint8(l.Type), Data: l.Data, Extensions: l.Extensions}
		if !l.AppendedAt.IsZero() {
			e.AppendedAt = l.AppendedAt.UnixNano()
		}
		entries = append(entries, e)
		bytes += len(l.Data) + len(l.Extensions)
		if bytes < storeAtOnce && i < len(logs)-1 {
			continue
		}
		if err := s.log.Append(entries...); err != nil {
			return s.takeBack(err, logs[0].Index, entries[0].Index)
		}
		entries, bytes = entries[:0], 0
	}
	return nil
}

// takeBack removes the entries from index from on if some before index to were
// stored, and gives why the rest was not: raft takes it that none was.
func (s *logStore) takeBack(why error, from, to uint64) error {
	if from == to {
		return why
	}
	if err := s.log.TruncateSuffix(from); err != nil {
		return fmt.Errorf("entries %d to %d were stored and can't be taken back: %v, after: %v", from, to-1, err, why)
	}
	return why
}

// DeleteRange removes a conflicting suffix. Raft is configured to never cut
// the head, and asking for anything else is a defect.
func (s *logStore) DeleteRange(from, to uint64) error {
	if last := s.log.LastIndex(); to < last {
		return fmt.Errorf("delete entries %d to %d: only a suffix is ever deleted, and the last is %d", from, to, last)
	}
	if err := s.oweTerm(); err != nil {
		return err
	}
	s.cutting.Lock()
	defer s.cutting.Unlock()
	return s.log.TruncateSuffix(from)
}

// trim removes the entries up to and including index through.
func (s *logStore) trim(through uint64) error {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	return s.log.TrimHead(through)
}

const stablePrefix = "raft/"

// keyTerm is the key under which raft keeps the current term.
const keyTerm = "CurrentTerm"

func (s *logStore) Set(key, value []byte) error {
	if err := s.oweTerm(); err != nil {
		return err
	}
	return s.set(string(key), value)
}

func (s *logStore) set(key string, value []byte) error {
	return s.log.SetMeta(wal.Meta{Name: stablePrefix + key, Value: append([]byte{}, value...)})
}

// oweTerm stores the term that could not be stored.
func (s *logStore) oweTerm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == nil {
		return nil
	}
	err := s.set(keyTerm, s.term)
	if err == nil {
		s.term = nil
	}
	return err
}

func (s *logStore) Get(key []byte) ([]byte, error) {
	return s.log.Meta(stablePrefix + string(key)), nil
}

// SetUint64 persists a number. Raft panics if the term can't be persisted, and
// a host that embeds a node must survive a full disk. So for the term alone
// this reports success, and the term is stored before whatever comes next: no
// vote is given and no entry acknowledged in a term that could be forgotten.
func (s *logStore) SetUint64(key []byte, n uint64) error {
	value := binary.BigEndian.AppendUint64(nil, n)
	if string(key) != keyTerm {
		return s.Set(key, value)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term = nil; s.set(keyTerm, value) != nil {
		s.term = value
	}
	return nil
}

func (s *logStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil || len(v) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

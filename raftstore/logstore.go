package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// logStore is raft's LogStore and StableStore over a log of package wal.
type logStore struct {
	log  *wal.Log
	halt *halt // may be nil, in tests
	// raft is who stores, nil until it runs.
	raft   atomic.Pointer[raft.Raft]
	writes asyncWrites
	failed sync.Once
	// alone says that there is no network, and so no other voter.
	standalone bool
	// recent are the newest entries stored, by index modulo its length: each is
	// soon read again, for every follower, to be applied, and as the one before
	// the next.
	recent [4]atomic.Pointer[raft.Log]

	// mu guards term, the value of a term that could not be stored, nil if it
	// was. Nothing else is stored before it is.
	mu          sync.Mutex
	pendingTerm []byte

	// cutting is held by who shortens the log.
	truncating sync.Mutex
}

func (s *logStore) FirstIndex() (uint64, error) { return s.log.FirstIndex(), nil }
func (s *logStore) LastIndex() (uint64, error)  { return s.log.LastIndex(), nil }

// GetLog must give raft.ErrLogNotFound itself, unwrapped: raft compares.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	if entry := s.writes.get(index); entry != nil {
		*l = *entry
		return nil
	}
	if entry := s.recent[index%uint64(len(s.recent))].Load(); entry != nil && entry.Index == index {
		*l = *entry
		return nil
	}
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
const maxStoreBytes = 24 << 20

// StoreLogs stores entries, at once unless they are very large. When it returns
// nil they are synced, or, on a leader, on their way and in s.unsynced.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if err := errors.Join(s.halt.err(), s.flushPendingTerm()); err != nil {
		return err
	}
	leads := s.canReplicateEarly(logs)
	if leads && s.writeAsync(logs) {
		s.cacheRecent(logs)
		return nil
	}
	entries, bytes := make([]wal.Entry, 0, len(logs)), 0
	for i, l := range logs {
		entries = append(entries, toEntry(l))
		bytes += len(l.Data) + len(l.Extensions)
		if bytes < maxStoreBytes && i < len(logs)-1 {
			continue
		}
		if err := s.log.Append(entries...); err != nil {
			return s.removePartial(err, logs[0].Index, entries[0].Index)
		}
		entries, bytes = entries[:0], 0
	}
	s.cacheRecent(logs)
	if leads {
		s.writes.recordSynced(logs)
	}
	return nil
}

// remember has the newest of logs read from memory.
func (s *logStore) cacheRecent(logs []*raft.Log) {
	for _, l := range logs[max(0, len(logs)-len(s.recent)):] {
		s.recent[l.Index%uint64(len(s.recent))].Store(l)
	}
}

// forget has all be read from the log again.
func (s *logStore) clearRecent() {
	for i := range s.recent {
		s.recent[i].Store(nil)
	}
}

func toEntry(l *raft.Log) wal.Entry {
	e := wal.Entry{Index: l.Index, Term: l.Term, Type: uint8(l.Type), Data: l.Data, Extensions: l.Extensions}
	if !l.AppendedAt.IsZero() {
		e.AppendedAt = l.AppendedAt.UnixNano()
	}
	return e
}

// ahead tells whether entries may go to the followers before they are synced
// here: a leader's commands. (It is raft's goroutine that stores, and that makes
// this replica lead or not.) On a change of members raft acts as soon as it takes
// it for committed, so that one is synced before.
func (s *logStore) canReplicateEarly(logs []*raft.Log) bool {
	if r := s.raft.Load(); r == nil || r.State() != raft.Leader {
		return false
	}
	bytes := 0
	for _, l := range logs {
		bytes += len(l.Data) + len(l.Extensions)
		if l.Type != raft.LogCommand {
			return false
		}
	}
	return bytes < maxStoreBytes
}

// promise has the log write entries, and notes them as unsynced until it has;
// false says that it can't.
func (s *logStore) writeAsync(logs []*raft.Log) bool {
	entries := make([]wal.Entry, len(logs))
	for i, l := range logs {
		entries[i] = toEntry(l)
	}
	s.writes.add(logs)
	if !s.log.Promise(func(err error) { s.writeDone(len(logs), err) }, entries...) {
		s.writes.undo(logs)
		return false
	}
	return true
}

// outcome takes that of so many entries which were promised. After a failure
// the leader steps down: raft does so when it can't store.
func (s *logStore) writeDone(n int, err error) {
	s.writes.completed(n, err)
	if err != nil {
		s.failed.Do(func() { go s.raft.Load().Barrier(0) })
	}
}

// takeBack removes the entries from index from on if some before index to were
// stored, and gives why the rest was not: raft takes it that none was.
func (s *logStore) removePartial(why error, from, to uint64) error {
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
	if err := errors.Join(s.halt.err(), s.checkTruncation(from), s.flushPendingTerm(), s.writes.waitSynced(allEntries)); err != nil {
		return err
	}
	s.clearRecent()
	s.truncating.Lock()
	defer s.truncating.Unlock()
	return s.log.TruncateSuffix(from)
}

// checkCut halts the replica instead of giving up entries that it knows to be
// committed. Another leader can't have others in their place, unless a replica
// has lost what it acknowledged.
func (s *logStore) checkTruncation(from uint64) error {
	k, err := snapshotStore{s.log}.load()
	if err != nil {
		return err
	}
	committed := k.Index
	if r := s.raft.Load(); r != nil {
		committed = max(committed, r.AppliedIndex(), s.writes.limit(r.CommitIndex()))
	}
	if from > committed {
		return nil
	}
	return s.halt.haltForGood(fmt.Errorf("%w: a leader has other entries from %d on, and this replica knows that the entries up to %d are committed: "+
		"a replica of the group has lost what it acknowledged", ErrCommittedCut, from, committed))
}

// trim removes the entries up to and including index through.
func (s *logStore) trim(through uint64) error {
	s.truncating.Lock()
	defer s.truncating.Unlock()
	s.clearRecent()
	return s.log.TrimHead(through)
}

const stablePrefix = "raft/"

// keyTerm is the key under which raft keeps the current term.
const keyTerm = "CurrentTerm"

func (s *logStore) Set(key, value []byte) error {
	if err := s.halt.err(); err != nil {
		return err
	}
	err := s.flushPendingTerm()
	if err == nil {
		err = s.set(string(key), value)
	}
	if s.standalone && errors.Is(err, wal.ErrNoSpace) {
		// Raft keeps votes here, and would wait for an election to time out. Nobody
		// else hears of this vote, and before there is room nothing comes of it.
		return nil
	}
	return err
}

// set stores a value behind all that is unsynced. A leader that comes to follow
// another one stores a new term first: when it tells the new leader what it has,
// all of it is synced.
func (s *logStore) set(key string, value []byte) error {
	if err := s.writes.waitSynced(allEntries); err != nil {
		return err
	}
	return s.log.SetMeta(wal.Meta{Name: stablePrefix + key, Value: append([]byte{}, value...)})
}

// oweTerm stores the term that could not be stored.
func (s *logStore) flushPendingTerm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pendingTerm == nil {
		return nil
	}
	err := s.set(keyTerm, s.pendingTerm)
	if err == nil {
		s.pendingTerm = nil
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
		if have, err := s.GetUint64(key); err != nil || n < have {
			return errors.Join(err, s.haltOnOlderTerm(string(key), have, n))
		}
		return s.Set(key, value)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := storedTerm(s.log)
	if s.pendingTerm != nil {
		have = binary.BigEndian.Uint64(s.pendingTerm)
	}
	if n < have { // raft takes an error for fatal and panics: halted, it does no harm
		_ = s.haltOnOlderTerm(keyTerm, have, n)
		return nil
	}
	if s.pendingTerm = nil; s.set(keyTerm, value) != nil {
		s.pendingTerm = value
	}
	return nil
}

// goesBack halts the replica: no term, of its own or of its last vote, is ever
// followed by a lower one.
func (s *logStore) haltOnOlderTerm(key string, have, n uint64) error {
	return s.halt.haltForGood(fmt.Errorf("%w: %s is %d and was to become %d", ErrTermBack, key, have, n))
}

func (s *logStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil || len(v) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

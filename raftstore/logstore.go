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
//
// A leader stores commands asynchronously: StoreLogs returns while the journal
// still writes them, and raft sends them to the followers meanwhile
// (asyncWrites). Everything else is synced when it is stored, and is stored
// behind all entries that are being written.
//
// hashicorp/raft panics if it can't store its term, but a host that embeds a
// node must survive a full disk. So SetUint64 reports success for a term that
// it could not store, keeps it as pendingTerm, and stores it before whatever
// comes next.
type logStore struct {
	log  *wal.Log
	halt *halt // nil in some tests
	// raft is the instance that stores here, nil until it runs.
	raft   atomic.Pointer[raft.Raft]
	writes asyncWrites
	failed sync.Once
	// standalone says that there is no network, and so no other voter.
	standalone bool
	// recent caches the newest entries, by index modulo its length: each is soon
	// read again, for every follower, to be applied, and as the predecessor of
	// the next.
	recent [4]atomic.Pointer[raft.Log]

	// mu guards pendingTerm, a term that could not be stored, nil if there is
	// none. Nothing else is stored before it.
	mu          sync.Mutex
	pendingTerm []byte

	// truncating is held while the log is being shortened, at either end.
	truncating sync.Mutex
}

func (s *logStore) FirstIndex() (uint64, error) { return s.log.FirstIndex(), nil }
func (s *logStore) LastIndex() (uint64, error)  { return s.log.LastIndex(), nil }

// GetLog returns raft.ErrLogNotFound itself, unwrapped: raft compares it.
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

// maxStoreBytes is about how many bytes are stored at once: they must fit into a
// segment of the journal.
const maxStoreBytes = 24 << 20

// StoreLogs stores entries, in one write unless they are very large. When it
// returns nil they are synced, or on a leader being written and in s.writes.
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

// cacheRecent puts the newest of logs into the cache.
func (s *logStore) cacheRecent(logs []*raft.Log) {
	for _, l := range logs[max(0, len(logs)-len(s.recent)):] {
		s.recent[l.Index%uint64(len(s.recent))].Store(l)
	}
}

// clearRecent empties the cache.
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

// canReplicateEarly reports whether entries may go to the followers before they
// are synced here: they are a leader's commands. (The goroutine that stores is
// also the one that makes this replica lead or not.) Raft acts on a change of
// members as soon as it takes it for committed, so that is synced first.
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

// writeAsync has the log write entries, which are in s.writes until they are
// synced. It returns false if the log can't do so.
func (s *logStore) writeAsync(logs []*raft.Log) bool {
	entries := make([]wal.Entry, len(logs))
	for i, l := range logs {
		entries[i] = toEntry(l)
	}
	s.writes.add(logs)
	if !s.log.AppendAsync(func(err error) { s.writeDone(len(logs), err) }, entries...) {
		s.writes.undo(logs)
		return false
	}
	return true
}

// writeDone handles the outcome of the n oldest asynchronous writes. After a
// failure the leader steps down: raft does so when it can't store.
func (s *logStore) writeDone(n int, err error) {
	s.writes.completed(n, err)
	if err != nil {
		s.failed.Do(func() { go s.raft.Load().Barrier(0) })
	}
}

// removePartial is called after a failed store. It removes the entries from
// index from on if those before index to were stored, and returns why the
// others were not: raft assumes that none was stored.
func (s *logStore) removePartial(why error, from, to uint64) error {
	if from == to {
		return why
	}
	if err := s.log.TruncateSuffix(from); err != nil {
		//nolint:errorlint // no caller may take this for either error
		return fmt.Errorf("entries %d to %d were stored and can't be removed: %v, after: %v", from, to-1, err, why)
	}
	return why
}

// DeleteRange removes a conflicting suffix. Raft is configured never to cut the
// head; any other range is a defect.
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

// checkTruncation halts the replica if it would give up entries that it knows
// to be committed. Another leader can't have others in their place, unless a
// replica has lost what it acknowledged.
func (s *logStore) checkTruncation(from uint64) error {
	snap, err := snapshotStore{s.log}.load()
	if err != nil {
		return err
	}
	committed := snap.Index
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
		// Raft stores its votes here, and would wait for an election to time out.
		// Nobody else learns of this vote, and it has no effect until there is
		// room.
		return nil
	}
	return err
}

// set stores a value, behind all asynchronous writes. A leader that comes to
// follow another one stores the new term first: so when it tells the new leader
// what it has, all of that is synced.
func (s *logStore) set(key string, value []byte) error {
	if err := s.writes.waitSynced(allEntries); err != nil {
		return err
	}
	return s.log.SetMeta(wal.Meta{Name: stablePrefix + key, Value: append([]byte{}, value...)})
}

// flushPendingTerm stores the term that could not be stored before, if there is
// one.
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

// SetUint64 stores a number. A term that it can't store becomes pendingTerm,
// and it reports success, since raft would panic. The term is stored before
// whatever comes next, so no vote is given and no entry acknowledged in a term
// that could be forgotten.
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
	if n < have { // raft panics on an error; a halted replica does no harm
		_ = s.haltOnOlderTerm(keyTerm, have, n)
		return nil
	}
	if s.pendingTerm = nil; s.set(keyTerm, value) != nil {
		s.pendingTerm = value
	}
	return nil
}

// haltOnOlderTerm halts the replica: no term, of its own or of its last vote,
// is ever followed by a lower one.
func (s *logStore) haltOnOlderTerm(key string, have, n uint64) error {
	return s.halt.haltForGood(fmt.Errorf("%w: %s is %d and would become %d", ErrTermBack, key, have, n))
}

func (s *logStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil || len(v) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

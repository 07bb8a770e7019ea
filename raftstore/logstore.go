package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/wal"
)

// logStore is raft's LogStore and StableStore over a log of package wal.
//
// A leader stores commands asynchronously: StoreLogs returns while the journal
// still writes them, and raft sends them to the followers in the meantime
// (asyncWrites). Every other write, and all entries before it, are synced when
// it returns.
//
// hashicorp/raft panics if it can't store its term, but a process that embeds a
// node must survive a full disk. So SetUint64 reports success for a term that
// it could not store. It keeps the term as pendingTerm, and stores it before
// anything else.
//
// Raft writes from its main goroutine and reads from many. Trim is called by
// the owner's goroutine.
type logStore struct {
	log  *wal.Log
	halt *halt // nil in some tests
	// raft is the instance that stores here, nil until it is started.
	raft     atomic.Pointer[raft.Raft]
	writes   asyncWrites
	stepDown sync.Once // after a failed asynchronous write
	// standalone means that there is no network, and so no other voter.
	standalone bool
	// recent caches the newest entries, by index modulo its length. Each is
	// read several times soon after it is stored: for every follower, to be
	// applied, and as the predecessor of the next.
	recent [4]atomic.Pointer[raft.Log]

	// mu guards pendingTerm, a term that could not be stored, or nil. Nothing
	// else is stored before it. mu is held while the term is written.
	mu          sync.Mutex
	pendingTerm []byte

	// truncating is held while either end of the log is removed. It is a
	// channel of capacity 1: disks are waited for meanwhile, and a goroutine that
	// waits for a mutex would stop a simulation's clock.
	truncating chan struct{}
	// replaceFrom, if not 0, is the index from which the entries of the next
	// StoreLogs replace those in the log. Raft's main goroutine owns it.
	replaceFrom uint64
}

func (s *logStore) FirstIndex() (uint64, error) { return s.log.FirstIndex(), nil }
func (s *logStore) LastIndex() (uint64, error)  { return s.log.LastIndex(), nil }

// GetLog returns raft.ErrLogNotFound unwrapped, because raft compares it with
// ==.
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

// maxStoreBytes is the approximate number of bytes that are stored at once.
// They must fit into a segment of the journal.
const maxStoreBytes = 24 << 20

// StoreLogs stores entries, in one write unless they are very large. When it
// returns nil, they are synced, or, on a leader, in s.writes until they are.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	replaceFrom := s.replaceFrom
	s.replaceFrom = 0
	if err := errors.Join(s.halt.err(), s.flushPendingTerm()); err != nil {
		return err
	}
	async := replaceFrom == 0 && s.canReplicateEarly(logs)
	if async && s.writeAsync(logs) {
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
		if err := s.store(entries, replaceFrom); err != nil {
			return s.removePartial(err, logs[0].Index, entries[0].Index)
		}
		entries, bytes, replaceFrom = entries[:0], 0, 0
	}
	s.cacheRecent(logs)
	if async {
		s.writes.recordSynced(logs)
	}
	return nil
}

// store appends entries. If replaceFrom is not 0, they replace those from that
// index on.
func (s *logStore) store(entries []wal.Entry, replaceFrom uint64) error {
	switch {
	case replaceFrom == 0:
		return s.log.Append(entries...)
	case replaceFrom != entries[0].Index:
		return fmt.Errorf("entries from %d on are to be replaced, and the next is %d", replaceFrom, entries[0].Index)
	}
	s.truncating <- struct{}{}
	defer func() { <-s.truncating }()
	return s.log.Replace(entries...)
}

// cacheRecent adds the newest of logs to the cache.
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

// canReplicateEarly reports whether entries may be sent to the followers before
// they are synced here. They must be a leader's commands: raft acts on a
// membership change as soon as it considers it committed, so that is synced
// first. The state can't change in between, since raft stores entries on the
// goroutine that also changes its state.
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

// writeAsync starts writing entries, which are in s.writes until they are
// synced. It returns false if the log can't write them asynchronously.
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
// failure it proposes a barrier: raft can't store that, and so steps down.
func (s *logStore) writeDone(n int, err error) {
	s.writes.completed(n, err)
	if err != nil {
		s.stepDown.Do(func() { go s.raft.Load().Barrier(0) })
	}
}

// removePartial is called after a store has failed with cause. If the entries
// from index from to to-1 were stored, it removes them, since raft assumes that
// a failed store has stored nothing. It returns cause, or an error if the
// entries can't be removed.
func (s *logStore) removePartial(cause error, from, to uint64) error {
	if from == to {
		return cause
	}
	if err := s.log.TruncateSuffix(from); err != nil {
		//nolint:errorlint // a caller must not mistake this for either error
		return fmt.Errorf("entries %d to %d were stored and can't be removed: %v, after: %v", from, to-1, err, cause)
	}
	return cause
}

// DeleteRange has the next StoreLogs replace a conflicting suffix. Raft calls
// both, one after the other, and does not notice that the log is shorter if the
// second fails: it would search for entries that are gone, and never take
// another. So the suffix stays until there is room for what replaces it.
//
// One that holds a configuration is removed at once. Raft goes back to the
// configuration before it, and must not win an election with a log that holds
// another.
//
// Raft is configured never to trim the log, so any other range is a bug.
func (s *logStore) DeleteRange(from, to uint64) error {
	if last := s.log.LastIndex(); to < last {
		return fmt.Errorf("delete entries %d to %d: only a suffix is ever deleted, and the last is %d", from, to, last)
	}
	if err := errors.Join(s.halt.err(), s.checkTruncation(from), s.flushPendingTerm(), s.writes.waitSynced(allEntries)); err != nil {
		return err
	}
	s.clearRecent()
	s.replaceFrom = 0
	if s.mayHoldConfiguration(from, to) {
		s.truncating <- struct{}{}
		defer func() { <-s.truncating }()
		return s.log.TruncateSuffix(from)
	}
	s.replaceFrom = from
	return nil
}

// mayHoldConfiguration reports whether a configuration is among entries, or one
// of them can't be read.
func (s *logStore) mayHoldConfiguration(from, to uint64) bool {
	for index := from; index <= to; index++ {
		if e, err := s.log.Entry(index); err != nil || raft.LogType(e.Type) == raft.LogConfiguration {
			return true
		}
	}
	return false
}

// checkTruncation halts the replica if it would remove entries that it knows to
// be committed. A leader can only have other entries in their place if a
// replica has lost entries that it had acknowledged.
func (s *logStore) checkTruncation(from uint64) error {
	snap, err := snapshotStore{s.log}.load()
	if err != nil {
		return err
	}
	committed := snap.Index
	if r := s.raft.Load(); r != nil {
		committed = max(committed, r.AppliedIndex(), s.writes.limit(r.CommitIndex()))
	}
	if invariant.CommittedKept.Check(from > committed, from, committed+1) {
		return nil
	}
	return s.halt.haltItself(fmt.Errorf("%w: a leader has other entries from %d on, and this replica knows that the entries up to %d are committed: "+
		"a replica of the group has lost entries that it had acknowledged", ErrCommittedCut, from, committed))
}

// trim removes the entries up to and including index through.
func (s *logStore) trim(through uint64) error {
	s.truncating <- struct{}{}
	defer func() { <-s.truncating }()
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
		// Raft stores its votes with Set, and after an error would wait for the
		// election timeout. A standalone replica votes only for itself, and the
		// vote has no effect until an entry can be stored.
		return nil
	}
	return err
}

// set stores a value after all asynchronous writes are synced. When a leader
// becomes a follower, it stores the new term first. So all entries in its log
// are synced before it reports its last index to the new leader.
func (s *logStore) set(key string, value []byte) error {
	if err := s.writes.waitSynced(allEntries); err != nil {
		return err
	}
	return s.log.SetMeta(wal.Meta{Name: stablePrefix + key, Value: append([]byte{}, value...)})
}

// flushPendingTerm stores pendingTerm, if there is one.
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

// SetUint64 stores a number. If it can't store a term, it keeps it as
// pendingTerm and returns nil, since raft would panic on an error. The term is
// stored before anything else, so this replica neither votes nor acknowledges
// an entry in a term that it could forget.
func (s *logStore) SetUint64(key []byte, n uint64) error {
	value := binary.BigEndian.AppendUint64(nil, n)
	if string(key) != keyTerm {
		if current, err := s.GetUint64(key); err != nil || !invariant.VoteTermRises.Check(n >= current, n, current) {
			return errors.Join(err, s.haltOnOlderTerm(string(key), current, n))
		}
		return s.Set(key, value)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	current := storedTerm(s.log)
	if s.pendingTerm != nil {
		current = binary.BigEndian.Uint64(s.pendingTerm)
	}
	if !invariant.TermRises.Check(n >= current, n, current) { // not an error, since raft would panic; the replica is halted
		_ = s.haltOnOlderTerm(keyTerm, current, n)
		return nil
	}
	if s.pendingTerm = nil; s.set(keyTerm, value) != nil {
		invariant.TermPending.Reached()
		s.pendingTerm = value
	}
	return nil
}

// haltOnOlderTerm halts the replica, because raft would replace a stored term,
// its own or that of its last vote, by a lower one.
func (s *logStore) haltOnOlderTerm(key string, current, n uint64) error {
	return s.halt.haltItself(fmt.Errorf("%w: %s is %d and would become %d", ErrTermBack, key, current, n))
}

func (s *logStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil || len(v) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

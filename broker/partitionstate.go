package broker

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// partitionState is the state of one partition on this node: a function of the
// partition's log. It is a raftstore.FSM.
//
// Only Apply and Restore change it. The exceptions are dirty and the
// certifier's transactions in flight. An entry is applied under mu, the
// certifier's lock table included, so that position returns the high-water
// mark, the index and the first txid of the same moment.
type partitionState struct {
	log        *wal.Log
	certifier  *certifier
	damage     func(error)   // called with an error after which the state can't be trusted
	capacity   int           // of the lock table
	window     time.Duration // message ids are remembered for
	pointEvery uint64        // the most transactions between two trim points
	// traced, if not nil, is called with a batch that another replica has
	// proposed and this one has applied since begun.
	traced func(b wal.Batch, begun time.Time)
	// mark is the high-water mark. It changes under mu. Readers that can use an
	// old value read it without mu.
	mark atomic.Uint64
	kept atomic.Uint64 // bytes of the entries that are kept, for readers without mu

	mu         sync.Mutex // guards the fields below
	digest     wal.Digest
	index      uint64 // of the last entry applied
	lastTime   int64  // of the last transaction
	first      uint64 // txid of the oldest transaction kept
	cursors    map[string]cursor
	dirty      map[string]bool // cursors that may not be in a stored snapshot yet
	changed    chan struct{}   // closed after each Apply, then replaced
	trimPoints []trimPoint     // in ascending order
	thinned    bool            // stored snapshots may hold trim points that were dropped
	lastPoint  logPosition     // of the newest trim point, or of the log's beginning
	bytes      uint64          // of all entries, including trimmed ones
	behind     uint64          // of the entries after the last transaction
	base       wal.Base        // the chain before the oldest transaction kept
	baseTime   int64           // of the last transaction that was trimmed, or unknownTime
	baseBytes  uint64          // of all entries that were trimmed, 0 if only an older version knew
	unchecked  *trimCheck      // nil unless base is to be compared with the log
	trimTime   int64           // of the last trim applied since the node started, 0 for none
	trimIndex  uint64          // index through which the log is to be trimmed
	restoring  *restoring      // nil unless the log is being restored
	history    []wal.PastCluster
	mirrored   bool          // the log is a mirror, or was one
	writing    []cursorEntry // entries of cursor writes that have no outcome yet, oldest first

	trimmed chan struct{} // capacity 1: trimIndex has moved
	chain   *digests      // the digest after each batch
}

// logPosition is a position in the log, by time and by the bytes before it.
type logPosition struct {
	time  int64
	bytes uint64
}

// cursor is a consumer's durable position.
type cursor struct {
	Txid  uint64
	Time  int64  // Unix nanoseconds
	Owner string // "" for none: whoever may set cursors may set it
}

// allows reports whether a write takes effect.
func (c cursor) allows(w wal.Cursor) bool {
	owned := len(w.Owner) == 0 || c == cursor{} || c.Owner == string(w.Owner)
	if w.HasExpectedOwner {
		owned = c.Owner == string(w.ExpectedOwner)
	}
	return owned && (!w.HasExpected || w.Expected == c.Txid)
}

// cursorValueSize is the size of a cursor in a snapshot, without its owner.
const cursorValueSize = 16

// value encodes the cursor for a snapshot.
func (c cursor) value() []byte {
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.Txid), uint64(c.Time))
	return append(b, c.Owner...)
}

func decodeCursor(v []byte) (c cursor, ok bool) {
	if len(v) < cursorValueSize {
		return c, false
	}
	return cursor{binary.BigEndian.Uint64(v), int64(binary.BigEndian.Uint64(v[8:])), string(v[cursorValueSize:])}, true
}

// applied is the result of applying an entry.
type applied struct {
	term    uint64 // of the entry
	void    bool
	failed  bool           // the replica could not apply it, and its node stops
	cursors []cursorResult // of a batch of cursor writes, one for each

	// On the leader, when raft accepted the entry, when it was synced, and when
	// its application began and ended.
	taken, synced, begun, done time.Time
}

type cursorResult struct {
	cursor
	done bool // false: it was not at the expected position, or is another owner's
}

// stateOptions are what the state of a replica depends on beside its log.
// Every replica of a partition must have the same.
type stateOptions struct {
	locks      lockmgr.Options
	pointEvery uint64 // for tests; 0 is pointEvery
}

func newPartitionState(log *wal.Log, o stateOptions, now func() time.Time, damage func(error), chain *digests) *partitionState {
	return &partitionState{
		log: log, certifier: newCertifier(o.locks, now), damage: damage, chain: chain, trimmed: make(chan struct{}, 1),
		window: o.locks.IDWindow, capacity: o.locks.Locks, pointEvery: cmp.Or(o.pointEvery, pointEvery), first: 1,
		cursors: map[string]cursor{}, dirty: map[string]bool{}, changed: make(chan struct{}),
	}
}

// Apply applies committed entries.
func (s *partitionState) Apply(entries []raftstore.Committed) []any {
	results := make([]any, len(entries))
	begun := time.Now()
	for i, e := range entries {
		a, err := s.apply(e)
		if err != nil {
			s.damage(fmt.Errorf("apply entry %d: %w", e.Index, err))
			a = applied{failed: true}
		}
		s.chain.setApplied(e.Index)
		a.term, a.taken, a.synced, a.begun, a.done = e.Term, e.Taken, e.Synced, begun, time.Now()
		results[i] = a
	}
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.kept.Store(s.bytes - s.basePoint().bytes)
	s.mu.Unlock()
	return results
}

func (s *partitionState) apply(e raftstore.Committed) (applied, error) {
	b, err := wal.ParseBatch(e.Data)
	if err != nil {
		return applied{}, fmt.Errorf("%w: %w", wal.ErrDamaged, err)
	}
	switch b.Kind {
	case wal.Transactions:
		if s.traced != nil && e.Taken.IsZero() && !e.Restored {
			return s.applyTraced(e, b)
		}
		return s.applyTransactions(e, b)
	case wal.CursorWrites:
		return s.applyCursors(e, b)
	case wal.Trims:
		return s.applyTrims(e, b)
	case wal.Restores:
		return s.applyRestores(e, b)
	}
	return applied{}, fmt.Errorf("%w: batches of kind %d are not known to this version", wal.ErrFormat, b.Kind)
}

// applyTransactions records a batch's transactions. A batch is void, on every
// replica alike, if its first txid does not follow on the last one, if its time
// is before the last one's, or if it was certified in another term than its
// entry's. While the log is being restored only restored batches count, in any
// term. At other times only others do.
func (s *partitionState) applyTransactions(e raftstore.Committed, b wal.Batch) (applied, error) {
	if b.First != s.mark.Load()+1 || e.Restored != s.isRestoring() || !e.Restored && b.OutOfTerm(e.Term) || !s.inTime(b) {
		invariant.BatchVoided.Reached()
		return applied{void: true}, s.log.Void(e.Index)
	}
	digest := s.digest.Next(e.Data) // only Apply changes it
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.record(e.Data, b)
	s.digest, s.index = digest, e.Index
	s.countBatch(e, b)
	s.chain.add(chainPoint{wal.Base{Txid: b.Last(), Digest: digest}, e.Index})
	return applied{}, err
}

func (s *partitionState) applyTraced(e raftstore.Committed, b wal.Batch) (applied, error) {
	begun := time.Now()
	a, err := s.applyTransactions(e, b)
	if err == nil && !a.void {
		s.traced(b, begun)
	}
	return a, err
}

// inTime reports whether a batch's times follow on the last transaction's.
// Those of a leader that knew that transaction do. They do not in a replica
// that has another history than its leader, which the digests then show.
func (s *partitionState) inTime(b wal.Batch) bool {
	return b.Time >= s.lastTime && b.Time <= math.MaxInt64-int64(b.Count) // only Apply changes lastTime
}

// record records a batch's transactions in the lock table. mu is held.
func (s *partitionState) record(data []byte, b wal.Batch) error {
	committed, moves, err := s.certifier.record(data, b)
	s.mark.Store(committed)
	invariant.TxidsDense.Check(committed == b.Last() || err != nil, committed, b.Last())
	if b.Count > 0 {
		s.lastTime = b.Time + int64(b.Count) - 1
	}
	for _, m := range moves {
		s.moveCursor(m)
	}
	return err
}

func (s *partitionState) applyCursors(e raftstore.Committed, b wal.Batch) (applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endWrite(e.Data)
	if s.isRestoring() {
		s.countOther(e)
		return applied{void: true}, nil
	}
	var a applied
	records := b.Read()
	n := int64(0) // no two writes have the same time
	for c := (wal.Cursor{}); records.NextCursor(&c); n++ {
		name := string(c.Name)
		now := s.cursors[name]
		done := now.allows(c)
		if done {
			if now = (cursor{c.Txid, max(b.Time+n, now.Time+1), string(c.Owner)}); keepsCursor(c) {
				s.cursors[name] = now
			} else { // the cursor is removed
				now = cursor{}
				delete(s.cursors, name)
			}
			s.dirty[name] = true
		}
		a.cursors = append(a.cursors, cursorResult{now, done})
	}
	s.countOther(e)
	return a, records.Err()
}

// snapshotState is the state of a replica in a snapshot.
type snapshotState struct {
	Index  uint64 `json:"index"`
	Txid   uint64 `json:"txid"`
	Time   int64  `json:"time"`
	First  uint64 `json:"first"`
	Digest []byte `json:"digest"`
	Bytes  uint64 `json:"bytes"`
	Trim   uint64 `json:"cut,omitempty"`
	// The fields below are missing in snapshots of the first versions.
	LastTime    int64        `json:"last_time,omitempty"`
	Behind      uint64       `json:"behind,omitempty"`
	NewestTime  int64        `json:"newest_time,omitempty"`
	NewestBytes uint64       `json:"newest_bytes,omitempty"`
	BaseTime    int64        `json:"base_time,omitempty"`
	BaseBytes   uint64       `json:"base_bytes,omitempty"`
	Unchecked   *storedCheck `json:"unchecked,omitempty"`

	Restoring *restoring        `json:"restoring,omitempty"`
	History   []wal.PastCluster `json:"history,omitempty"`
	Mirrored  bool              `json:"mirrored,omitempty"`
}

const (
	metaCursor = "cursor/"
	metaMark   = wal.MetaDigestMark
	metaBase   = wal.MetaDigestBase
)

// Snapshot returns the state, and the metadata that changed since the last
// snapshot.
func (s *partitionState) Snapshot() raftstore.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := snapshotState{
		Index: s.index, Txid: s.mark.Load(), Time: s.certifier.time(), First: s.first, Digest: s.digest[:], Bytes: s.bytes, Trim: s.trimIndex,
		LastTime: s.lastTime, Behind: s.behind, NewestTime: s.lastPoint.time, NewestBytes: s.lastPoint.bytes, BaseTime: s.baseTime,
		BaseBytes: s.baseBytes, Unchecked: s.unchecked.stored(),
		Restoring: s.restoring, History: s.history, Mirrored: s.mirrored,
	}
	state, err := json.Marshal(snap)
	if err != nil {
		panic("broker: encode snapshot: " + err.Error())
	}
	metas := []wal.Meta{{Name: metaMark, Value: append(binary.BigEndian.AppendUint64(nil, snap.Txid), s.digest[:]...)}}
	for name := range s.dirty {
		m := wal.Meta{Name: metaCursor + name}
		if c, ok := s.cursors[name]; ok {
			m.Value = c.value()
		}
		if bytes.Equal(m.Value, s.log.Meta(m.Name)) {
			delete(s.dirty, name) // an earlier snapshot has stored it
			continue
		}
		metas = append(metas, m)
	}
	return raftstore.Snapshot{State: state, Metas: append(metas, s.snapshotTrimPoints()...)}
}

// Restore sets the state to a snapshot's, and rebuilds the tables from the end
// of the log.
func (s *partitionState) Restore(state []byte) error {
	var snap snapshotState
	if err := json.Unmarshal(state, &snap); err != nil {
		return fmt.Errorf("%w: snapshot state: %w", wal.ErrDamaged, err)
	}
	if len(snap.Digest) != sha256.Size {
		return fmt.Errorf("%w: snapshot state: a digest of %d bytes", wal.ErrDamaged, len(snap.Digest))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index, s.first, s.digest = snap.Index, snap.First, wal.Digest(snap.Digest)
	s.bytes, s.behind, s.trimIndex = snap.Bytes, snap.Behind, snap.Trim
	s.lastPoint = logPosition{snap.NewestTime, snap.NewestBytes}
	if s.baseTime = snap.BaseTime; s.baseTime == 0 && s.first > 1 {
		s.baseTime = unknownTime
	}
	s.baseBytes, s.unchecked = snap.BaseBytes, snap.Unchecked.check()
	s.restoring, s.history, s.mirrored = snap.Restoring, snap.History, snap.Mirrored
	if s.lastTime = snap.LastTime; s.lastTime == 0 {
		s.lastTime = snap.Time
	}
	var err error
	if s.base, err = wal.DecodeBase(s.log.Meta(metaBase)); err != nil {
		return err
	}
	if err := s.restoreTrimPoints(); err != nil {
		return err
	}
	s.chain.begin(wal.Base{Txid: snap.Txid, Digest: s.digest}, snap.Index)
	for name, v := range s.log.Metas(metaCursor) {
		c, ok := decodeCursor(v)
		if !ok {
			return fmt.Errorf("%w: cursor %s holds %d bytes", wal.ErrDamaged, name, len(v))
		}
		s.cursors[strings.TrimPrefix(name, metaCursor)] = c
	}
	s.kept.Store(s.bytes - s.basePoint().bytes)
	return s.rebuild(snap)
}

// position is the state that readers need, all of the same moment.
type position struct {
	mark      uint64 // high-water mark
	index     uint64 // no later entry may be shown
	first     uint64
	base      wal.Base // the chain before first
	restoring bool     // nothing may be shown, nor appended
	mirrorOf  string   // the id of the cluster that is mirrored, "" for none: nothing may be appended
	changed   <-chan struct{}
}

func (s *partitionState) position() position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return position{mark: s.mark.Load(), index: s.index, first: s.first, base: s.base, restoring: s.restoring.hides(), mirrorOf: s.restoring.source(), changed: s.changed}
}

// figures returns the bytes of the entries that are kept, and the number of
// cursors.
func (s *partitionState) figures() (bytes uint64, cursors int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes - s.basePoint().bytes, len(s.cursors)
}

// promotedAfter returns the last transaction that a mirror had when it was
// promoted, 0 if it is not a promoted mirror.
func (s *partitionState) promotedAfter() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.history); s.mirrored && !s.isRestoring() && n > 0 {
		return s.history[n-1].LastTxid
	}
	return 0
}

// pastClusters returns the log history: the clusters in which the log's
// transactions were committed before it was restored into this one.
func (s *partitionState) pastClusters() []wal.PastCluster {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.history
}

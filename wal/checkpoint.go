package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/cantuslog/cantus/wal/journal"
)

const checkpointName = "checkpoint.json"

// checkpointFile is the state of all logs after journal frame Seq. What it
// says of entries is in Badger, synced, when the file is written.
type checkpointFile struct {
	Seq  uint64     `json:"seq"`
	Logs []logState `json:"logs"`
	// BadgerLogs is how many bytes of Badger's log files were whole.
	BadgerLogs map[string]badgerLogEnd `json:"badger_logs,omitempty"`
}

// logState is the small state of a log: what fold keeps.
type logState struct {
	Group uint32            `json:"group"`
	First uint64            `json:"first"`
	Last  uint64            `json:"last"`
	Meta  map[string][]byte `json:"meta,omitempty"`
	Voids []uint64          `json:"voids,omitempty"`
	Cuts  uint64            `json:"cuts,omitempty"`
	// History is empty for a log that was never truncated.
	History history `json:"history,omitempty"`
}

// readCheckpoint sets the logs to the last checkpoint.
func (s *Store) readCheckpoint() (saved checkpointFile, err error) {
	path := filepath.Join(s.dir, checkpointName)
	err = readSealed(path, &saved)
	if errors.Is(err, fs.ErrNotExist) {
		return saved, fmt.Errorf("%w: %s is missing", ErrDamaged, path)
	}
	if err != nil {
		return saved, err
	}
	for _, st := range saved.Logs {
		l := s.log(st.Group)
		l.first, l.last, l.voids, l.cuts, l.history = st.First, st.Last, st.Voids, st.Cuts, st.History
		if st.Meta != nil {
			l.meta = st.Meta
		}
	}
	s.folded, s.checked = saved.Seq, saved.Seq
	return saved, nil
}

// runCheckpoints takes checkpoints as they are asked for, and watches over the
// journal, which may fail while nobody writes.
func (s *Store) runCheckpoints() {
	failed := s.journal.Failed()
	var reclaim <-chan time.Time // when to go on reclaiming, nil if nothing is left
	for {
		select {
		case <-s.done:
			return
		case <-failed:
			s.fail(s.journal.Err())
			failed = nil
		case <-s.checkpoint:
			if s.stepCheckpoint() {
				reclaim = s.stepReclaim()
			}
		case <-reclaim:
			reclaim = s.stepReclaim()
		}
	}
}

// stepCheckpoint takes a checkpoint and reports whether there is one.
func (s *Store) stepCheckpoint() bool {
	err := s.takeCheckpoint()
	switch {
	case err == nil || s.Failed() != nil:
	case errors.Is(err, ErrNoSpace):
		s.opts.Logger.Warn("no room for a checkpoint: the next one will try again", "err", err)
	default:
		s.fail(fmt.Errorf("checkpoint: %w", err))
	}
	return err == nil && s.Failed() == nil
}

// reclaimShare is how many times as long as reclaiming takes it then pauses: it
// takes processor time, and appends are not to feel it. A checkpoint ends a
// pause, so that it keeps up with what is written.
const reclaimShare = 4

// reclaimLater is when it is tried again to reclaim space that can't be for want
// of space.
const reclaimLater = 10 * time.Second

// stepReclaim reclaims a piece of space, and gives what says when to go on.
func (s *Store) stepReclaim() <-chan time.Time {
	began := time.Now()
	more, err := s.reclaim()
	if errors.Is(err, ErrNoSpace) {
		return time.After(reclaimLater)
	}
	if err != nil && s.Failed() == nil {
		s.fail(fmt.Errorf("reclaim space: %w", err))
	}
	if err != nil || !more {
		return nil
	}
	return time.After(reclaimShare * time.Since(began))
}

// takeCheckpoint makes everything up to the last folded frame durable outside
// the journal, and lets go of the journal up to there. The order is what
// makes it safe: Badger has the frames, Badger's files are synced, the logs'
// state is written down, and only then do frames go. After [ErrNoSpace] it may
// be tried again.
func (s *Store) takeCheckpoint() error {
	s.checking.Lock()
	defer s.checking.Unlock()
	at, owed := s.state()
	if at.Seq == s.checked {
		return nil
	}
	if !s.applier.wait(at.Seq) {
		return s.Failed() // closed, or failed: the frames stay in the journal
	}
	dir := filepath.Join(s.dir, badgerDir)
	var err error
	// In this order: what comes meanwhile is not covered by the sync.
	if at.BadgerLogs, err = badgerLogEnds(dir, s.badgerLogs); err != nil {
		return err
	}
	if err = syncBadger(dir); err != nil {
		return err
	}
	err = writeSealed(filepath.Join(s.dir, checkpointName), at)
	if err == nil {
		err = s.journal.Release(at.Seq)
	}
	if isNoSpace(err) && !errors.Is(err, journal.ErrFailed) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if err != nil {
		return err
	}
	s.starting.owed.Add(-owed)
	s.checked, s.badgerLogs = at.Seq, at.BadgerLogs
	s.opts.Logger.Debug("checkpoint taken", "seq", at.Seq)
	return nil
}

// state copies the logs' small state, and gives what a start would write again
// without it.
func (s *Store) state() (at checkpointFile, owed int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at.Seq, owed = s.folded, s.starting.owed.Load()
	for _, group := range slices.Sorted(maps.Keys(s.logs)) {
		l := s.logs[group]
		l.mu.RLock()
		at.Logs = append(at.Logs, logState{
			Group: group, First: l.first, Last: l.last, Meta: maps.Clone(l.meta), Voids: slices.Clone(l.voids),
			Cuts: l.cuts, History: l.history,
		})
		l.mu.RUnlock()
	}
	return at, owed
}

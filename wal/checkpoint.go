package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/wal/journal"
)

const checkpointName = "checkpoint.json"

// checkpointFile is the state of all logs after journal frame Seq. The entries
// that it counts are in Badger, synced, before the file is written.
type checkpointFile struct {
	Seq  uint64     `json:"seq"`
	Logs []logState `json:"logs"`
	// BadgerLogs says how many bytes of Badger's log files were intact.
	BadgerLogs map[string]badgerLogEnd `json:"badger_logs,omitempty"`
}

// logState is the small state of a log.
type logState struct {
	Group uint32            `json:"group"`
	First uint64            `json:"first"`
	Last  uint64            `json:"last"`
	Meta  map[string][]byte `json:"meta,omitempty"`
	Voids []uint64          `json:"voids,omitempty"`
	Epoch uint64            `json:"cuts,omitempty"`
	// Epochs is empty for a log that was never truncated.
	Epochs epochs `json:"history,omitempty"`
}

// readCheckpoint sets the logs to the last checkpoint.
func (s *Store) readCheckpoint() (saved checkpointFile, err error) {
	path := filepath.Join(s.dir, checkpointName)
	err = readChecksummed(path, &saved)
	if errors.Is(err, fs.ErrNotExist) {
		return saved, fmt.Errorf("%w: %s is missing", ErrDamaged, path)
	}
	if err != nil {
		return saved, err
	}
	for _, st := range saved.Logs {
		l := s.log(st.Group)
		l.first, l.last, l.voids, l.epoch, l.epochs = st.First, st.Last, st.Voids, st.Epoch, st.Epochs
		if st.Meta != nil {
			l.meta = st.Meta
		}
	}
	s.logsSeq, s.checked = saved.Seq, saved.Seq
	return saved, nil
}

// runCheckpoints is the goroutine that takes checkpoints, reclaims space, and
// notices a journal that fails while nothing is written.
func (s *Store) runCheckpoints() {
	failed := s.journal.Failed()
	var reclaim <-chan time.Time // the next time to reclaim; nil if nothing is left
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

// stepCheckpoint takes a checkpoint and reports whether it succeeded.
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

// After a piece of reclaiming there is a pause, reclaimShare times as long, so
// that appends keep their processor time. A checkpoint ends a pause: reclaiming
// keeps up with what is written.
const reclaimShare = 4

// reclaimLater is the time until the next attempt after there was too little
// space to reclaim any.
const reclaimLater = 10 * time.Second

// stepReclaim reclaims some space, and returns the timer for the next step.
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

// takeCheckpoint makes everything up to the newest frame durable outside the
// journal, and releases the journal up to there. The order makes it safe:
// Badger has the frames, Badger's files are synced, the logs' state is written,
// and only then are frames released. After [ErrNoSpace] it may be tried again.
func (s *Store) takeCheckpoint() error {
	s.checking.Lock()
	defer s.checking.Unlock()
	at, replayBytes := s.state()
	if at.Seq == s.checked {
		return nil
	}
	if !s.applier.wait(at.Seq) {
		return s.Failed() // closed, or failed: the frames stay in the journal
	}
	dir := filepath.Join(s.dir, badgerDir)
	var err error
	// In this order, since later writes are not covered by the sync.
	if at.BadgerLogs, err = badgerLogEnds(dir, s.badgerLogs); err != nil {
		return err
	}
	if err = syncBadger(dir); err != nil {
		return err
	}
	err = writeChecksummed(filepath.Join(s.dir, checkpointName), at)
	if err == nil {
		err = s.releaseJournal(at.Seq)
	}
	if isNoSpace(err) && !errors.Is(err, journal.ErrFailed) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if err != nil {
		return err
	}
	s.starting.replayBytes.Add(-replayBytes)
	s.checked, s.badgerLogs = at.Seq, at.BadgerLogs
	s.counters.checkpoints.Add(1)
	s.counters.lastCheckpoint.Store(time.Now().UnixNano())
	s.opts.Logger.Debug("checkpoint taken", "seq", at.Seq)
	return nil
}

// releaseJournal lets the journal reuse the frames up to seq.
func (s *Store) releaseJournal(seq uint64) error {
	has := s.applier.done()
	invariant.ReleasedApplied.Check(has >= seq, has, seq)
	return s.journal.Release(seq)
}

// state returns a copy of the logs' small state, and the bytes that a start
// without this checkpoint would write to Badger again.
func (s *Store) state() (at checkpointFile, replayBytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at.Seq, replayBytes = s.logsSeq, s.starting.replayBytes.Load()
	for _, group := range slices.Sorted(maps.Keys(s.logs)) {
		l := s.logs[group]
		l.mu.RLock()
		at.Logs = append(at.Logs, logState{
			Group: group, First: l.first, Last: l.last, Meta: maps.Clone(l.meta), Voids: slices.Clone(l.voids),
			Epoch: l.epoch, Epochs: l.epochs,
		})
		l.mu.RUnlock()
	}
	return at, replayBytes
}

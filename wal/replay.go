package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cantuslog/cantus/wal/journal"
)

// replay opens the journal and applies its frames to Badger and the logs.
func (s *Store) replay(saved checkpointFile) error {
	applied, err := s.badgerApplied()
	if err != nil {
		return err
	}
	if applied < saved.Seq && !s.opts.Repairable {
		return fmt.Errorf("%w: %s lost its end: the store ends at frame %d, the checkpoint says that it had %d",
			ErrDamaged, s.keyHolders(), applied, saved.Seq)
	}
	if err := s.loadDeleted(); err != nil {
		return err
	}
	if err := s.roomToReplay(saved.Seq); err != nil {
		return err
	}
	r := replayer{store: s}
	s.journal, err = journal.Open(filepath.Join(s.dir, journalDir), journal.Options{
		FS: s.opts.FS, SegmentSize: s.opts.SegmentSize, StoreID: s.identity.journalID(), Synced: s.synced,
		Room: s.roomForSegment,
	}, r.frame)
	if err == nil {
		err = r.flush()
	}
	if err != nil {
		return fromJournal(err)
	}
	seq := s.journal.Seq()
	if seq > s.logsSeq {
		return s.oldCheckpoint(fmt.Sprintf("the journal ends at frame %d", seq))
	}
	if seq < s.logsSeq {
		return fmt.Errorf("%w: the journal in %s ends at frame %d, the logs at %d", ErrDamaged, s.journal.LastSegment(), seq, s.logsSeq)
	}
	if applied > seq {
		return fmt.Errorf("%w: the journal in %s ends at frame %d, the store has %d", ErrDamaged, s.journal.LastSegment(), seq, applied)
	}
	if applied < saved.Seq {
		// What was lost is found missing and restored. From now on only a
		// later loss must count as one.
		if err := s.applier.apply([]frame{{seq: seq}}); err != nil {
			return err
		}
	}
	s.applier.mu.Lock()
	defer s.applier.mu.Unlock()
	s.applier.applied = seq
	return nil
}

// oldCheckpoint returns the error of a journal that has released frames which
// the checkpoint lacks.
func (s *Store) oldCheckpoint(but string) error {
	return fmt.Errorf("%w: %s ends at frame %d, and %s: it is an older copy of itself, or the journal in %s is another one",
		ErrDamaged, filepath.Join(s.dir, checkpointName), s.logsSeq, but, filepath.Join(s.dir, journalDir))
}

// roomToReplay returns ErrNoSpace unless there is the space to apply the
// journal's frames after a checkpoint to Badger. A replay that ends in the
// middle leaves what it has written, and the next one writes that again. So
// without this check starts on a full disk use up the space that comes back.
func (s *Store) roomToReplay(checkpoint uint64) error {
	if s.opts.FS != nil {
		return nil // not the files that Badger has beside it
	}
	dir := filepath.Join(s.dir, journalDir)
	size, err := dirBytes(dir)
	have, freeErr := s.opts.FreeSpace(s.room.dir)
	if err != nil || freeErr != nil || have-s.room.floor > 2*size {
		return nil //nolint:nilerr // there is plenty, or nobody knows
	}
	need := int64(0)
	_, err = journal.Salvage(dir, func(seq uint64, ops []journal.Op) error {
		if seq > checkpoint && checkOps(ops) == nil {
			d := s.applier.demand([]frame{{seq, ops}})
			need += d.vlog + d.mem
		}
		return nil
	})
	if err != nil || have-s.room.floor >= need {
		return nil //nolint:nilerr // the replay reports what is wrong
	}
	return fmt.Errorf("%w: to write what is only in the journal to %s takes %s: %s are free on its file system, %s are needed",
		ErrNoSpace, s.room.dir, mebibytes(need), mebibytes(have), mebibytes(need+s.room.floor))
}

// dirBytes returns how many bytes the files of a directory have.
func dirBytes(dir string) (bytes int64, err error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, n := range names {
		if info, err := n.Info(); err == nil {
			bytes += info.Size()
		}
	}
	return bytes, err
}

// replayer applies frames of the journal to Badger, many at once: one at a time
// would take longer than writing them did.
type replayer struct {
	store  *Store
	frames []frame
	bytes  int64
}

func (r *replayer) frame(seq uint64, ops []journal.Op) error {
	const atOnce = 4 << 20
	s := r.store
	if seq > s.logsSeq+1 {
		return s.oldCheckpoint(fmt.Sprintf("the journal begins at frame %d", seq))
	}
	if err := checkOps(ops); err != nil {
		return fmt.Errorf("%w: frame %d of the journal: %w", ErrDamaged, seq, err)
	}
	n := opsBytes(ops)
	if seq == s.logsSeq+1 {
		s.applyToLogs(seq, ops)
		s.sinceCheck += n
	}
	r.frames = append(r.frames, frame{seq, ops})
	if r.bytes += n; r.bytes >= atOnce {
		return r.flush()
	}
	return nil
}

func (r *replayer) flush() error {
	if len(r.frames) == 0 {
		return nil
	}
	err := r.store.applier.apply(r.frames)
	r.frames, r.bytes = nil, 0
	return err
}

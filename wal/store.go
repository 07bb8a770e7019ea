package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/wal/journal"
)

const (
	lockFile   = "lock"
	journalDir = "journal"
	badgerDir  = "store"
)

// Options configures a store. The zero value is the default.
type Options struct {
	// Identity is the expected identity of the directory. A new directory is
	// founded with it; an existing one must match the fields that are not zero.
	Identity Identity
	// TailBytes bounds the bytes of each log's newest entries that stay in
	// memory after Badger has them. Default 16 MiB.
	TailBytes int
	// CheckpointBytes is how many bytes are written to the journal between two
	// checkpoints. More means fewer syncs of Badger's files and a longer replay
	// after a crash. Default 128 MiB.
	CheckpointBytes int64
	// SegmentSize is the size of the journal's segments in bytes. Default 64
	// MiB.
	SegmentSize int64
	// FS is the journal's file system. Default: the operating system's.
	FS journal.FS
	// FreeSpace returns how many bytes are free on the file system under a
	// directory. Default [FreeSpace].
	FreeSpace func(dir string) (int64, error)
	// Repairable opens a store although entries are missing or damaged, at a
	// log's ends or in Badger's newest logs: the caller can restore them.
	// Reading them returns [ErrDamaged].
	Repairable bool
	// Recovering opens a directory whose recovery was interrupted.
	Recovering bool
	// Damaged is called when an entry can't be read that should be there, with
	// the error of the read. It must not block. Default: nothing is called.
	Damaged func(Damage)
	// Logger logs messages of the store and of Badger. Default: none.
	Logger *slog.Logger

	// For tests, which then need less data: badger changes Badger's options,
	// and mergeAfter, if set, is how many bytes are deleted before tables are
	// merged.
	badger     func(badger.Options) badger.Options
	mergeAfter int64
	// allocate is allocateBlocks, except in tests.
	allocate func(fd uintptr, bytes int64) error
	// unmappable is the field of mappedFiles.
	unmappable func(path string) bool
	// patience is closePatience and rest is compactorRest, except in tests.
	patience, rest time.Duration
}

// replayedDivisor is by what CheckpointBytes is divided: a start that has
// replayed as many bytes or more takes a checkpoint.
const replayedDivisor = 8

func (o Options) withDefaults() Options {
	if o.TailBytes == 0 {
		o.TailBytes = 16 << 20
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = 128 << 20
	}
	if o.patience == 0 {
		o.patience = closePatience
	}
	if o.rest == 0 {
		o.rest = compactorRest
	}
	if o.allocate == nil {
		o.allocate = allocateBlocks
	}
	if o.FreeSpace == nil {
		o.FreeSpace = FreeSpace
	}
	if o.Damaged == nil {
		o.Damaged = func(Damage) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is an open data directory. It is safe for concurrent use.
type Store struct {
	dir      string
	opts     Options
	identity Identity
	lock     *os.File
	db       *badger.DB
	journal  *journal.Journal

	// mu guards logs and logsSeq, and is held while a frame is applied to logs,
	// so that a checkpoint sees whole frames.
	mu      sync.Mutex
	logs    map[uint32]*Log
	logsSeq uint64 // seq of the last frame that logs have

	// writing guards closed. Writers hold it for reading; Close locks it to
	// wait for them.
	writing sync.RWMutex
	closed  bool
	// reading guards badgerClosed. Readers of Badger hold it for reading. It is
	// locked while a file is removed that they may read.
	reading      sync.RWMutex
	badgerClosed bool

	generating sync.Mutex // held while a generation begins

	// badgerWrite is held for every write to Badger, and while Badger collects
	// a value log: its collector reads without a lock what a write changes.
	badgerWrite sync.Mutex
	room        *room
	mapped      *mappedFiles
	detach      func() // ends mapped's part
	compactors  compactors
	// tight is true while there is not enough space for what Badger may write.
	// It is set when a write meets that, and checked each second.
	tight atomic.Bool
	// starting accounts for what the next start needs.
	starting nextStart
	// short is true once the lack of space was logged.
	short atomic.Bool

	applier    *applier
	checkpoint chan struct{} // a request for one; capacity 1
	sinceCheck int64         // bytes synced since the last request; owned by synced
	deleted    atomic.Int64  // bytes deleted from Badger since it was last compacted
	checking   sync.Mutex    // held while one is taken, or space reclaimed; guards checked
	checked    uint64        // seq of the last one
	counters   counters
	// missing are the memtable logs that the checkpoint lists and that were not
	// there when the store was opened, for error messages.
	missing []string
	// unlisted are the tables that the last scrub did not find in Badger's
	// manifest.
	unlisted atomic.Pointer[map[uint64]bool]
	// badgerLogs says how far the last checkpoint found Badger's logs intact.
	// checking guards it.
	badgerLogs map[string]badgerLogEnd

	done        chan struct{} // closed by Close: stops the background goroutines
	roomChecked chan struct{} // see RoomChecked
	background  sync.WaitGroup
	closeOnce   sync.Once
	closeErr    error

	opened  atomic.Bool   // Open has succeeded
	failed  chan struct{} // closed when the store fails
	failure atomic.Pointer[error]
}

// Open opens the data directory dir, founding it if it is empty or missing,
// and brings it to the state after the last synced write. The errors to test
// for are [ErrInUse], [ErrIdentity], [ErrFormat], [ErrReadOnly], [ErrNoSpace]
// and [ErrDamaged].
func Open(dir string, opts Options) (*Store, error) {
	s := &Store{
		dir: dir, opts: opts.withDefaults(), logs: map[uint32]*Log{},
		checkpoint: make(chan struct{}, 1), done: make(chan struct{}), roomChecked: make(chan struct{}, 1), failed: make(chan struct{}),
	}
	s.applier = newApplier(s)
	if err := s.open(); err != nil {
		_ = s.release()
		err, _ = explain(err)
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	s.opened.Store(true)
	s.checkpointForNextStart()
	s.checkRoom()
	s.background.Go(s.applier.run)
	s.background.Go(s.runCheckpoints)
	s.background.Go(s.watch)
	for _, l := range s.allLogs() {
		if l.FirstIndex() > 1 {
			l.removeTrimmed()
		}
	}
	// What was replayed would be written to Badger once more by the next start.
	if s.sinceCheck >= s.opts.CheckpointBytes/replayedDivisor {
		s.sinceCheck = 0
		s.wakeCheckpoint()
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err = makeDir(s.dir); err != nil {
		return err
	}
	if s.lock, err = lockDir(s.dir); err != nil {
		return err
	}
	fresh := false
	if s.identity, fresh, err = identify(s.dir, s.opts.Identity); err != nil {
		return err
	}
	if s.identity.Recovering != nil && !s.opts.Recovering {
		return fmt.Errorf("%w: a recovery of this directory was begun and not completed: run \"cantus recover\" again, which completes it", ErrIdentity)
	}
	var saved checkpointFile
	if !fresh {
		if err = s.mustBeWhole(); err != nil {
			return err
		}
		if saved, err = s.readCheckpoint(); err != nil {
			return err
		}
	}
	if s.missing, err = checkBadgerLogs(filepath.Join(s.dir, badgerDir), saved.BadgerLogs, s.lostOnStart()); err != nil {
		return err
	}
	if err = s.openBadger(); err != nil {
		return err
	}
	if err = s.replay(saved); err != nil {
		return err
	}
	if fresh {
		if err = s.finishFounding(); err != nil {
			return err
		}
	}
	if err = s.endFounding(); err != nil {
		return err
	}
	if err = s.checkEnds(); err != nil {
		return err
	}
	if err = s.Failed(); err != nil { // Badger logged an error
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// lostOnStart returns a function that logs which entries a store lacks that may
// be opened without them, nil for a store that may not.
func (s *Store) lostOnStart() func(error) {
	if !s.opts.Repairable {
		return nil
	}
	return func(err error) {
		s.opts.Logger.Error("a file is damaged: its entries are to be restored", "err", err)
	}
}

// mustBeWhole checks that the parts of a founded directory are there: Badger
// and the journal would start empty without them.
func (s *Store) mustBeWhole() error {
	manifest := filepath.Join(s.dir, badgerDir, badger.ManifestFilename)
	if _, err := os.Stat(manifest); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, manifest)
	}
	fsys := s.opts.FS
	if fsys == nil {
		fsys = journal.OSFS
	}
	names, err := fsys.ReadDir(filepath.Join(s.dir, journalDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || !slices.Contains(names, "checkpoint") {
		return fmt.Errorf("%w: %s is missing, and with it the journal's beginning", ErrDamaged, filepath.Join(s.dir, journalDir, "checkpoint"))
	}
	return nil
}

// fromJournal wraps the journal's errors in this package's.
func fromJournal(err error) error {
	if err == nil {
		return nil
	}
	for _, e := range []struct{ theirs, ours error }{
		{journal.ErrDamaged, ErrDamaged},
		{journal.ErrVersion, ErrFormat},
		{journal.ErrOtherStore, ErrIdentity},
		{journal.ErrFailed, ErrFailed},
		{journal.ErrNoSpace, ErrNoSpace},
		{journal.ErrClosed, ErrClosed},
	} {
		if errors.Is(err, e.theirs) && !errors.Is(err, e.ours) {
			return fmt.Errorf("%w: %w", e.ours, err)
		}
	}
	return err
}

// checkEnds checks that the store has the first and last entry of each log: a
// loss at an end would not be noticed otherwise.
func (s *Store) checkEnds() error {
	for _, l := range s.allLogs() {
		first, last := l.ends()
		if last == 0 {
			continue
		}
		for _, index := range []uint64{first, last} {
			_, err := l.Entry(index)
			if err != nil && !(s.opts.Repairable && errors.Is(err, ErrDamaged)) {
				return err
			}
		}
	}
	return nil
}

func (s *Store) allLogs() []*Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.logs))
}

// Identity returns the directory's identity.
func (s *Store) Identity() Identity { return s.identity }

// Dir returns the path of the data directory.
func (s *Store) Dir() string { return s.dir }

// Log returns the log of a group, which is empty if it was never written to.
// Calls for one group return the same Log.
func (s *Store) Log(group uint32) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log(group)
}

func (s *Store) log(group uint32) *Log {
	l := s.logs[group]
	if l == nil {
		l = newLog(s, group)
		s.logs[group] = l
	}
	return l
}

// commit writes ops to the journal. When it returns nil they are synced and
// applied to the logs.
func (s *Store) commit(ops []journal.Op) error {
	s.writing.RLock()
	defer s.writing.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.Failed(); err != nil {
		return err
	}
	err := s.journal.Commit(ops)
	if err == nil {
		return s.Failed()
	}
	if errors.Is(err, journal.ErrFailed) {
		s.fail(err)
	}
	return fromJournal(err)
}

// commitAsync is commit without waiting: see journal.CommitAsync. It returns
// false if nothing was done.
func (s *Store) commitAsync(ops []journal.Op, then func(error)) bool {
	s.writing.RLock() // until the outcome is known
	if s.closed || s.Failed() != nil {
		s.writing.RUnlock()
		return false
	}
	taken := s.journal.CommitAsync(ops, func(err error) {
		if err != nil {
			s.fail(err)
		} else {
			err = s.Failed()
		}
		then(fromJournal(err))
		s.writing.RUnlock()
	})
	if !taken {
		s.writing.RUnlock()
	}
	return taken
}

// synced is called by the journal for each frame, in order.
func (s *Store) synced(seq uint64, ops []journal.Op) {
	n := opsBytes(ops)
	s.admit(s.applyToLogs(seq, ops))
	s.applier.enqueue(frame{seq, ops}, n)
	s.askCheckpoint(n)
}

// askCheckpoint asks for a checkpoint once enough bytes were synced.
func (s *Store) askCheckpoint(n int64) {
	if s.sinceCheck += n; s.sinceCheck < s.opts.CheckpointBytes {
		return
	}
	s.sinceCheck = 0
	s.wakeCheckpoint()
}

func (s *Store) wakeCheckpoint() {
	select {
	case s.checkpoint <- struct{}{}:
	default: // there is a request already
	}
}

// applyToLogs applies one frame to the logs in memory, both at replay and in
// normal operation. It returns the bytes that the ops take in Badger's logs.
func (s *Store) applyToLogs(seq uint64, ops []journal.Op) (logs int64) {
	applied := s.applier.done()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, op := range ops {
		s.log(keyGroup(op.Key)).applyOp(seq, op, applied)
	}
	invariant.FramesInOrder.Check(seq == s.logsSeq+1, seq, s.logsSeq+1)
	s.logsSeq = seq
	d := s.applier.demand([]frame{{seq, ops}})
	s.starting.replayBytes.Add(d.vlog + d.mem)
	return d.vlog + d.mem
}

func (s *Store) lastLogsSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logsSeq
}

func opsBytes(ops []journal.Op) (n int64) {
	for i := range ops {
		n += int64(len(ops[i].Key) + len(ops[i].Value))
	}
	return n
}

// inBackground runs fn on a goroutine that Close waits for. If the store is
// closing fn does not run.
func (s *Store) inBackground(fn func()) {
	s.writing.RLock()
	defer s.writing.RUnlock()
	if !s.closed {
		s.background.Go(fn)
	}
}

// fail latches the first failure: every later write returns ErrFailed.
func (s *Store) fail(cause error) {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	if s.failure.CompareAndSwap(nil, &err) {
		if s.opened.Load() { // otherwise Open returns it
			s.opts.Logger.Error("store failed: nothing more is acknowledged until it is opened again", "err", cause)
		}
		close(s.failed)
		s.applier.wake()
	}
}

// Failed returns nil while the store works, and after a failure an error that
// wraps [ErrFailed].
func (s *Store) Failed() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Failure returns a channel that is closed when the store fails.
func (s *Store) Failure() <-chan struct{} { return s.failed }

// RoomChecked returns a channel that receives a value each second, after the
// store has checked the free space. A caller with checks of its own does them
// then, so that an idle process wakes once and not twice. A slow receiver
// misses values.
func (s *Store) RoomChecked() <-chan struct{} { return s.roomChecked }

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

	"github.com/cantuslog/cantus/wal/journal"
)

const (
	lockFile   = "lock"
	journalDir = "journal"
	badgerDir  = "store"
)

// Options configures a store. The zero value is the default.
type Options struct {
	// Identity is whom the directory is for. A new directory is founded with
	// it; for an old one, fields that are not zero must be what it holds.
	Identity Identity
	// TailBytes bounds the newest entries of each log that stay in memory
	// although Badger has them, in bytes. Default 16 MiB.
	TailBytes int
	// CheckpointBytes is how many bytes of journal there are between
	// checkpoints: more means fewer syncs of Badger's files and a longer
	// replay after a crash. Default 128 MiB.
	CheckpointBytes int64
	// SegmentSize is the journal's, in bytes. Default 64 MiB.
	SegmentSize int64
	// FS is what the journal writes through. Default the operating system's.
	FS journal.FS
	// FreeSpace returns how many bytes are free on the file system under a
	// directory. Default [FreeSpace].
	FreeSpace func(dir string) (int64, error)
	// Logger takes what Badger and checkpoints have to say. Default: discarded.
	Logger *slog.Logger

	// badger changes Badger's options, and mergeAfter, if set, is how many bytes
	// are deleted before its tables are merged, so that tests meet with few bytes
	// what otherwise takes many.
	badger     func(badger.Options) badger.Options
	mergeAfter int64
	// patience is closePatience, and rest compactorRest, or less in tests.
	patience, rest time.Duration
}

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
	if o.FreeSpace == nil {
		o.FreeSpace = FreeSpace
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is a node's data directory, open. It is safe for concurrent use.
type Store struct {
	dir      string
	opts     Options
	identity Identity
	lock     *os.File
	db       *badger.DB
	journal  *journal.Journal

	// mu guards logs, and orders folding against checkpoints.
	mu     sync.Mutex
	logs   map[uint32]*Log
	folded uint64 // seq of the last frame folded into logs

	// writing is held by who writes, and by Close to wait for them; it
	// guards closed.
	writing sync.RWMutex
	closed  bool
	// reading is held by who reads from Badger, and by who takes files away
	// that they read from; it guards unmapped.
	reading  sync.RWMutex
	unmapped bool

	generating sync.Mutex // held while a generation begins

	// changing is held by who writes to Badger: its collector reads, without
	// a lock, what writing changes.
	changing sync.Mutex
	room     *room
	// compactors are Badger's.
	compactors compactors
	// tight says that there is not enough room for what Badger may write. It is
	// set when that is met, and looked at each second.
	tight atomic.Bool
	// starting is what the next start needs.
	starting nextStart
	// short says that the log has told of a lack of room.
	short atomic.Bool

	applier    *applier
	checkpoint chan struct{} // asks for one; capacity 1
	sinceCheck int64         // bytes folded since one was asked for; owned by synced
	deleted    atomic.Int64  // bytes that Badger was told to delete since it was last compacted
	checking   sync.Mutex    // held while one is taken, or space reclaimed; guards checked
	checked    uint64        // seq of the last one
	// missing are the memtable logs that the checkpoint knew and that were gone
	// when the store was opened, for messages.
	missing []string
	// badgerLogs is how far the last checkpoint found Badger's logs whole;
	// checking guards it.
	badgerLogs map[string]badgerLogEnd

	done       chan struct{} // closed by Close: stops the background
	background sync.WaitGroup
	closeOnce  sync.Once
	closeErr   error

	opened  atomic.Bool   // Open is through
	failed  chan struct{} // closed when the store latches
	failure atomic.Pointer[error]
}

// Open opens the data directory dir, founding it if it is empty or missing,
// and brings it to the state after the last synced write. The errors to test
// for are [ErrInUse], [ErrIdentity], [ErrFormat], [ErrReadOnly], [ErrNoSpace]
// and [ErrDamaged].
func Open(dir string, opts Options) (*Store, error) {
	s := &Store{
		dir: dir, opts: opts.withDefaults(), logs: map[uint32]*Log{},
		checkpoint: make(chan struct{}, 1), done: make(chan struct{}), failed: make(chan struct{}),
	}
	s.applier = newApplier(s)
	if err := s.open(); err != nil {
		_ = s.release()
		err, _ = explain(err)
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	s.opened.Store(true)
	s.settleStart()
	s.checkRoom()
	s.background.Go(s.applier.run)
	s.background.Go(s.runCheckpoints)
	s.background.Go(s.watch)
	for _, l := range s.allLogs() {
		if l.FirstIndex() > 1 {
			l.removeTrimmed()
		}
	}
	s.askCheckpoint(0) // replay may have left enough for one
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
	var saved checkpointFile
	if !fresh {
		if err = s.mustBeWhole(); err != nil {
			return err
		}
		if saved, err = s.readCheckpoint(); err != nil {
			return err
		}
	}
	if s.missing, err = checkBadgerLogs(filepath.Join(s.dir, badgerDir), saved.BadgerLogs); err != nil {
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
	if err = s.Failed(); err != nil { // Badger has logged an error
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// mustBeWhole makes sure that the parts of a founded directory are there:
// Badger and the journal would begin anew without them.
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

// replay opens the journal and brings Badger and the logs to its end.
func (s *Store) replay(saved checkpointFile) error {
	applied, err := s.badgerApplied()
	if err != nil {
		return err
	}
	if applied < saved.Seq {
		return fmt.Errorf("%w: %s lost its end: the store ends at frame %d, the checkpoint says that it had %d",
			ErrDamaged, s.keyHolders(), applied, saved.Seq)
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
	if seq != s.folded {
		return fmt.Errorf("%w: the journal in %s ends at frame %d, the logs at %d", ErrDamaged, s.journal.LastSegment(), seq, s.folded)
	}
	if applied > seq {
		return fmt.Errorf("%w: the journal in %s ends at frame %d, the store has %d", ErrDamaged, s.journal.LastSegment(), seq, applied)
	}
	s.applier.mu.Lock()
	defer s.applier.mu.Unlock()
	s.applier.applied = seq
	return nil
}

// replayer takes frames from the journal. It applies many at once: one by one
// it would take Badger longer than it took to write them.
type replayer struct {
	store  *Store
	frames []frame
	bytes  int64
}

func (r *replayer) frame(seq uint64, ops []journal.Op) error {
	const atOnce = 4 << 20
	s := r.store
	if seq > s.folded+1 {
		return fmt.Errorf("%w: the journal begins at frame %d, the checkpoint ends at %d", ErrDamaged, seq, s.folded)
	}
	n := opsBytes(ops)
	if seq == s.folded+1 {
		s.fold(seq, ops)
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

// fromJournal gives the journal's errors this package's names.
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

// checkEnds makes sure that the store holds what the logs say they end in:
// loss at an end would otherwise not show.
func (s *Store) checkEnds() error {
	for _, l := range s.allLogs() {
		first, last := l.ends()
		if last == 0 {
			continue
		}
		for _, index := range []uint64{first, last} {
			if _, err := l.Entry(index); err != nil {
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

// Identity tells whom the directory belongs to.
func (s *Store) Identity() Identity { return s.identity }

// Dir is the data directory.
func (s *Store) Dir() string { return s.dir }

// Log gives the log of a group, empty if it was never written to. The same
// group gives the same Log.
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

// commit writes ops through the journal; when it returns nil they are synced
// and folded.
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

// promise is commit for who goes on without the outcome; false says that
// nothing was done.
func (s *Store) promise(ops []journal.Op, then func(error)) bool {
	s.writing.RLock() // until the outcome is known
	if s.closed || s.Failed() != nil {
		s.writing.RUnlock()
		return false
	}
	promised := s.journal.Promise(ops, func(err error) {
		if err != nil {
			s.fail(err)
		} else {
			err = s.Failed()
		}
		then(fromJournal(err))
		s.writing.RUnlock()
	})
	if !promised {
		s.writing.RUnlock()
	}
	return promised
}

// synced is called by the journal for each frame, in order.
func (s *Store) synced(seq uint64, ops []journal.Op) {
	n := opsBytes(ops)
	s.admit(s.fold(seq, ops))
	s.applier.give(frame{seq, ops}, n)
	s.askCheckpoint(n)
}

// askCheckpoint asks for a checkpoint once enough bytes were folded.
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
	default: // one is on its way
	}
}

// fold brings the logs' state in memory forward by one frame. Replay and
// normal operation both come through here. It returns what the ops take in
// Badger's logs.
func (s *Store) fold(seq uint64, ops []journal.Op) (logs int64) {
	applied := s.applier.done()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, op := range ops {
		s.log(keyGroup(op.Key)).fold(seq, op, applied)
	}
	s.folded = seq
	d := s.applier.demand([]frame{{seq, ops}})
	s.starting.owed.Add(d.vlog + d.mem)
	return d.vlog + d.mem
}

func (s *Store) lastFolded() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.folded
}

func opsBytes(ops []journal.Op) (n int64) {
	for i := range ops {
		n += int64(len(ops[i].Key) + len(ops[i].Value))
	}
	return n
}

// inBackground runs fn beside other work; Close waits for it. Once the store
// is closing fn is not run.
func (s *Store) inBackground(fn func()) {
	s.writing.RLock()
	defer s.writing.RUnlock()
	if !s.closed {
		s.background.Go(fn)
	}
}

// fail latches the store: every later write is refused.
func (s *Store) fail(cause error) {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	if s.failure.CompareAndSwap(nil, &err) {
		if s.opened.Load() { // else Open says it
			s.opts.Logger.Error("store failed: nothing more is acknowledged until it is opened again", "err", cause)
		}
		close(s.failed)
		s.applier.wake()
	}
}

// Failed returns the error that latched the store, nil while it works. It wraps
// [ErrFailed].
func (s *Store) Failed() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Failure is closed when the store latches.
func (s *Store) Failure() <-chan struct{} { return s.failed }

// Stats are a store's counters since it was opened.
type Stats struct {
	Journal journal.Stats
	// Applied is the last journal frame that Badger has.
	Applied uint64
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	return Stats{Journal: s.journal.Stats(), Applied: s.applier.done()}
}

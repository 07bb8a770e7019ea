package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
)

// Journal is an open journal. Its methods are safe for concurrent use.
type Journal struct {
	dir   string
	opts  Options
	fs    FS
	codec codec
	id    identity

	// Owned by the writer's goroutine, and by Open and Close before and after
	// it.
	active *segment
	off    int64  // where in active the next frame goes
	sealed bool   // there is a seal at off
	frame  []byte // encoding buffer
	roomy  int    // frames in a row that were far smaller than it

	// releasing guards the checkpoint file, and ck for writing.
	releasing sync.Mutex

	renew atomic.Bool // see Renew

	mu      sync.Mutex // guards what follows
	work    sync.Cond  // the writer waits for commits, or for closing
	room    sync.Cond  // committers wait for room in the queue
	prepare sync.Cond  // the preparer waits for wanted, or stopped
	ahead   sync.Cond  // the writer waits for the preparer
	queue   []*commit
	queued  int64 // bytes of operations in queue
	left    int64 // bytes that the active segment has left for frames
	// unwritten bounds the bytes of the frames of all commits that are in the
	// queue or being written.
	unwritten int64
	closing   bool
	err       error // the failure, once there is one
	failed    chan struct{}
	seq       uint64 // last synced frame
	ck        checkpoint
	live      []extent // segments with frames that count, the active one last
	spares    []string // paths of segments to be used again
	ready     []*segment
	number    uint64      // of the next segment to be made
	size      int64       // of the last segment that was made
	wanted    bool        // the preparer has a segment to make
	need      int64       // bytes of a frame that it must hold; 0 if any size will do
	prepErr   error       // how its last attempt ended
	short     atomic.Bool // see Short
	stopped   bool        // the preparer is to end
	stats     Stats

	writer, preparer sync.WaitGroup
	closed           chan struct{} // closed when Close has done its work
	closeErr         error
}

// extent is a segment with frames, by its number and its first frame's.
type extent struct{ number, first uint64 }

// Open opens the journal in dir, or creates one if the directory is empty or
// not there. It calls replay for every frame after the last Release, in order,
// before it returns; replay may keep the slices. When Open returns nil the
// replayed frames are durable.
//
// It returns ErrDamaged, ErrVersion or ErrOtherStore for a journal that it must
// not touch; replay may by then have been called for the frames before the
// damage. An error of replay ends Open and is wrapped. The caller ensures that
// only one process has the journal open.
func Open(dir string, opts Options, replay func(seq uint64, ops []Op) error) (*Journal, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	l, err := prepareDir(opts, dir)
	if err != nil {
		return nil, err
	}
	r := &recovery{fs: opts.FS, dir: dir, flag: os.O_RDWR}
	if err := r.load(l, opts.StoreID); err != nil {
		return nil, errors.Join(err, r.close())
	}
	if err := r.walk(r.replayer(replay)); err != nil {
		return nil, errors.Join(err, r.close())
	}
	j := newJournal(dir, opts, r)
	if err := j.takeOver(r, l); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", dir, noSpace(err)), r.close())
	}
	j.wanted = len(j.ready) == 0
	j.writer.Go(j.write)
	j.preparer.Go(j.prepareSegments)
	return j, nil
}

// prepareDir creates a journal in dir if there is none.
func prepareDir(opts Options, dir string) (listing, error) {
	if err := opts.FS.MkdirAll(dir, 0o700); err != nil {
		return listing{}, fmt.Errorf("open journal: %w", err)
	}
	l, err := list(opts.FS, dir)
	if err != nil || l.checkpoint {
		return l, err
	}
	if err := create(opts, dir, l); err != nil {
		return l, fmt.Errorf("create journal in %s: %w", dir, noSpace(err))
	}
	return list(opts.FS, dir)
}

// create makes an empty journal: its first segment, then the checkpoint. A
// crash in between leaves a segment without a frame, which is made again. Any
// other directory without a checkpoint has lost it.
func create(opts Options, dir string, l listing) error {
	for _, number := range l.segments {
		path := filepath.Join(dir, segmentName(number))
		if empty, err := unused(opts.FS, path); err != nil {
			return err
		} else if number != 1 || !empty {
			return damaged(filepath.Join(dir, checkpointName), 0, "checkpoint is missing")
		}
		if err := opts.FS.Remove(path); err != nil {
			return err
		}
	}
	if err := opts.FS.SyncDir(filepath.Dir(filepath.Clean(dir))); err != nil {
		return err
	}
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	id := identity{salt: binary.LittleEndian.Uint64(salt[:]), store: opts.StoreID}
	s, err := makeSegment(opts.FS, dir, "", 1, opts.FirstSize, id)
	if err != nil {
		return err
	}
	if err := s.file.Close(); err != nil {
		return err
	}
	_, err = checkpoint{identity: id, first: 1, base: 1, last: stillOpen}.install(opts.FS, dir)
	return err
}

// unused reports whether no frame was ever written to a segment.
func unused(fsys FS, path string) (bool, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	l, err := readSegmentLabel(f, path, size)
	if err != nil {
		return false, err
	}
	w := &window{segment: &segment{path: path, file: f, size: size}, start: -1}
	at, err := w.find(newCodec(l.salt), labelBlock, 1)
	return at < 0, err
}

func newJournal(dir string, opts Options, r *recovery) *Journal {
	j := &Journal{
		dir: dir, opts: opts, fs: opts.FS, codec: r.codec, id: r.ck.identity,
		active: r.segments[r.tail], off: r.off, sealed: r.sealed,
		ck: r.ck, seq: r.next - 1, number: r.segments[len(r.segments)-1].number + 1,
		failed: make(chan struct{}), closed: make(chan struct{}),
	}
	j.left, j.size = j.active.size-j.off, j.active.size
	if j.active.number == 1 { // never a recycled file
		j.active.written = j.off
	}
	for _, c := range []*sync.Cond{&j.work, &j.room, &j.prepare, &j.ahead} {
		c.L = &j.mu
	}
	for i, first := range r.firsts {
		j.live = append(j.live, extent{r.segments[i].number, first})
	}
	return j
}

// takeOver makes what was recovered durable, marks the journal as open, and
// puts the directory in order.
func (j *Journal) takeOver(r *recovery, l listing) error {
	if err := r.rewriteLast(); err != nil {
		return err
	}
	// The process that wrote the checkpoint may have died before the rename was
	// durable. No segment may be recycled before it is.
	if err := j.fs.SyncDir(j.dir); err != nil {
		return err
	}
	if j.ck.last != stillOpen {
		j.ck.last = stillOpen
		if _, err := j.ck.install(j.fs, j.dir); err != nil {
			return err
		}
	}
	for _, path := range l.temps {
		if err := j.fs.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, path := range l.spares {
		if len(j.spares) >= maxSpares {
			if err := j.fs.Remove(path); err != nil {
				return err
			}
			continue
		}
		j.spares = append(j.spares, path)
	}
	if err := j.recycle(r.old); err != nil {
		return err
	}
	for _, s := range r.segments[:r.tail] {
		if err := s.file.Close(); err != nil {
			return err
		}
	}
	return j.adopt(r.segments[r.tail+1:])
}

// adopt takes over the segments that were prepared and not used. A segment that
// is larger than Options allow now is removed, with those after it.
func (j *Journal) adopt(ready []*segment) error {
	for len(ready) > 0 && ready[0].size <= j.opts.SegmentSize {
		j.size = ready[0].size
		j.ready, ready = append(j.ready, ready[0]), ready[1:]
	}
	if len(ready) > 0 {
		j.number = ready[0].number
	}
	for _, s := range slices.Backward(ready) { // there is no gap at any moment
		if err := errors.Join(s.file.Close(), j.fs.Remove(s.path)); err != nil {
			return err
		}
		if err := j.fs.SyncDir(j.dir); err != nil {
			return err
		}
	}
	return nil
}

// Seq returns the sequence number of the last frame that was synced; 0 if there
// never was one.
func (j *Journal) Seq() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seq
}

// LastSegment returns the path of the segment that holds the last frame.
func (j *Journal) LastSegment() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return filepath.Join(j.dir, segmentName(j.live[len(j.live)-1].number))
}

// Err returns nil while the journal works, and after a failure the error that
// every Commit returns; it matches ErrFailed.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// Failed returns a channel that is closed when the journal fails.
func (j *Journal) Failed() <-chan struct{} { return j.failed }

// fail latches the first failure and returns the latched error.
func (j *Journal) fail(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failLocked(err)
}

func (j *Journal) failLocked(err error) error {
	if j.err == nil {
		j.err = fmt.Errorf("%w: %w", ErrFailed, noSpace(err))
		close(j.failed)
	}
	return j.err
}

// Stats are the counters of a journal since it was opened, and what it holds.
type Stats struct {
	Frames  uint64 // frames written
	Commits uint64 // commits in them; Commits - Frames is the number of syncs saved
	Ops     uint64 // operations in them
	Bytes   uint64 // bytes of frames written, headers and padding included
	Syncs   uint64 // syncs of frames

	Segments int   // segments that hold frames not released
	Ready    int   // segments prepared for the next roll
	Spares   int   // released segments kept for use again
	Queued   int64 // bytes of operations that wait for the writer
}

// Stats returns the journal's counters.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Segments, s.Ready, s.Spares, s.Queued = len(j.live), len(j.ready), len(j.spares), j.queued
	return s
}

// Close writes what is queued, records the end of the log in the checkpoint,
// and waits for the journal's goroutines. Later commits, and those that wait
// for room in the queue, return ErrClosed. If the journal has failed, Close
// returns that error. Further calls wait for the first and return its result.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closing {
		j.mu.Unlock()
		<-j.closed
		return j.closeErr
	}
	j.closing = true
	j.work.Broadcast()
	j.room.Broadcast()
	j.mu.Unlock()

	j.writer.Wait()
	j.mu.Lock()
	j.stopped = true
	j.prepare.Broadcast()
	j.ahead.Broadcast()
	j.mu.Unlock()
	j.preparer.Wait()

	j.closeErr = errors.Join(j.markClosed(), j.closeFiles())
	close(j.closed)
	return j.closeErr
}

// markClosed records the last frame, so that its later loss is noticed.
func (j *Journal) markClosed() error {
	j.releasing.Lock()
	defer j.releasing.Unlock()
	if err := j.Err(); err != nil {
		return err
	}
	ck := j.ck
	ck.last = j.Seq()
	_, err := ck.install(j.fs, j.dir)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ck = ck // a Check may read it
	return noSpace(err)
}

func (j *Journal) closeFiles() error {
	errs := []error{j.active.file.Close()}
	for _, s := range j.ready {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

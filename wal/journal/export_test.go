package journal

import (
	"errors"
	"os"
	"path/filepath"
)

// Enqueue returns once ops are in the queue, and wait returns what Commit
// would.
func (j *Journal) Enqueue(ops []Op) (wait func() error) { return j.submit(ops) }

// WithLimits returns o with other sizes of frames and of the queue; 0 is the
// default.
func (o Options) WithLimits(frame int, queue int64) Options {
	o.maxFrame, o.maxQueue = frame, queue
	return o
}

// Report is the result of Check.
type Report struct {
	StoreID  [16]byte
	Released uint64 // frames up to this one are safe elsewhere
	Last     uint64 // the last frame; 0 if there never was one
	Closed   bool   // the journal was closed and not opened since
	Proven   bool   // it is certain that no synced frame followed Last
	Segments int    // segments that hold frames, or will hold the next one
	Frames   uint64 // frames in them, those released included
	Bytes    int64  // and their size
}

// Check reads the journal in dir without changing anything. It calls visit, if
// that is not nil, for each frame that Open would replay. Its errors are those
// that Open would return. It uses only the options FS and StoreID. The journal
// must not be open elsewhere.
func Check(dir string, opts Options, visit func(seq uint64, ops []Op) error) (rep Report, err error) {
	if opts, err = opts.withDefaults(); err != nil {
		return rep, err
	}
	l, err := list(opts.FS, dir)
	if err != nil {
		return rep, err
	}
	r := &recovery{fs: opts.FS, dir: dir, flag: os.O_RDONLY}
	defer func() { err = errors.Join(err, r.close()) }()
	if !l.checkpoint {
		return rep, damaged(filepath.Join(dir, checkpointName), 0, "checkpoint is missing")
	}
	if err := r.load(l, opts.StoreID); err != nil {
		return rep, err
	}
	if err := r.walk(r.replayer(visit)); err != nil {
		return rep, err
	}
	closed := r.ck.last != stillOpen
	return Report{
		StoreID: r.ck.store, Released: r.ck.released, Last: r.next - 1,
		Closed: closed, Proven: closed || r.sealed,
		Segments: len(r.segments), Frames: r.frames, Bytes: r.bytes,
	}, nil
}

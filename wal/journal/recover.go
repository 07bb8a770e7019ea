package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// listing lists the files of a journal's directory.
type listing struct {
	checkpoint bool
	segments   []uint64 // ascending
	spares     []string // paths
	temps      []string // paths
}

func list(fsys FS, dir string) (l listing, err error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return l, fmt.Errorf("open journal %s: %w", dir, err)
	}
	slices.Sort(names)
	for _, name := range names {
		number, isSegment := parseSegmentName(name)
		switch {
		case name == checkpointName:
			l.checkpoint = true
		case isSegment:
			l.segments = append(l.segments, number)
		case strings.HasPrefix(name, sparePrefix):
			l.spares = append(l.spares, filepath.Join(dir, name))
		case name == checkpointTemp, name == segmentTemp:
			l.temps = append(l.temps, filepath.Join(dir, name))
		}
	}
	return l, nil
}

// recovery reads a journal's directory for Open and Check. It changes nothing.
type recovery struct {
	fs    FS
	dir   string
	flag  int // for opening segments
	codec codec
	ck    checkpoint
	old   []uint64 // segments before the checkpoint

	segments []*segment // from ck.first on; open
	windows  []byte     // the buffer, handed from window to window

	// set by walk
	next   uint64   // sequence number after the last frame
	firsts []uint64 // of segments that hold frames, the first frame's
	tail   int      // index of the segment for the next frame
	off    int64    // where in it
	size   int64    // of the last frame, which ends at off; 0 for none
	sealed bool     // the last frame is known to have been synced
	frames uint64
	bytes  int64
}

// load reads the checkpoint and opens the segments from its first on.
func (r *recovery) load(l listing, store [16]byte) error {
	if err := r.loadCheckpoint(); err != nil {
		return err
	}
	if store != [16]byte{} && store != r.ck.store {
		return fmt.Errorf("journal %s: written for store %x, this is %x: %w", r.dir, r.ck.store, store, ErrOtherStore)
	}
	r.codec = newCodec(r.ck.salt)
	i, _ := slices.BinarySearch(l.segments, r.ck.first)
	r.old = l.segments[:i]
	want := r.ck.first
	for _, number := range l.segments[i:] {
		if number != want {
			break
		}
		s, err := openSegment(r.fs, r.dir, number, r.flag, r.ck.identity)
		if err != nil {
			return fmt.Errorf("open segment: %w", err)
		}
		r.segments = append(r.segments, s)
		want++
	}
	if want == r.ck.first || len(r.segments) != len(l.segments)-i {
		return damaged(filepath.Join(r.dir, segmentName(want)), 0, "segment is missing, or the file checkpoint is an older copy of itself")
	}
	return nil
}

func (r *recovery) loadCheckpoint() error {
	path := filepath.Join(r.dir, checkpointName)
	f, err := r.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	b := make([]byte, min(size, labelSize+1))
	if err := readFull(f, b, 0); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	r.ck, err = decodeCheckpoint(path, b)
	return err
}

// walk calls visit for every frame from the checkpoint's base on, in order. It
// returns ErrDamaged unless the place where valid frames stop is the log's end.
func (r *recovery) walk(visit func(seq uint64, body []byte) error) error {
	r.next, r.off = r.ck.base, labelBlock
	ended := false // a segment without frames has been seen
	for i, s := range r.segments {
		w := &window{segment: s, buf: r.windows[:0], start: -1}
		first := r.next
		end, err := r.walkSegment(w, ended, visit)
		if err != nil {
			return err
		}
		if r.next > first || i == 0 {
			r.firsts = append(r.firsts, first)
			r.tail, r.off = i, end
		} else {
			ended = true
		}
		r.windows = w.buf
	}
	return r.checkEnd()
}

// walkSegment reads one segment's frames and returns the offset after the last.
func (r *recovery) walkSegment(w *window, ended bool, visit func(uint64, []byte) error) (int64, error) {
	off := int64(labelBlock)
	from := off // no later frame may follow from here on
	for !ended {
		f, err := w.frame(r.codec, off, r.next, r.next)
		if err != nil {
			return 0, err
		}
		if from = off; f == nil {
			break
		}
		body := frameBody(f)
		if r.sealed = len(body) == 0; r.sealed {
			from += frameHeader
			break
		}
		if err := visit(r.next, body); err != nil {
			return 0, err
		}
		r.size = int64(len(f))
		r.next++
		r.frames++
		r.bytes += r.size
		off += r.size
	}
	if at, err := w.find(r.codec, from, r.next); err != nil {
		return 0, err
	} else if at >= 0 {
		return 0, damaged(w.path, off, "no frame %d, yet there is a later one at offset %d", r.next, at)
	}
	return off, nil
}

// checkEnd compares the log's end with the checkpoint.
func (r *recovery) checkEnd() error {
	last, path := r.next-1, r.segments[r.tail].path
	if last < r.ck.released {
		return damaged(path, r.off, "log ends after frame %d, the checkpoint knows of %d", last, r.ck.released)
	}
	if r.ck.last != stillOpen && last != r.ck.last {
		return damaged(path, r.off, "log ends after frame %d, but was closed after %d", last, r.ck.last)
	}
	return nil
}

// rewriteLast makes the last frame durable. After a failed sync the kernel may
// count pages as clean that never reached the disk. Neither reading them back
// nor another sync proves anything, so the frame is written again. Only the
// last frame can be in that state.
func (r *recovery) rewriteLast() error {
	s := r.segments[r.tail]
	if r.size > 0 && r.ck.last == stillOpen && !r.sealed {
		b := make([]byte, r.size)
		if err := readFull(s.file, b, r.off-r.size); err != nil {
			return fmt.Errorf("read %s: %w", s.path, err)
		}
		if _, err := s.file.WriteAt(b, r.off-r.size); err != nil {
			return err
		}
	}
	return s.file.Sync()
}

func (r *recovery) close() error {
	var errs []error
	for _, s := range r.segments {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// replayer returns a function for walk that calls replay for each frame that is
// not released, with bytes that replay may keep.
func (r *recovery) replayer(replay func(seq uint64, ops []Op) error) func(uint64, []byte) error {
	return func(seq uint64, body []byte) error {
		if seq <= r.ck.released {
			return nil
		}
		ops, err := decodeOps(bytes.Clone(body))
		if err != nil {
			return fmt.Errorf("journal %s: frame %d: %w: %w", r.dir, seq, err, ErrDamaged)
		}
		if replay == nil {
			return nil
		}
		if err := replay(seq, ops); err != nil {
			return fmt.Errorf("replay frame %d: %w", seq, err)
		}
		return nil
	}
}

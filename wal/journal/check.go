package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Check reads back from the disk what the journal would need at its next Open:
// the checkpoint, the labels of its segments, and the frames that are not
// released. Commits and releases go on meanwhile. pace is called after each
// piece with its size in bytes; its error ends Check. An error of damage wraps
// ErrDamaged and names the file.
func (j *Journal) Check(pace func(n int) error) error {
	c, err := j.check(pace)
	if err == nil || c.stopped || errors.Is(err, ErrClosed) {
		return err
	}
	// A release may have replaced what was read. Now there is none.
	j.releasing.Lock()
	defer j.releasing.Unlock()
	_, err = j.check(func(int) error { return nil })
	return err
}

func (j *Journal) check(pace func(n int) error) (c checking, err error) {
	j.mu.Lock()
	ck, live, closing := j.ck, slices.Clone(j.live), j.closing
	c = checking{j: j, pace: pace, next: ck.base, last: j.seq}
	j.mu.Unlock()
	if closing {
		return c, ErrClosed
	}
	return c, c.run(ck, live)
}

// checking is the state of Check.
type checking struct {
	j          *Journal
	pace       func(n int) error
	next, last uint64 // frames from next to last must follow
	stopped    bool   // by pace
}

func (c *checking) run(ck checkpoint, live []extent) error {
	r := recovery{fs: c.j.fs, dir: c.j.dir}
	if err := r.loadCheckpoint(); err != nil {
		return missing(filepath.Join(c.j.dir, checkpointName), err)
	}
	if r.ck != ck {
		return damaged(filepath.Join(c.j.dir, checkpointName), 0, "not what was written last")
	}
	for _, e := range live {
		if err := c.segment(e); err != nil {
			return err
		}
	}
	if c.next <= c.last {
		return damaged(filepath.Join(c.j.dir, segmentName(live[len(live)-1].number)), 0, "no frame %d", c.next)
	}
	return nil
}

// segment reads the frames of a segment, up to the last that must be there.
func (c *checking) segment(e extent) error {
	path := filepath.Join(c.j.dir, segmentName(e.number))
	s, err := openSegment(c.j.fs, c.j.dir, e.number, os.O_RDONLY, c.j.id)
	if err != nil {
		return missing(path, err)
	}
	defer s.file.Close()
	if c.next < e.first {
		return damaged(path, labelBlock, "no frame %d before it", c.next)
	}
	w := &window{segment: s, start: -1}
	off, paid := int64(labelBlock), int64(labelBlock)
	for c.next <= c.last {
		f, err := w.frame(c.j.codec, off, c.next, c.next)
		if err != nil {
			return err
		}
		if f == nil || len(frameBody(f)) == 0 {
			break // it is in the next segment, or missing
		}
		off += int64(len(f))
		c.next++
		if off-paid >= windowSize {
			if err := c.pay(off - paid); err != nil {
				return err
			}
			paid = off
		}
	}
	return c.pay(off - paid)
}

func (c *checking) pay(n int64) error {
	err := c.pace(int(n))
	c.stopped = err != nil
	return err
}

// missing makes damage of a file that is not there.
func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return damaged(path, 0, "file is missing")
	}
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("read %s: %w", path, err)
}

// Renew makes the next commit begin a new segment, so that a release of it
// leaves the segments before that unused.
func (j *Journal) Renew() { j.renew.Store(true) }

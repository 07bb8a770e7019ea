package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Release drops the frames up to and including seq, which are safe elsewhere
// and need not be replayed any more. When it returns nil that is durable, and
// the segments that hold no other frames can be used again. It blocks for two
// syncs. Releasing a frame again does nothing.
//
// It returns ErrNotSynced if seq is past the last synced frame, ErrNoSpace if
// there is no space for the new checkpoint (the old one stays, and the caller
// may try again), ErrClosed, or ErrFailed.
func (j *Journal) Release(seq uint64) error {
	j.releasing.Lock()
	defer j.releasing.Unlock()
	ck, err := j.advance(seq)
	if err != nil || ck == j.ck {
		return err
	}
	if renamed, err := ck.install(j.fs, j.dir); err != nil {
		if !renamed && isNoSpace(err) {
			return noSpace(err)
		}
		return j.fail(err)
	}
	if err := j.recycle(j.forget(ck)); err != nil {
		return j.fail(err)
	}
	return nil
}

// advance returns the checkpoint as it will be once seq is released.
func (j *Journal) advance(seq uint64) (checkpoint, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	ck := j.ck
	switch {
	case j.closing:
		return ck, ErrClosed
	case j.err != nil:
		return ck, j.err
	case seq > j.seq:
		return ck, fmt.Errorf("release frame %d, the last is %d: %w", seq, j.seq, ErrNotSynced)
	case seq <= ck.released:
		return ck, nil
	}
	i := 0
	for i+1 < len(j.live) && j.live[i+1].first <= seq+1 {
		i++
	}
	ck.first, ck.base, ck.released = j.live[i].number, j.live[i].first, seq
	return ck, nil
}

// forget makes ck the checkpoint and returns the segments before it.
func (j *Journal) forget(ck checkpoint) (old []uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ck = ck
	for len(j.live) > 0 && j.live[0].number < ck.first {
		old = append(old, j.live[0].number)
		j.live = j.live[1:]
	}
	return old
}

// recycle makes spares of segments before the checkpoint, or removes them if
// there are enough spares. Nothing of this needs to be durable: a segment that
// comes back after a crash is still before the checkpoint. One that is missing
// is not needed.
func (j *Journal) recycle(old []uint64) error {
	for _, number := range slices.Backward(old) { // the newest are the largest
		path := filepath.Join(j.dir, segmentName(number))
		spare := filepath.Join(j.dir, fmt.Sprintf("%s%016x", sparePrefix, number))
		j.mu.Lock()
		keep := len(j.spares) < maxSpares
		j.mu.Unlock()
		if !keep {
			if err := j.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if err := j.fs.Rename(path, spare); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		j.mu.Lock()
		j.spares = append(j.spares, spare)
		j.mu.Unlock()
	}
	return nil
}

// prepareSegments is the preparer's goroutine: it makes the next segment before
// the writer needs it.
func (j *Journal) prepareSegments() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		for !j.wanted && !j.stopped {
			j.prepare.Wait()
		}
		if j.stopped {
			return
		}
		j.prepareStep()
	}
}

// prepareStep makes one segment. It replaces the prepared one if that is too
// small for the writer's frame. The caller holds mu, which is unlocked
// meanwhile.
func (j *Journal) prepareStep() {
	number, spare, size := j.number, "", j.opts.sizeAfter(j.size, j.need)
	replace := j.need > 0 && len(j.ready) > 0
	if replace {
		number = j.ready[0].number
	}
	if n := len(j.spares); n > 0 {
		spare, j.spares = j.spares[n-1], j.spares[:n-1]
	}
	need, awaited := labelBlock+j.need, j.need > 0
	j.mu.Unlock()
	s, err := j.makeSegment(spare, number, size, need, awaited)
	j.mu.Lock()
	j.wanted, j.need, j.prepErr = false, 0, nil
	switch {
	case err == nil && replace:
		_ = j.ready[0].file.Close() // it holds nothing
		j.ready[0], j.size = s, s.size
	case err == nil:
		j.ready = append(j.ready, s)
		j.size = s.size
		j.number++
	case isNoSpace(err) || errors.Is(err, ErrNoSpace):
		j.prepErr = noSpace(err)
	default:
		j.prepErr = j.failLocked(err)
	}
	j.short.Store(j.prepErr != nil && len(j.ready) == 0)
	j.ahead.Broadcast()
}

// makeSegment makes a segment of the given size, from the spare if there is
// one. A larger spare keeps its size, unless that exceeds Options.SegmentSize.
// If there is no space for the size, the segment is smaller, but has at least
// need bytes. awaited is true if a frame waits for the segment.
func (j *Journal) makeSegment(spare string, number uint64, size, need int64, awaited bool) (*segment, error) {
	held := int64(0)
	if spare != "" {
		has, err := j.sizeOf(spare)
		if errors.Is(err, fs.ErrNotExist) {
			spare = ""
		} else if err != nil {
			return nil, err
		}
		if has > j.opts.SegmentSize {
			if err := j.fs.Remove(spare); err != nil {
				return nil, err
			}
			spare = ""
		}
		if spare != "" {
			size, held = max(size, has), has
		}
	}
	size, err := j.fit(size, held, max(need, j.opts.FirstSize), awaited)
	if err != nil {
		if spare != "" {
			_ = j.fs.Remove(spare) // others may need its space
		}
		return nil, err
	}
	s, err := makeSegment(j.fs, j.dir, spare, number, size, j.id)
	if isNoSpace(err) {
		// The unfinished file takes space that others may need. If it cannot be
		// removed it will be overwritten, or removed by the next Open.
		temp := spare
		if temp == "" {
			temp = filepath.Join(j.dir, segmentTemp)
		}
		_ = j.fs.Remove(temp)
	}
	return s, err
}

// fit returns the size of a segment for which there is space: size, or half of
// it, and so on, but at least least bytes. The file already has held bytes.
func (j *Journal) fit(size, held, least int64, awaited bool) (int64, error) {
	if j.opts.Room == nil {
		return size, nil
	}
	for {
		err := j.opts.Room(max(size-held, 0), false)
		half := max(size/2-size/2%labelBlock, held)
		if err != nil && awaited && (half < least || half == size) {
			size = min(size, max(held, (least+labelBlock-1)/labelBlock*labelBlock))
			err = j.opts.Room(max(size-held, 0), true)
		}
		switch {
		case err == nil:
			return size, nil
		case half < least || half == size:
			return 0, fmt.Errorf("make a segment: %w: %w", ErrNoSpace, err)
		}
		size = half
	}
}

// DropSpares removes the segments that are kept as spares.
func (j *Journal) DropSpares() error {
	j.mu.Lock()
	spares := j.spares
	j.spares = nil
	j.mu.Unlock()
	var errs []error
	for _, path := range spares {
		errs = append(errs, j.fs.Remove(path))
	}
	return errors.Join(errs...)
}

func (j *Journal) sizeOf(path string) (int64, error) {
	f, err := j.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Size()
}

// Short reports whether there was no space for the segment after the active
// one. Commits then use the rest of the active segment, and return ErrNoSpace
// once they do not fit, large ones a little earlier. A caller that has both
// entries and small state to commit should hold the entries back while Short is
// true.
func (j *Journal) Short() bool { return j.short.Load() }

// Prepare makes the segment after the active one if it is missing. It returns
// ErrNoSpace while there is no space for it, ErrClosed, or ErrFailed.
func (j *Journal) Prepare() error { return j.prepareFor(0) }

// prepareFor is Prepare for a frame of need bytes that waits for the segment.
func (j *Journal) prepareFor(need int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for asked := false; len(j.ready) == 0; {
		switch {
		case j.err != nil:
			return j.err
		case j.stopped:
			return ErrClosed
		case j.wanted:
			j.ahead.Wait()
		case asked:
			return j.prepErr
		default:
			j.wanted, j.need, asked = true, need, true
			j.prepare.Signal()
		}
	}
	return nil
}

// nextSegment returns the segment after the active one, with room for a frame
// of need bytes, and asks the preparer for the one after that. An earlier
// attempt that failed before the segment was needed is repeated.
func (j *Journal) nextSegment(need int64) (*segment, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for asked := false; len(j.ready) == 0 || j.ready[0].size-labelBlock < need; {
		switch {
		case j.err != nil:
			return nil, j.err
		case j.wanted:
			j.ahead.Wait()
		case asked:
			return nil, j.prepErr
		default:
			j.wanted, j.need, asked = true, need, true
			j.prepare.Signal()
		}
	}
	s := j.ready[0]
	j.ready = j.ready[1:]
	if len(j.ready) == 0 {
		j.wanted = true
		j.prepare.Signal()
	}
	return s, nil
}

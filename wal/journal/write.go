package journal

import (
	"fmt"
	"slices"
)

const (
	// smallFrame is the largest frame that may use keptRoom: a vote, a term, a
	// snapshot.
	smallFrame = 4 << 10
	// keptRoom is how many bytes large frames leave to small ones: at most a
	// sixteenth of the largest segment.
	keptRoom = 64 << 10
)

// commit is one caller's operations on their way through the queue.
type commit struct {
	ops  []Op
	size int64 // encoded
	done chan struct{}
	err  error // set before done is closed
	// then, if not nil, is called in place of closing done: see CommitAsync.
	then func(error)
}

// alone returns the size of a frame with this commit only. A merged frame is at
// most as large as the sum of those.
func (c *commit) alone() int64 { return frameSize(len(c.ops), c.size) }

func (c *commit) wait() error {
	<-c.done
	return c.err
}

// finish reports the outcome to the callers of commits.
func finish(commits []*commit, err error) {
	for _, c := range commits {
		if c.then != nil {
			c.then(err)
			continue
		}
		c.err = err
		close(c.done)
	}
}

// Commit writes ops, in their order, into one frame, possibly together with
// those of other callers, and returns nil when that frame has been synced. It
// blocks until then. The caller must not change the slices, keys and values
// afterwards. Without ops, Commit waits for everything queued before it and
// writes nothing.
//
// It returns ErrTooLarge or ErrNoSpace when nothing was written, ErrClosed, or
// ErrFailed when it is not known whether the operations will be there after the
// next Open.
func (j *Journal) Commit(ops []Op) error { return j.submit(ops)() }

// submit is Commit in two steps: it returns as soon as ops are in the queue,
// and wait then returns what Commit would. submit blocks only while the queue
// is full. One goroutine's operations are logged in the order in which it
// enqueues them. wait may be called any number of times, or never.
func (j *Journal) submit(ops []Op) (wait func() error) {
	c := &commit{ops: ops, size: opsSize(ops), done: make(chan struct{})}
	if err := j.enqueue(c); err != nil {
		return func() error { return err }
	}
	return c.wait
}

// CommitAsync is Commit without waiting. If it returns true, ops are in the
// queue and will be synced unless the journal fails; a full disk does not
// prevent it. then is called once with the outcome, nil or ErrFailed, in order,
// on the writer's goroutine, under the rules of Options.Synced. If it returns
// false, nothing was done: the active segment or the queue may not have room
// for ops, or the journal is closed or has failed. Commit then returns the
// reason. CommitAsync never blocks.
func (j *Journal) CommitAsync(ops []Op, then func(error)) bool {
	c := &commit{ops: ops, size: opsSize(ops), then: then}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closing || j.err != nil || len(ops) == 0:
		return false
	case len(j.queue) > 0 && j.queued+c.size > j.opts.maxQueue:
		return false
	case j.unwritten+c.alone() > j.left-j.kept(c.alone()):
		return false // there may be no space for another segment
	}
	j.add(c)
	return true
}

func (j *Journal) enqueue(c *commit) error {
	if limit := j.opts.SegmentSize - labelBlock; c.alone() > limit {
		return fmt.Errorf("%d operations of %d bytes, segments hold %d: %w", len(c.ops), c.size, limit, ErrTooLarge)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for !j.closing && j.err == nil && len(j.queue) > 0 && j.queued+c.size > j.opts.maxQueue {
		j.room.Wait()
	}
	if j.closing {
		return ErrClosed
	}
	if j.err != nil {
		return j.err
	}
	j.add(c)
	return nil
}

// add appends a commit to the queue; mu is held.
func (j *Journal) add(c *commit) {
	j.queue = append(j.queue, c)
	j.queued += c.size
	j.unwritten += c.alone()
	j.work.Signal()
}

// write is the writer's goroutine. It writes all frames, and syncs each before
// it begins the next.
func (j *Journal) write() {
	for {
		commits := j.take()
		if commits == nil {
			return
		}
		err := j.step(commits)
		j.mu.Lock()
		for _, c := range commits {
			j.unwritten -= c.alone()
		}
		j.mu.Unlock()
		finish(commits, err)
	}
}

// take waits for commits and takes those for one frame from the queue. It
// returns nil when the journal is closing and the queue is empty.
func (j *Journal) take() []*commit {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.queue) == 0 {
		if j.closing {
			return nil
		}
		if !j.sealed && j.err == nil {
			j.mu.Unlock()
			j.seal()
			j.mu.Lock()
			continue
		}
		j.work.Wait()
	}
	limit := min(int64(j.opts.maxFrame), max(j.left, j.nextSize()-labelBlock))
	n, ops, size := 0, 0, int64(0)
	for _, c := range j.queue {
		ops += len(c.ops)
		if n > 0 && frameSize(ops, size+c.size) > limit {
			break
		}
		if c.then != nil { // only the active segment is certain to have room
			limit = min(limit, j.left)
		}
		n++
		size += c.size
	}
	commits := slices.Clone(j.queue[:n])
	j.queue = slices.Delete(j.queue, 0, n)
	j.queued -= size
	j.room.Broadcast()
	return commits
}

// nextSize returns the size of the segment after the active one, unless a frame
// makes it larger. The caller holds mu.
func (j *Journal) nextSize() int64 {
	if len(j.ready) > 0 {
		return j.ready[0].size
	}
	return j.opts.sizeAfter(j.size, 0)
}

// step writes commits as one frame, syncs it and calls Synced.
func (j *Journal) step(commits []*commit) error {
	if err := j.Err(); err != nil {
		return err
	}
	groups := make([][]Op, len(commits))
	count := 0
	for i, c := range commits {
		groups[i] = c.ops
		count += len(c.ops)
	}
	if count == 0 {
		return nil
	}
	seq := j.Seq() + 1
	j.frame = j.codec.frame(j.frame[:0], seq, groups...)
	async := slices.ContainsFunc(commits, func(c *commit) bool { return c.then != nil })
	if left := j.active.size - j.off - int64(len(j.frame)); left < j.kept(int64(len(j.frame))) && !async {
		if err := j.prepareFor(int64(len(j.frame))); err != nil {
			return err
		}
	}
	if !async && j.renew.Swap(false) {
		if err := j.roll(seq, int64(len(j.frame))); err != nil {
			return err
		}
	}
	if err := j.append(j.frame, seq); err != nil {
		return err
	}
	j.count(len(commits), count, len(j.frame))
	j.trimBuffer()
	if j.opts.Synced != nil {
		ops := groups[0]
		if len(groups) > 1 {
			ops = slices.Concat(groups...)
		}
		j.opts.Synced(seq, ops)
	}
	return nil
}

// append writes a frame at the log's end and syncs it. ErrNoSpace without
// ErrFailed means that nothing was written.
func (j *Journal) append(frame []byte, seq uint64) error {
	if j.active.size-j.off < int64(len(frame)) {
		if err := j.roll(seq, int64(len(frame))); err != nil {
			return err
		}
	}
	if _, err := j.active.file.WriteAt(frame, j.off); err != nil {
		return j.fail(fmt.Errorf("write frame %d: %w", seq, err))
	}
	if err := j.active.writeZeros(j.off+int64(len(frame)), int64(len(frame))); err != nil {
		return j.fail(fmt.Errorf("write zeros after frame %d: %w", seq, err))
	}
	if err := j.active.file.Sync(); err != nil {
		return j.fail(fmt.Errorf("sync frame %d: %w", seq, err))
	}
	j.off += int64(len(frame))
	j.sealed = false
	return nil
}

// kept returns how many bytes of the active segment a frame of the given size
// must leave free: while there is no space for the next segment, small frames
// must still fit.
func (j *Journal) kept(frame int64) int64 {
	if !j.short.Load() || frame <= smallFrame {
		return 0
	}
	return min(keptRoom, j.opts.SegmentSize/16)
}

func (j *Journal) count(commits, ops, bytes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	j.left = j.active.size - j.off
	j.stats.Frames++
	j.stats.Syncs++
	j.stats.Commits += uint64(commits)
	j.stats.Ops += uint64(ops)
	j.stats.Bytes += uint64(bytes)
}

// trimBuffer frees a large encoding buffer when frames have been small for a
// while.
func (j *Journal) trimBuffer() {
	const small, patience = 64 << 10, 64
	if cap(j.frame) <= small || len(j.frame) > cap(j.frame)/4 {
		j.roomy = 0
		return
	}
	if j.roomy++; j.roomy >= patience {
		j.frame, j.roomy = nil, 0
	}
}

// seal writes a seal after the last frame, while there is nothing else to
// write. It is not synced, and the next frame overwrites it.
func (j *Journal) seal() {
	j.sealed = true
	if j.active.size-j.off < frameHeader {
		return
	}
	if _, err := j.active.file.WriteAt(j.codec.seal(j.Seq()+1), j.off); err != nil {
		_ = j.fail(fmt.Errorf("write seal: %w", err))
	}
}

// roll makes the next segment the active one, for frame seq, which has the
// given size.
func (j *Journal) roll(seq uint64, bytes int64) error {
	s, err := j.nextSegment(bytes)
	if err != nil {
		return err
	}
	// Everything in the old segment is synced: closing it cannot lose anything.
	_ = j.active.file.Close()
	j.active, j.off = s, labelBlock
	j.mu.Lock()
	defer j.mu.Unlock()
	j.left = s.size - j.off
	j.live = append(j.live, extent{s.number, seq})
	return nil
}

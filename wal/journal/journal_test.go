package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

func put(key string, size int) []journal.Op {
	return []journal.Op{{Key: []byte(key), Value: make([]byte, size)}}
}

func mustOpen(t testing.TB, dir string, opts journal.Options, replay func(uint64, []journal.Op) error) *journal.Journal {
	t.Helper()
	j, err := journal.Open(dir, opts, replay)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func mustClose(t testing.TB, j *journal.Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOnDisk uses the real file system.
func TestOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	opts := journal.Options{SegmentSize: 64 << 10}
	j := mustOpen(t, dir, opts, nil)
	for i := range 100 {
		if err := j.Commit(put(fmt.Sprint(i), 3000)); err != nil {
			t.Fatal(err)
		}
		if i == 50 {
			if err := j.Release(40); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, j)
	var keys []string
	j = mustOpen(t, dir, opts, func(_ uint64, ops []journal.Op) error {
		keys = append(keys, string(ops[0].Key))
		return nil
	})
	if len(keys) != 60 || keys[0] != "40" || keys[59] != "99" || j.Seq() != 100 {
		t.Errorf("replayed %v up to %d", keys, j.Seq())
	}
	mustClose(t, j)
}

func TestMergesWhatWaits(t *testing.T) {
	var frames [][]journal.Op
	started, goOn := make(chan struct{}), make(chan struct{})
	j := mustOpen(t, dir, journal.Options{FS: journaltest.New(1), SegmentSize: 64 << 10, Synced: func(seq uint64, ops []journal.Op) {
		if frames = append(frames, ops); seq == 1 {
			close(started)
			<-goOn
		}
	}}, nil)
	wait := j.Enqueue(put("0", 1))
	<-started
	waits := []func() error{wait}
	for i := range 10 {
		waits = append(waits, j.Enqueue(put(fmt.Sprint(i+1), 1)))
	}
	close(goOn)
	for _, wait := range waits {
		if err := errors.Join(wait(), wait()); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, j)
	if len(frames) != 2 || len(frames[1]) != 10 {
		t.Fatalf("frames of %d", len(frames))
	}
	for i, op := range frames[1] {
		if string(op.Key) != fmt.Sprint(i+1) {
			t.Errorf("operation %d is %s", i, op.Key)
		}
	}
	if s := j.Stats(); s.Frames != 2 || s.Commits != 11 || s.Ops != 11 || s.Syncs != 2 {
		t.Errorf("stats %+v", s)
	}
}

// TestQueueIsBounded: while the writer is blocked, Enqueue blocks once the
// queue is full, and Close wakes blocked callers.
func TestQueueIsBounded(t *testing.T) { synctest.Test(t, testQueueIsBounded) }

func testQueueIsBounded(t *testing.T) {
	goOn := make(chan struct{})
	j := mustOpen(t, dir, journal.Options{
		FS: journaltest.New(1), SegmentSize: 64 << 10,
		Synced: func(seq uint64, _ []journal.Op) {
			if seq == 1 {
				<-goOn
			}
		},
	}.WithLimits(0, 1000), nil)
	j.Enqueue(put("a", 10))
	synctest.Wait()
	full := j.Enqueue(put("b", 900))
	blocked := make(chan error, 1)
	go func() { blocked <- j.Enqueue(put("c", 900))() }()
	synctest.Wait()
	if q := j.Stats().Queued; q > 1000 {
		t.Errorf("%d bytes queued", q)
	}
	closed := make(chan error, 1)
	go func() { closed <- j.Close() }()
	if err := <-blocked; !errors.Is(err, journal.ErrClosed) {
		t.Errorf("blocked commit: %v", err)
	}
	close(goOn)
	if err := errors.Join(full(), <-closed); err != nil {
		t.Error(err)
	}
}

func TestTooLarge(t *testing.T) {
	j := mustOpen(t, dir, journal.Options{FS: journaltest.New(1), SegmentSize: 8 << 10}, nil)
	defer mustClose(t, j)
	const largest = 4096 - 16 - 1 - 1 - 2 - 1 // header, count, key and value length, key
	if err := j.Commit(put("k", largest+1)); !errors.Is(err, journal.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	for range 3 { // each fills a segment to the last byte
		if err := j.Commit(put("k", largest)); err != nil {
			t.Errorf("largest: %v", err)
		}
	}
}

func TestEmptyCommitWaitsForThoseBefore(t *testing.T) {
	j := mustOpen(t, dir, journal.Options{FS: journaltest.New(1), SegmentSize: 8 << 10}, nil)
	defer mustClose(t, j)
	wait := j.Enqueue(put("a", 1))
	if err := j.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if j.Seq() != 1 {
		t.Errorf("sequence number %d after an empty commit", j.Seq())
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestReleaseRecycles(t *testing.T) {
	fs := journaltest.New(1)
	j := mustOpen(t, dir, journal.Options{FS: fs, SegmentSize: 8 << 10}, nil)
	most := 0
	for i := range 100 {
		if err := j.Commit(put("k", 2000)); err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			if err := j.Release(j.Seq()); err != nil {
				t.Fatal(err)
			}
		}
		most = max(most, len(fs.Files()))
	}
	// The active segment, a ready one, a spare one, one being made; the
	// checkpoint and its temporary file.
	if most > 3+1+2+1+2 {
		t.Errorf("%d files at once", most)
	}
	if err := j.Release(j.Seq() + 1); !errors.Is(err, journal.ErrNotSynced) {
		t.Errorf("release of the future: %v", err)
	}
	if err := j.Release(1); err != nil {
		t.Errorf("release of the past: %v", err)
	}
	mustClose(t, j)
}

func TestClosed(t *testing.T) {
	j := mustOpen(t, dir, journal.Options{FS: journaltest.New(1), SegmentSize: 8 << 10}, nil)
	mustClose(t, j)
	mustClose(t, j)
	if err := j.Commit(put("k", 1)); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	if err := j.Release(0); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("release: %v", err)
	}
}

// TestNoSpace: the disk is full when the next segment is made. The commit that
// needs it fails with nothing written, and succeeds once there is space.
func TestNoSpace(t *testing.T) {
	for _, kind := range []journaltest.Kind{journaltest.Allocate, journaltest.Create} {
		t.Run(string(kind), func(t *testing.T) {
			fs := journaltest.New(1)
			opts := journal.Options{FS: fs, SegmentSize: 8 << 10}
			mustClose(t, mustOpen(t, dir, opts, nil))
			fs.Hook(func(c journaltest.Call) error {
				if c.Kind == kind {
					return syscall.ENOSPC
				}
				return nil
			})
			for _, name := range fs.Files() { // none is ready
				if strings.HasSuffix(name, "2.seg") {
					fs.Delete(name)
				}
			}
			if kind == journaltest.Create { // opening makes a checkpoint
				fs.Hook(func(c journaltest.Call) error {
					if c.Kind == kind && strings.Contains(c.Name, "segment") {
						return syscall.ENOSPC
					}
					return nil
				})
			}
			j := mustOpen(t, dir, opts, nil)
			if err := j.Commit(put("1", 3000)); err != nil {
				t.Fatalf("there is room in the first segment: %v", err)
			}
			for range 2 {
				err := j.Commit(put("lost", 3000))
				if !errors.Is(err, journal.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || errors.Is(err, journal.ErrFailed) {
					t.Fatalf("full disk: %v", err)
				}
			}
			if err := j.Commit(put("2", 100)); err != nil {
				t.Fatalf("a small one fits still: %v", err)
			}
			fs.Hook(nil)
			if err := j.Commit(put("3", 3000)); err != nil {
				t.Fatalf("room again: %v", err)
			}
			mustClose(t, j)
			var keys []byte
			mustClose(t, mustOpen(t, dir, opts, func(_ uint64, ops []journal.Op) error {
				keys = append(keys, ops[0].Key...)
				return nil
			}))
			if string(keys) != "123" {
				t.Errorf("replayed %s", keys)
			}
		})
	}
}

func TestNoSpaceForCheckpoint(t *testing.T) {
	fs := journaltest.New(1)
	j := mustOpen(t, dir, journal.Options{FS: fs, SegmentSize: 8 << 10}, nil)
	if err := j.Commit(put("1", 1)); err != nil {
		t.Fatal(err)
	}
	fs.Hook(func(c journaltest.Call) error {
		if strings.Contains(c.Name, "checkpoint") {
			return syscall.ENOSPC
		}
		return nil
	})
	if err := j.Release(1); !errors.Is(err, journal.ErrNoSpace) || errors.Is(err, journal.ErrFailed) {
		t.Errorf("release on a full disk: %v", err)
	}
	fs.Hook(nil)
	if err := errors.Join(j.Commit(put("2", 1)), j.Release(2)); err != nil {
		t.Error(err)
	}
	mustClose(t, j)
}

// TestHostilePayload commits values that contain whole frames of this journal,
// with each possible sequence number, and tears the frame around them. Without
// the salt, which only the files have, they would be accepted.
func TestHostilePayload(t *testing.T) {
	fs := journaltest.New(1)
	opts := journal.Options{FS: fs, SegmentSize: 64 << 10}
	var payload []byte
	for seq := uint64(1); seq < 20; seq++ {
		payload = append(payload, forged(0, seq)...)
	}
	j := mustOpen(t, dir, opts, nil)
	for range 3 {
		if err := j.Commit([]journal.Op{{Key: []byte("1234"), Value: payload}}); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, j)
	path := filepath.Join(dir, "0000000000000001.seg")
	content := fs.ReadFile(path)
	// The state after a crash in the middle of frame 2: its header of 24 bytes
	// is missing, the payload is there, where frames may begin, and nothing of
	// the log has been written after it.
	at := bytes.LastIndex(content, payload)
	second := bytes.LastIndex(content[:at], payload)
	if second%8 != 0 {
		t.Fatalf("payload at %d", second)
	}
	clear(content[second-24 : second])
	clear(content[at-24:])
	fs.WriteFile(path, content)
	unclose(t, fs)
	frames := 0
	j, err := journal.Open(dir, opts, func(uint64, []journal.Op) error { frames++; return nil })
	if err != nil || frames != 1 {
		t.Fatalf("replayed %d frames, %v", frames, err)
	}
	mustClose(t, j)
}

// TestConcurrent: many goroutines commit, release and read the state, with
// small segments so that all of it happens at once.
func TestConcurrent(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	fs := journaltest.New(1)
	j := mustOpen(t, dir, journal.Options{
		FS: fs, SegmentSize: 16 << 10,
		Synced: func(_ uint64, ops []journal.Op) {
			mu.Lock()
			defer mu.Unlock()
			for _, op := range ops {
				seen[string(op.Key)]++
			}
		},
	}.WithLimits(4<<10, 2<<10), nil)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 50 {
				key := fmt.Sprintf("%d/%d", g, i)
				if err := j.Commit(put(key, 100)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				if seen[key] != 1 {
					t.Errorf("%s reported %d times before Commit returned", key, seen[key])
				}
				mu.Unlock()
				if i%10 == g%10 {
					if err := j.Release(j.Seq()); err != nil {
						t.Error(err)
					}
					_ = j.Stats()
				}
			}
		})
	}
	wg.Wait()
	last := j.Seq()
	mustClose(t, j)
	if rep, err := journal.Check(dir, journal.Options{FS: fs}, nil); err != nil || rep.Last != last || !rep.Closed {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestBadPlaces(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(file, journal.Options{}, nil); !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), file) {
		t.Errorf("a file: %v", err)
	}
	missing := filepath.Join(base, "missing")
	if _, err := journal.Check(missing, journal.Options{}, nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing: %v", err)
	}
	empty := filepath.Join(base, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Check(empty, journal.Options{}, nil); !errors.Is(err, journal.ErrDamaged) || !strings.Contains(err.Error(), empty) {
		t.Errorf("empty: %v", err)
	}
}

// TestReadOnly refuses every change, like a read-only file system: a test that
// runs as root can't use permissions for that.
func TestReadOnly(t *testing.T) {
	for name, fs := range map[string]*journaltest.FS{"new": journaltest.New(1), "old": sample(t, true)} {
		fs.Hook(func(journaltest.Call) error { return syscall.EROFS })
		_, err := journal.Open(dir, journal.Options{FS: fs, SegmentSize: 8 << 10}, nil)
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOtherSegmentSize opens a journal with larger and smaller segments than
// it was written with.
func TestOtherSegmentSize(t *testing.T) {
	fs := journaltest.New(1)
	n := 0
	for _, size := range []int64{8 << 10, 32 << 10, 8 << 10, 16 << 10} {
		got := 0
		j := mustOpen(t, dir, journal.Options{FS: fs, SegmentSize: size}, func(uint64, []journal.Op) error { got++; return nil })
		if got != n {
			t.Fatalf("replayed %d of %d", got, n)
		}
		for range 5 {
			if err := j.Commit(put("k", int(size)-4096-100)); err != nil {
				t.Fatal(err)
			}
			n++
		}
		mustClose(t, j)
	}
}

// TestAsyncCommitsAreKeptOnAFullDisk checks that an asynchronous commit is
// written although another segment can't be made. Commits before and after it
// are refused, and none is merged with it into a frame for which there is no
// segment.
func TestAsyncCommitsAreKeptOnAFullDisk(t *testing.T) {
	synctest.Test(t, testAsyncCommitsAreKeptOnAFullDisk)
}

func testAsyncCommitsAreKeptOnAFullDisk(t *testing.T) {
	fs := journaltest.New(1)
	goOn := make(chan struct{})
	j := mustOpen(t, dir, journal.Options{FS: fs, SegmentSize: 64 << 10, Synced: func(seq uint64, _ []journal.Op) {
		if seq == 2 {
			<-goOn
		}
	}}, nil)
	synctest.Wait() // the next segment is there
	fs.Hook(func(c journaltest.Call) error {
		if c.Kind == journaltest.Allocate {
			return syscall.ENOSPC
		}
		return nil
	})
	if err := j.Commit(put("a", 30_000)); err != nil {
		t.Fatal(err)
	}
	j.Enqueue(put("b", 50_000)) // in the next segment, which is the last one
	synctest.Wait()
	kept := make(chan error, 10)
	async := func(size int) bool {
		return j.CommitAsync(put("p", size), func(err error) { kept <- err })
	}
	close(goOn)
	synctest.Wait()
	if !async(5000) || <-kept != nil {
		t.Error("there is room for this")
	}
	if async(10_000) {
		t.Error("there is no room for this")
	}
	j.Enqueue(put("c", 100))
	if !async(1000) {
		t.Error("there is room for both")
	}
	large := j.Enqueue(put("d", 50_000)) // fits into a frame with the asynchronous commit, but not into the segment
	if err := <-kept; err != nil {
		t.Errorf("the asynchronous commit was lost: %v", err)
	}
	if err := large(); !errors.Is(err, journal.ErrNoSpace) {
		t.Errorf("without a segment: %v", err)
	}
	if !async(1000) || <-kept != nil {
		t.Error("there is room for this too")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if async(1) || j.CommitAsync(nil, nil) {
		t.Error("a closed journal takes an asynchronous commit")
	}
}

// TestSegmentsGrow: a journal takes space in proportion to what was written,
// and reuses its largest segments. For a commit that is larger than the next
// segment, one is made; without space for that, other commits still succeed.
func TestSegmentsGrow(t *testing.T) {
	fs := journaltest.New(1)
	opts := journal.Options{FS: fs, FirstSize: 8 << 10, SegmentSize: 64 << 10}
	j := mustOpen(t, dir, opts, nil)
	size := func() (total int64) {
		for _, name := range fs.Files() {
			total += int64(len(fs.ReadFile(name)))
		}
		return total
	}
	// A segment, the next one of twice its size, and a checkpoint: the next one
	// may not be there yet.
	if s := size(); s > 3*8<<10+4096 {
		t.Errorf("an empty journal has %d bytes", s)
	}
	written := int64(0)
	commit := func(n int) {
		t.Helper()
		if err := j.Commit(put("k", n)); err != nil {
			t.Fatal(err)
		}
		written += int64(n)
	}
	for range 60 {
		commit(3000)
		if s := size(); s > 8*written+64<<10 {
			t.Fatalf("%d bytes for %d that were written", s, written)
		}
	}
	if err := j.Release(j.Seq()); err != nil {
		t.Fatal(err)
	}
	spares := 0
	for _, name := range fs.Files() {
		if strings.Contains(name, "spare-") {
			spares++
			if s := len(fs.ReadFile(name)); s < 32<<10 {
				t.Errorf("%s of %d bytes is kept, and larger ones are not", name, s)
			}
		}
	}
	if spares == 0 {
		t.Error("no segment is kept for use again")
	}
	mustClose(t, j)

	fs = journaltest.New(2)
	opts.FS = fs
	j = mustOpen(t, dir, opts, nil)
	fs.Hook(func(c journaltest.Call) error {
		if c.Kind == journaltest.Allocate {
			return syscall.ENOSPC
		}
		return nil
	})
	for range 3 {
		if err := j.Commit(put("k", 40<<10)); !errors.Is(err, journal.ErrNoSpace) || errors.Is(err, journal.ErrFailed) {
			t.Fatalf("no room for a large commit: %v", err)
		}
	}
	commit(3000)
	fs.Hook(nil)
	commit(50 << 10)
	commit(100)
	mustClose(t, j)
	var keys int
	mustClose(t, mustOpen(t, dir, opts, func(uint64, []journal.Op) error { keys++; return nil }))
	if keys != 3 {
		t.Errorf("%d commits are there, not 3", keys)
	}
}

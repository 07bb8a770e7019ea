package journal_test

import (
	"os"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// extents is a file system that knows how far each file was written.
type extents struct {
	*journaltest.FS

	mu      sync.Mutex
	written map[string]*int64 // by path
	// extending counts the writes past the end of what was written before, and
	// bytes is how many bytes all writes have.
	extending int
	bytes     int64
}

func (e *extents) OpenFile(name string, flag int, perm os.FileMode) (journal.File, error) {
	f, err := e.FS.OpenFile(name, flag, perm)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.written[name] == nil || flag&os.O_TRUNC != 0 {
		e.written[name] = new(int64)
	}
	return &extentFile{f, e, e.written[name]}, err
}

func (e *extents) Rename(oldName, newName string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.written[newName] = e.written[oldName]
	delete(e.written, oldName)
	return e.FS.Rename(oldName, newName)
}

// counted returns what fn adds to the counts.
func (e *extents) counted(fn func()) (extending int, bytes int64) {
	e.mu.Lock()
	extending, bytes = e.extending, e.bytes
	e.mu.Unlock()
	fn()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.extending - extending, e.bytes - bytes
}

type extentFile struct {
	journal.File
	fs      *extents
	written *int64
}

func (f *extentFile) WriteAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	if end := off + int64(len(b)); end > *f.written {
		f.fs.extending++
		*f.written = end
	}
	f.fs.bytes += int64(len(b))
	f.fs.mu.Unlock()
	return f.File.WriteAt(b, off)
}

// TestZeros: in a new segment few small frames are written where nothing was
// written before, which would make their syncs write metadata. Large frames and
// recycled segments cost no zeros.
func TestZeros(t *testing.T) {
	const small, large = 1000, 100 << 10
	fs := &extents{FS: journaltest.New(1), written: map[string]*int64{}}
	opts := journal.Options{FS: fs, FirstSize: 1 << 20, SegmentSize: 1 << 20}
	j := mustOpen(t, dir, opts, nil)
	defer func() { mustClose(t, j) }()
	commit := func(n, size int) (extending int, bytes int64) {
		t.Helper()
		return fs.counted(func() {
			for range n {
				if err := j.Commit(put("k", size)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}

	if extending, bytes := commit(600, small); extending > 600/5 || bytes > 3*600*small {
		t.Errorf("600 small frames: %d writes where nothing was, %d bytes", extending, bytes)
	}
	// With the labels of two segments, and a seal for each frame.
	if _, bytes := commit(20, large); bytes > 20*(large+large/10) {
		t.Errorf("20 large frames: %d bytes", bytes)
	}

	for range 10 { // until segments are recycled
		commit(10, large)
		if err := j.Release(j.Seq()); err != nil {
			t.Fatal(err)
		}
	}
	if extending, bytes := commit(600, small); extending > 600/10 || bytes > 600*small*3/2 {
		t.Errorf("600 small frames in recycled segments: %d writes where nothing was, %d bytes", extending, bytes)
	}

	mustClose(t, j)
	n := 0
	j = mustOpen(t, dir, opts, func(uint64, []journal.Op) error { n++; return nil })
	if n != 600 {
		t.Errorf("%d frames are replayed, not 600", n)
	}
}

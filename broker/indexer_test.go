package broker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/nameindex"
)

// indexed is a log and an indexer of it, which sees as much of the log as is
// applied.
type indexed struct {
	t       *testing.T
	log     *wal.Log
	dir     string
	count   uint64
	current bool // the replica has applied what is committed
	isFull  bool
	budget  int64 // of memory

	mu      sync.Mutex
	applied uint64
	changed chan struct{}
}

func newIndexed(t *testing.T, log *wal.Log) *indexed {
	return &indexed{t: t, log: log, dir: t.TempDir(), budget: 1 << 20, changed: make(chan struct{})}
}

// append appends transactions, each in a batch of its own. The lock of each is
// l, and its kind says where it comes from.
func (x *indexed) append(count int, kind string) {
	x.t.Helper()
	for range count {
		x.count++
		var w wal.BatchWriter
		w.Begin(wal.Transactions, x.count, 1000+int64(x.count), 0)
		w.Add(&wal.Transaction{Kind: []byte(kind), Locks: []wal.Lock{{Mode: wal.AppendLock, Name: []byte("l")}}})
		if err := x.log.Append(wal.Entry{Index: x.count, Term: 1, Data: w.Finish()}); err != nil {
			x.t.Fatal(err)
		}
	}
}

func (x *indexed) apply(through uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.applied = through
	close(x.changed)
	x.changed = make(chan struct{})
}

func (x *indexed) position() position {
	x.mu.Lock()
	defer x.mu.Unlock()
	return position{mark: x.applied, index: x.applied, first: 1, changed: x.changed}
}

// run runs an indexer until stop is called.
func (x *indexed) run() (i *indexer, stop func()) {
	i = &indexer{
		label: "0", log: slog.New(slog.DiscardHandler), store: x.log, position: x.position, current: func() bool { return x.current },
		options: indexOptions{dir: x.dir, budget: nameindex.NewBudget(x.budget), room: func(int64) bool { return !x.isFull }}, drops: make(chan uint64, 1),
	}
	ctx, cancel := context.WithCancel(x.t.Context())
	var running sync.WaitGroup
	running.Go(func() { i.run(ctx) })
	return i, func() { cancel(); running.Wait() }
}

// files returns the names and times of the index's files.
func (x *indexed) files() (files []string) {
	x.t.Helper()
	all, err := os.ReadDir(indexOptions{dir: x.dir}.of(0))
	if err != nil {
		x.t.Fatal(err)
	}
	for _, f := range all {
		info, err := f.Info()
		if err != nil {
			x.t.Fatal(err)
		}
		files = append(files, fmt.Sprint(f.Name(), info.ModTime()))
	}
	return files
}

// pass lets virtual time pass, in which the indexer tries again.
func pass(d time.Duration) { time.Sleep(d) }

// A node that starts applies its log from its snapshot on, and keeps what the
// index has beyond that.
func TestAnIndexOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndexed(t, emptyLog(t))
		x.append(10, "a")
		x.apply(10)
		_, stop := x.run()
		synctest.Wait()
		stop()
		before := x.files()
		if len(before) != 1 {
			t.Fatalf("the index has the files %v", before)
		}
		x.apply(4)
		i, stop := x.run()
		pass(10 * indexRetry)
		if i.index.Load() != nil {
			t.Error("the index is used before it can be compared with the log")
		}
		x.apply(10)
		pass(2 * indexRetry)
		if got := i.through(); got != 10 || !slices.Equal(x.files(), before) {
			t.Errorf("the index reaches %d, and has the files %v, and not %v", got, x.files(), before)
		}
		stop()
	})
}

// An index that has more than its log, or another one's, is made again from
// there on.
func TestAnIndexOfAnotherLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndexed(t, emptyLog(t))
		x.append(10, "a")
		x.apply(10)
		_, stop := x.run()
		synctest.Wait()
		stop()

		other := newIndexed(t, emptyLog(t)) // whose last transactions are others
		other.dir, other.current = x.dir, true
		other.append(5, "a")
		other.append(3, "b")
		other.apply(8)
		i, stop := other.run()
		pass(5 * indexRetry)
		if got := i.through(); got != 8 {
			t.Errorf("the index reaches %d", got)
		}
		other.append(4, "b")
		other.apply(12)
		pass(indexRetry)
		index, r, ok := i.covers(1, 12)
		if !ok || r.To != 12 {
			t.Fatalf("the index covers %v, %v", r, ok)
		}
		var found []uint64
		for txid, err := range i.search(index, []nameindex.Item{{{index.Keys().Kind("b")}}}, r) {
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, txid)
		}
		if !slices.Equal(found, []uint64{6, 7, 8, 9, 10, 11, 12}) {
			t.Errorf("it finds %v", found)
		}
		stop()
	})
}

// Without room on the disk nothing is written, and nothing is lost.
func TestAnIndexWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndexed(t, emptyLog(t))
		x.isFull = true
		x.append(10, "a")
		x.apply(10)
		i, stop := x.run()
		pass(5 * indexRetry)
		if got := i.through(); got != 0 {
			t.Errorf("the index reaches %d", got)
		}
		stop()
		if files := x.files(); len(files) > 0 {
			t.Errorf("files: %v", files)
		}
		x.isFull = false
		i, stop = x.run()
		pass(indexRetry)
		if got := i.through(); got != 10 {
			t.Errorf("with room the index reaches %d", got)
		}
		stop()
	})
}

// A run that is damaged is removed when the filter is made from it, while there
// is more to index: all is indexed again.
func TestADamagedRunBeforeABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndexed(t, emptyLog(t))
		x.append(10, "a")
		x.apply(10)
		_, stop := x.run()
		synctest.Wait()
		stop()
		path, err := filepath.Glob(filepath.Join(indexOptions{dir: x.dir}.of(0), "*.run"))
		if err != nil || len(path) != 1 {
			t.Fatal(path, err)
		}
		run, err := os.ReadFile(path[0])
		if err != nil {
			t.Fatal(err)
		}
		run[len(run)-1] ^= 1
		if err := os.WriteFile(path[0], run, 0o600); err != nil {
			t.Fatal(err)
		}
		x.append(3000, "a")
		x.apply(3010)
		i, stop := x.run()
		synctest.Wait()
		for range 10 {
			pass(indexRetry)
			synctest.Wait()
		}
		if n := i.through(); n != 3010 {
			t.Errorf("%d of 3010 are indexed", n)
		}
		stop()
	})
}

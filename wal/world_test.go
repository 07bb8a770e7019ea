package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// small returns options with which a store often crosses the borders between
// memory, Badger and checkpoints.
func small() wal.Options {
	return wal.Options{
		Identity:  wal.Identity{Cluster: "c", Node: "n1", Partitions: 2},
		TailBytes: 2 << 10, CheckpointBytes: 8 << 10, SegmentSize: 256 << 10,
	}.SmallBadger()
}

func openStore(t testing.TB, dir string, opts wal.Options) *wal.Store {
	t.Helper()
	s, err := wal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// world is a store, models of its logs, and what a test may do to both.
type world struct {
	t     testing.TB
	r     *rand.Rand
	dir   string
	store *wal.Store
	logs  []*model
}

func newWorld(t testing.TB, r *rand.Rand, groups int) *world {
	w := &world{t: t, r: r, dir: t.TempDir()}
	for range groups {
		w.logs = append(w.logs, newModel())
	}
	w.store = openStore(t, w.dir, small())
	t.Cleanup(func() {
		if !t.Failed() {
			w.reopen()
			w.check()
		}
	})
	return w
}

func (w *world) check() {
	w.t.Helper()
	for group, m := range w.logs {
		checkLog(w.t, w.store.Log(uint32(group)), m)
	}
}

func (w *world) must(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

// step does one random thing.
func (w *world) step() {
	group := w.r.IntN(len(w.logs))
	l, m := w.store.Log(uint32(group)), w.logs[group]
	switch n := w.r.IntN(100); {
	case n < 60:
		w.append(l, m)
	case n < 70:
		w.setMeta(l, m)
	case n < 80 && len(m.entries) > 0:
		from := m.first + uint64(w.r.IntN(len(m.entries)))
		if w.r.IntN(4) > 0 { // mostly near the end
			from = max(m.first, m.last()-uint64(w.r.IntN(3)))
		}
		if w.r.IntN(2) == 0 {
			m.truncate(from)
			w.write("replace", l.Replace, from, l, m)
			return
		}
		w.must("truncate", l.TruncateSuffix(from))
		m.truncate(from)
	case n < 90 && len(m.entries) > 1:
		through := m.first + uint64(w.r.IntN((len(m.entries)+2)/3))
		if through < m.last() {
			w.must("trim", l.TrimHead(through))
			m.trim(through)
		}
	case n < 93:
		w.must("checkpoint", w.store.Checkpoint())
	case n < 94:
		w.reopen()
	case n < 95:
		w.crash()
	}
}

func (w *world) append(l *wal.Log, m *model) {
	next := m.last() + 1
	if next == 1 {
		next += uint64(w.r.IntN(40))
	}
	w.write("append", l.Append, next, l, m)
}

// write writes some entries, the next of which has index next.
func (w *world) write(what string, write func(...wal.Entry) error, next uint64, l *wal.Log, m *model) {
	var entries []wal.Entry
	var voids []uint64
	for range 1 + w.r.IntN(6) {
		e := w.entry(next, m)
		if e.void {
			voids = append(voids, next)
		}
		entries = append(entries, e.entry)
		m.append(e)
		next++
	}
	w.must(what, write(entries...))
	for _, v := range voids {
		w.must("void", l.Void(v))
	}
}

// entry returns a next entry of a log.
func (w *world) entry(index uint64, m *model) modelEntry {
	e := modelEntry{entry: wal.Entry{Index: index, Term: w.r.Uint64N(9), AppendedAt: w.r.Int64N(3)}}
	kind := w.r.IntN(10)
	if kind == 0 {
		e.entry.Type, e.entry.Data, e.entry.Extensions = 3, randomBytes(w.r, 50), randomBytes(w.r, 9)
		return e
	}
	if kind == 1 {
		var b wal.BatchWriter
		b.Begin(wal.CursorWrites, m.lastTx(), 5, 0)
		b.AddCursor(wal.Cursor{Name: []byte("c"), Txid: index})
		e.entry.Data = b.Finish()
		return e
	}
	e.txid, e.count = m.lastTx()+1, uint64(1+w.r.IntN(4))
	if kind == 2 { // other txids than are due
		e.void = true
		e.txid = 1 + w.r.Uint64N(e.txid+5)
		if e.txid == m.lastTx()+1 {
			e.txid++
		}
	}
	// Sometimes large enough for Badger's value log.
	payload := strings.Repeat("p", w.r.IntN(2)*w.r.IntN(2)*w.r.IntN(3000))
	e.entry.Data = batch(e.txid, int(e.count), fmt.Sprint(payload, w.r.Uint32()))
	return e
}

func (w *world) setMeta(l *wal.Log, m *model) {
	var metas []wal.Meta
	for range 1 + w.r.IntN(2) {
		name := fmt.Sprint("name", w.r.IntN(5))
		if w.r.IntN(4) == 0 {
			metas = append(metas, wal.Meta{Name: name})
			delete(m.metas, name)
			continue
		}
		v := fmt.Sprint("value", w.r.Uint32())
		metas = append(metas, wal.Meta{Name: name, Value: []byte(v)})
		m.metas[name] = v
	}
	w.must("set meta", l.SetMeta(metas...))
}

func (w *world) reopen() {
	w.t.Helper()
	w.must("close", w.store.Close())
	w.store = openStore(w.t, w.dir, small())
}

// crash continues with what a process that is killed now would leave, and
// worse: Badger's files are of different moments.
func (w *world) crash() {
	w.t.Helper()
	left := w.t.TempDir()
	copyOpen(w.t, w.store, left)
	w.must("close", w.store.Close())
	w.dir = left
	w.store = openStore(w.t, left, small())
}

// copyOpen copies the directory of an open store while nothing is written. The
// journal comes last: Badger is never ahead of it.
func copyOpen(t testing.TB, s *wal.Store, to string) {
	t.Helper()
	s.WithoutCheckpoint(func() {
		copyFiles(t, s.Dir(), to)
		copyBadger(t, filepath.Join(s.Dir(), "store"), filepath.Join(to, "store"))
		copyFiles(t, filepath.Join(s.Dir(), "journal"), filepath.Join(to, "journal"))
	})
}

// copyBadger copies until no table was created or removed meanwhile.
func copyBadger(t testing.TB, from, to string) {
	t.Helper()
	testkit.Until(t, "a copy within which no table changed", func() bool {
		before, err := os.ReadFile(filepath.Join(from, "MANIFEST"))
		if err != nil {
			t.Fatal(err)
		}
		copyFiles(t, from, to)
		after, err := os.ReadFile(filepath.Join(from, "MANIFEST"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(before, after) {
			return true
		}
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		return false
	})
}

// copyFiles copies the files in a directory, without subdirectories and without
// their holes: some are mapped far beyond their content.
func copyFiles(t testing.TB, from, to string) {
	t.Helper()
	names, err := os.ReadDir(from)
	if err == nil {
		err = os.MkdirAll(to, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if n.IsDir() {
			continue
		}
		err := copyFile(filepath.Join(from, n.Name()), filepath.Join(to, n.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// eventually polls until a condition holds.
var eventually = testkit.Until

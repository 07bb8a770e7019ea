package wal_test

import (
	"encoding/binary"
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

// damage is a change of a file.
type damage struct {
	file string // below the data directory
	what string
	do   func(path string) error
}

func flip(file string, off int64, bit int) damage {
	return damage{file, fmt.Sprintf("bit %d of byte %d flipped", bit, off), func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		var b [1]byte
		_, err = f.ReadAt(b[:], off)
		b[0] ^= 1 << bit
		_, werr := f.WriteAt(b[:], off)
		return errors.Join(err, werr, f.Close())
	}}
}

func cut(file string, size int64) damage {
	return damage{file, fmt.Sprintf("cut to %d bytes", size), func(path string) error {
		return os.Truncate(path, size)
	}}
}

func remove(file string) damage {
	return damage{file, "removed", os.Remove}
}

// damages returns the changes to try on the files below dir. With CANTUS_LONG=1
// these are every byte of small files and many of large ones, otherwise a
// random selection.
func damages(t *testing.T, r *rand.Rand, dir string) (all []damage) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "lock" || e.Name() == "LOCK" {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		file, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		all = append(all, remove(file))
		size := info.Size()
		if size == 0 {
			return nil
		}
		all = append(all, cut(file, 0), cut(file, size-1), cut(file, r.Int64N(size)))
		if size <= 4096 && testkit.Long() {
			for off := range size {
				all = append(all, flip(file, off, r.IntN(8)))
			}
			return nil
		}
		offsets, err := written(path)
		if err != nil || len(offsets) == 0 {
			return err
		}
		n := 6
		if testkit.Long() {
			n = 200
		}
		for range n {
			all = append(all, flip(file, offsets[r.IntN(len(offsets))], r.IntN(8)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sample := testkit.Sized(6, 40, 0)
	if !testkit.Long() && len(all) > sample {
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:sample]
	}
	return all
}

// written returns the offsets of bytes that are not zero, and of some that are.
func written(path string) (offsets []int64, err error) {
	b, err := os.ReadFile(path)
	for i, c := range b {
		if c != 0 || i < 64 {
			offsets = append(offsets, int64(i))
		}
	}
	return offsets, err
}

// mustNotLie opens a damaged directory. Either opening or reading reports the
// damage, or all content is right. It returns which.
func mustNotLie(t *testing.T, dir, file string, logs []*model) (verdict string) {
	t.Helper()
	s, err := wal.Open(dir, small())
	if err != nil {
		mustName(t, err, filepath.Join(dir, file))
		for _, known := range []error{wal.ErrDamaged, wal.ErrFormat, wal.ErrIdentity} {
			if errors.Is(err, known) {
				return "open says so"
			}
		}
		t.Errorf("open: %v", err)
		return
	}
	verdict = "nothing is wrong"
	for group, m := range logs {
		l := s.Log(uint32(group))
		if l.FirstIndex() != m.first || l.LastIndex() != m.last() || len(l.Metas("")) != len(m.metas) {
			t.Errorf("log %d holds %d to %d, want %d to %d, and %q, want %q",
				group, l.FirstIndex(), l.LastIndex(), m.first, m.last(), l.Metas(""), m.metas)
			continue
		}
		for name, v := range m.metas {
			if string(l.Meta(name)) != v {
				t.Errorf("log %d: meta %s is %q, want %q", group, name, l.Meta(name), v)
			}
		}
		if damagedReads(t, l, m, filepath.Join(dir, file)) {
			verdict = "a read says so"
		}
	}
	_ = s.Close() // may find more damage
	return verdict
}

// mustName checks that an error of damage names the damaged file.
func mustName(t *testing.T, err error, path string) {
	t.Helper()
	if !strings.Contains(err.Error(), path) {
		t.Errorf("%s is damaged, the error does not name it: %v", path, err)
	}
}

func damagedReads(t *testing.T, l *wal.Log, m *model, path string) (damaged bool) {
	t.Helper()
	right := func(e, want wal.Entry, err error) {
		t.Helper()
		if errors.Is(err, wal.ErrDamaged) {
			mustName(t, err, path)
			damaged = true
		} else if err != nil || !sameEntry(e, want) {
			t.Errorf("entry %d is of index %d, term %d and %d bytes: %v", want.Index, e.Index, e.Term, len(e.Data), err)
		}
	}
	for _, want := range m.entries {
		e, err := l.Entry(want.entry.Index)
		right(e, want.entry, err)
	}
	if len(m.entries) > 0 { // else there is no range to ask for
		given := 0
		for e, err := range l.Entries(m.first, m.last()) {
			right(e, m.entries[given].entry, err)
			given++
		}
		if given != len(m.entries) && !damaged {
			t.Errorf("%d of %d entries were given", given, len(m.entries))
		}
	}
	for txid := range m.lastTx() + 2 {
		want, wantErr := m.find(txid, m.last())
		at, err := l.FindTx(txid, m.last())
		if errors.Is(err, wal.ErrDamaged) {
			mustName(t, err, path)
			damaged = true
		} else if at != want || !errors.Is(err, wantErr) {
			t.Errorf("txid %d is at %d: %v; want %d, %v", txid, at, err, want, wantErr)
		}
	}
	return damaged
}

func TestDamageIsSaidAndNothingWrongIsServed(t *testing.T) {
	t.Parallel()
	for _, crashed := range []bool{false, true} {
		t.Run(map[bool]string{false: "after a clean close", true: "after a crash"}[crashed], func(t *testing.T) {
			r := chance(t)
			w := newWorld(t, r, 2)
			for range 200 {
				w.step()
			}
			dir := w.dir
			if crashed {
				dir = t.TempDir()
				w.store.WaitApplied()
				copyOpen(t, w.store, dir)
			} else {
				w.must("close", w.store.Close())
			}
			verdicts := map[string]int{}
			for _, d := range damages(t, r, dir) {
				t.Run(d.file+" "+d.what, func(t *testing.T) {
					victim := t.TempDir()
					for _, part := range []string{".", "store", "journal"} {
						copyFiles(t, filepath.Join(dir, part), filepath.Join(victim, part))
					}
					if err := d.do(filepath.Join(victim, d.file)); err != nil {
						t.Fatal(err)
					}
					verdicts[filepath.Ext(d.file)+": "+mustNotLie(t, victim, d.file, w.logs)]++
				})
			}
			tried := 0
			for _, n := range verdicts {
				tried += n
			}
			t.Log(tried, "tried", verdicts)
		})
	}
}

// A journal that lost its end is recognized by what Badger has already.
func TestJournalThatEndsBeforeBadgerIsDamage(t *testing.T) {
	t.Parallel()
	opts := small()
	opts.CheckpointBytes = 1 << 30
	s := openStore(t, t.TempDir(), opts)
	left := t.TempDir()
	var acked tally
	for _, part := range []string{"journal", "store"} {
		if err := acked.run(s.Log(0), 10); err != nil {
			t.Fatal(err)
		}
		s.WaitApplied()
		copyFiles(t, filepath.Join(s.Dir(), part), filepath.Join(left, part))
	}
	copyFiles(t, s.Dir(), left)
	if _, err := wal.Open(left, opts); !errors.Is(err, wal.ErrDamaged) {
		t.Fatalf("open: %v", err)
	}
}

// An old checkpoint does not make the log short, and is named.
func TestOldCheckpointIsDamage(t *testing.T) {
	t.Parallel()
	const name = "checkpoint.json"
	dir, crashed := t.TempDir(), t.TempDir()
	s := openStore(t, dir, small())
	old, err := os.ReadFile(filepath.Join(dir, name))
	var acked tally
	if err := errors.Join(err, acked.run(s.Log(0), 10), s.Checkpoint(), acked.run(s.Log(0), 10)); err != nil {
		t.Fatal(err)
	}
	copyOpen(t, s, crashed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{crashed, dir} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := wal.Open(dir, small())
		if !errors.Is(err, wal.ErrDamaged) {
			t.Fatalf("open: %v", err)
		}
		mustName(t, err, path)
	}
}

// After a MANIFEST that ends early, where Badger could have ended it, Badger
// finds older versions of keys. The error does not blame the files that hold
// what these lead to.
func TestAManifestThatEndsEarlyIsNamed(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "hundreds of damaged copies of a directory are opened")
	w := newWorld(t, chance(t), 2)
	dir, manifest := t.TempDir(), filepath.Join("store", "MANIFEST")
	for range 400 {
		w.step()
	}
	w.store.WaitApplied()
	copyOpen(t, w.store, dir)
	b, err := os.ReadFile(filepath.Join(dir, manifest))
	if err != nil {
		t.Fatal(err)
	}
	const magic, head = 8, 8 // then records: length, checksum, content
	for end := int64(magic); end < int64(len(b)); end += head + int64(binary.BigEndian.Uint32(b[end:])) {
		d := cut(manifest, end)
		t.Run(d.what, func(t *testing.T) {
			victim := t.TempDir()
			for _, part := range []string{".", "store", "journal"} {
				copyFiles(t, filepath.Join(dir, part), filepath.Join(victim, part))
			}
			if err := d.do(filepath.Join(victim, manifest)); err != nil {
				t.Fatal(err)
			}
			mustNotLie(t, victim, manifest, w.logs)
		})
	}
}

// When Badger's collector moves entries, only a memtable log has their new
// keys. Damage to it is said when the store is opened: what is left of the old
// keys leads to a value log that is gone.
func TestDamageToMovedKeysIsSaid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, small())
	appendMany(t, s.Log(0), 500, 4<<10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	forgeDiscarded(t, dir)
	s = openStore(t, dir, small())
	if more, err := s.Reclaim(); !more || err != nil {
		t.Fatalf("reclaimed %v, with %v", more, err)
	}
	left := t.TempDir()
	copyOpen(t, s, left)
	mems, err := filepath.Glob(filepath.Join(left, "store", "*.mem"))
	if err != nil || len(mems) != 1 {
		t.Fatal(mems, err)
	}
	file := filepath.Join("store", filepath.Base(mems[0]))
	for _, d := range []damage{flip(file, 40, 1), cut(file, 30), remove(file)} {
		t.Run(d.what, func(t *testing.T) {
			victim := t.TempDir()
			for _, part := range []string{".", "store", "journal"} {
				copyFiles(t, filepath.Join(left, part), filepath.Join(victim, part))
			}
			if err := d.do(filepath.Join(victim, file)); err != nil {
				t.Fatal(err)
			}
			s, err := wal.Open(victim, small())
			if err == nil {
				err = wal.VerifyLog(s.Log(0), wal.Base{}).Err
				_ = s.Close()
			}
			if !errors.Is(err, wal.ErrDamaged) {
				t.Fatalf("open, and read: %v", err)
			}
			mustName(t, err, filepath.Join(victim, file))
		})
	}
}

package wal_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// scrubbed returns what a scrub finds.
func scrubbed(t testing.TB, s *wal.Store) []wal.Damage {
	t.Helper()
	var found []wal.Damage
	err := s.Scrub(t.Context(), func(context.Context, int) error { return nil }, func(d wal.Damage) { found = append(found, d) })
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A scrub of a store that is in use finds nothing.
func TestScrubOfAStoreInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, chance(t), 2)
	for range testkit.Sized(3, 10, 100) {
		ctx, stop := context.WithCancel(t.Context())
		var scrubbing sync.WaitGroup
		store := w.store
		scrubbing.Go(func() {
			for ctx.Err() == nil {
				err := store.Scrub(ctx, func(context.Context, int) error { return nil }, func(d wal.Damage) {
					if d.Log == nil || len(d.Entries) > 0 { // the model's txids are not a node's
						t.Errorf("found: %v", d.Err)
					}
				})
				if err != nil && ctx.Err() == nil && !errors.Is(err, wal.ErrClosed) {
					t.Errorf("scrub: %v", err)
				}
			}
		})
		for range 20 {
			if w.store == store {
				w.step()
			}
		}
		stop()
		scrubbing.Wait()
	}
}

// A scrub reads everything that is stored, at the rate that pace allows.
func TestScrubReadsAll(t *testing.T) {
	s := openStore(t, t.TempDir(), small())
	size := 0
	for i := range uint64(300) {
		b := batch(i+1, 1, strings.Repeat("p", 3000))
		size += len(b)
		if err := s.Log(0).Append(wal.Entry{Index: i + 1, Data: b}); err != nil {
			t.Fatal(err)
		}
	}
	s.WaitApplied()
	read, most := 0, 0
	err := s.Scrub(t.Context(), func(_ context.Context, n int) error {
		read, most = read+n, max(most, n)
		return nil
	}, func(d wal.Damage) { t.Error(d.Err) })
	if err != nil || read < size || most > 3<<20 {
		t.Errorf("%d bytes were stored; %d were read, at most %d at once: %v", size, read, most, err)
	}
	stop := errors.New("stop")
	if err := s.Scrub(t.Context(), func(context.Context, int) error { return stop }, func(wal.Damage) {}); !errors.Is(err, stop) {
		t.Errorf("pace ends it with %v", err)
	}
}

// mixedStore returns an open store with small and large entries in both logs,
// of which a part is in tables, with checkpoints in between.
func mixedStore(t *testing.T) (*wal.Store, map[uint32][]wal.Entry) {
	t.Helper()
	s := openStore(t, t.TempDir(), small())
	all := map[uint32][]wal.Entry{}
	const atOnce = 30
	for i := range uint64(900) {
		for group := range uint32(2) {
			payload := "small"
			if i%3 > 0 {
				payload = strings.Repeat(fmt.Sprint(i), 400)
			}
			all[group] = append(all[group], wal.Entry{Index: i + 1, Term: 1, Data: batch(i+1, 1, payload)})
			if (i+1)%atOnce == 0 {
				if err := s.Log(group).Append(all[group][i+1-atOnce:]...); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	s.WaitApplied()
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if d := scrubbed(t, s); len(d) > 0 {
		t.Fatalf("found in a new store: %v", d[0].Err)
	}
	return s, all
}

// restore restores what a scrub has found, as from another replica.
func restore(t *testing.T, found []wal.Damage, all map[uint32][]wal.Entry, s *wal.Store) {
	t.Helper()
	for _, d := range found {
		if d.Log == nil {
			continue
		}
		for group, entries := range all {
			if d.Log != s.Log(group) {
				continue
			}
			for _, index := range d.Entries {
				if err := d.Log.Restore(entries[index-1]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// oldest returns the path of the first of the store's files with an ending.
func oldest(t *testing.T, s *wal.Store, ending string, least int) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.Dir(), "store", "*"+ending))
	if err != nil || len(names) < least {
		t.Fatalf("%d files of %s: %v", len(names), ending, err)
	}
	slices.Sort(names)
	return names[0]
}

// What is damaged in a value log under a running store is found, with the
// file's name, and is whole again once the entries were restored.
func TestScrubFindsDamagedEntries(t *testing.T) {
	t.Parallel()
	flipSome := func(r *rand.Rand, path string) error {
		offsets, err := written(path)
		for range 5 {
			at := offsets[len(offsets)/10+r.IntN(len(offsets)/2)]
			err = errors.Join(err, flip("", at, r.IntN(8)).do(path))
		}
		return err
	}
	for name, spoil := range map[string]func(r *rand.Rand, path string) error{
		"flipped": flipSome,
		"zeroed": func(_ *rand.Rand, path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(make([]byte, info.Size()/2), info.Size()/4)
			return errors.Join(err, f.Close())
		},
		"deleted": func(_ *rand.Rand, path string) error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			s, all := mixedStore(t)
			path := oldest(t, s, ".vlog", 2) // Badger writes to the newest
			if err := spoil(chance(t), path); err != nil {
				t.Fatal(err)
			}
			found := scrubbed(t, s)
			if len(found) == 0 {
				t.Fatal("nothing was found")
			}
			for _, d := range found {
				if !errors.Is(d.Err, wal.ErrDamaged) || !strings.Contains(d.Err.Error(), path) || d.Log != nil && len(d.Entries) == 0 {
					t.Errorf("found %v, entries %v", d.Err, d.Entries)
				}
			}
			restore(t, found, all, s)
			for _, d := range scrubbed(t, s) {
				if d.Log != nil {
					t.Errorf("after the entries were restored: %v", d.Err)
				}
			}
			if s.Failed() != nil {
				t.Errorf("the store has failed: %v", s.Failed())
			}
			for group, entries := range all {
				for _, want := range entries {
					if e, err := s.Log(group).Entry(want.Index); err != nil || !sameEntry(e, want) {
						t.Fatalf("group %d, entry %d: %v", group, want.Index, err)
					}
				}
			}
		})
	}
}

// What the store still knows it writes again by itself, and the next start
// finds it whole.
func TestScrubRepairsWhatTheStoreKnows(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"cantus.json", "checkpoint.json", "journal/checkpoint", "journal/*.seg", "store/*.mem", "store/KEYREGISTRY"} {
		for _, how := range []string{"flipped", "cut", "deleted"} {
			if strings.HasSuffix(file, ".mem") && how != "flipped" {
				continue // Badger has it mapped: the process would end
			}
			if strings.HasSuffix(file, "KEYREGISTRY") && how != "flipped" {
				continue // an empty one holds as much
			}
			t.Run(file+" "+how, func(t *testing.T) {
				s, all := mixedStore(t)
				if err := s.Log(0).SetMeta(wal.Meta{Name: "a", Value: []byte("b")}); err != nil { // a frame that is not released
					t.Fatal(err)
				}
				s.WaitApplied()
				paths, err := filepath.Glob(filepath.Join(s.Dir(), file))
				if err != nil || len(paths) == 0 {
					t.Fatalf("%v: %v", paths, err)
				}
				path := paths[0]
				switch how {
				case "flipped":
					at := int64(30)
					switch filepath.Ext(file) {
					case ".mem":
						at = 60
					case "": // short files
						at = 20
					}
					err = flip("", at, 3).do(path)
				case "cut":
					err = os.Truncate(path, 50)
				case "deleted":
					err = os.Remove(path)
				}
				if err != nil {
					t.Fatal(err)
				}
				found := scrubbed(t, s)
				if len(found) != 1 || !found[0].Repaired || !strings.Contains(found[0].Err.Error(), path) {
					t.Fatalf("found %+v", found)
				}
				if again := scrubbed(t, s); len(again) > 0 {
					t.Fatalf("found again: %v", again[0].Err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openStore(t, s.Dir(), small())
				for group, entries := range all {
					if l := s.Log(group); l.LastIndex() != uint64(len(entries)) {
						t.Errorf("group %d ends at %d", group, l.LastIndex())
					}
				}
				if got := s.Log(0).Meta("a"); string(got) != "b" {
					t.Errorf("meta %q", got)
				}
			})
		}
	}
}

// A log whose entries are intact and whose digest is another is damage of the
// log.
func TestScrubComparesDigests(t *testing.T) {
	s := openStore(t, t.TempDir(), small())
	points := chain(t, s.Log(1), 40)
	setBase(t, s.Log(1), wal.MetaDigestMark, points[30])
	if d := scrubbed(t, s); len(d) > 0 {
		t.Fatal(d[0].Err)
	}
	points[30].Digest[0] ^= 1
	setBase(t, s.Log(1), wal.MetaDigestMark, points[30])
	d := scrubbed(t, s)
	if len(d) != 1 || d[0].Log != s.Log(1) || len(d[0].Entries) > 0 || !errors.Is(d[0].Err, wal.ErrDamaged) {
		t.Fatalf("found %+v", d)
	}
}

// A value log that Badger still writes to, and that was deleted, fails the
// store once an entry can't be restored: what is written there is lost.
func TestRestoringIntoADeletedFileFailsTheStore(t *testing.T) {
	s, err := wal.Open(t.TempDir(), small().Impatient())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it has failed
	e := wal.Entry{Index: 1, Data: batch(1, 1, strings.Repeat("p", 5000))}
	if err := s.Log(0).Append(e); err != nil {
		t.Fatal(err)
	}
	s.WaitApplied()
	path := oldest(t, s, ".vlog", 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	found := scrubbed(t, s)
	if len(found) != 1 || !slices.Equal(found[0].Entries, []uint64{1}) || !strings.Contains(found[0].Err.Error(), path) {
		t.Fatalf("found %+v", found)
	}
	if ok, err := s.Log(0).RestoreFromMemory(1); !ok || err == nil || s.Failed() == nil {
		t.Errorf("restored: %v, %v; the store: %v", ok, err, s.Failed())
	}
}

// forgeDiscarded has Badger believe that all of the first value log in dir was
// deleted.
func forgeDiscarded(t *testing.T, dir string) {
	t.Helper()
	counts, err := os.OpenFile(filepath.Join(dir, "store", "DISCARD"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = counts.WriteAt([]byte{7: 1, 12: 1, 31: 0}, 0) // 16 MiB of number 1
	if err := errors.Join(err, counts.Close()); err != nil {
		t.Fatal(err)
	}
}

// Badger's collector takes a damaged entry for the end of its file, and would
// delete the file with the intact entries behind it.
func TestADamagedValueLogIsNotRewritten(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	const count = 1000
	appendMany(t, s.Log(0), count, 4<<10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := oldest(t, s, ".vlog", 3)
	forgeDiscarded(t, dir)
	if err := flip("", 10_000, 1).do(path); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, small())
	if more, err := s.Reclaim(); more || err != nil {
		t.Errorf("reclaimed %v, with %v", more, err)
	}
	readable := 0
	for i := range uint64(count) {
		if _, err := s.Log(0).Entry(i + 1); err == nil {
			readable++
		}
	}
	if readable != count-1 {
		t.Errorf("%d of %d entries are left", readable, count-1)
	}
}

// A store whose logs of Badger are damaged can be opened to be repaired: it
// serves nothing wrong, a scrub finds all that is missing, and once that is
// restored the store is whole.
func TestAStoreIsOpenedToBeRepaired(t *testing.T) {
	t.Parallel()
	r := chance(t)
	w := newWorld(t, r, 2)
	for range 300 {
		w.step()
	}
	w.store.WaitApplied()
	left := map[bool]string{true: t.TempDir(), false: w.dir}
	copyOpen(t, w.store, left[true])
	w.must("close", w.store.Close())
	opts := small()
	opts.Repairable = true
	restored := 0
	for crashed, dir := range left {
		for _, d := range damages(t, r, dir) {
			if ext := filepath.Ext(d.file); ext != ".vlog" && ext != ".mem" {
				continue
			}
			t.Run(fmt.Sprintf("%s %s, crashed %v", d.file, d.what, crashed), func(t *testing.T) {
				victim := t.TempDir()
				for _, part := range []string{".", "store", "journal"} {
					copyFiles(t, filepath.Join(dir, part), filepath.Join(victim, part))
				}
				if err := d.do(filepath.Join(victim, d.file)); err != nil {
					t.Fatal(err)
				}
				s, err := wal.Open(victim, opts)
				if err != nil {
					mustName(t, err, filepath.Join(victim, d.file)) // Badger can't open it
					return
				}
				defer s.Close() //nolint:errcheck // closed below
				for round := range 3 {
					for _, f := range scrubbed(t, s) {
						for _, index := range f.Entries {
							m := w.logs[f.Log.Group()]
							if err := f.Log.Restore(m.entries[index-m.first].entry); err != nil {
								t.Fatal(err)
							}
							restored++
						}
					}
					for group, m := range w.logs {
						for _, want := range m.entries {
							e, err := s.Log(uint32(group)).Entry(want.entry.Index)
							if round == 0 && errors.Is(err, wal.ErrDamaged) {
								continue
							}
							if err != nil || !sameEntry(e, want.entry) {
								t.Fatalf("round %d: group %d, entry %d: %v", round, group, want.entry.Index, err)
							}
						}
					}
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				again := openStore(t, victim, small())
				for group, m := range w.logs {
					checkLog(t, again.Log(uint32(group)), m)
				}
			})
		}
	}
	w.store = openStore(t, w.dir, small())
	t.Log("restored", restored)
}

// BenchmarkScrub measures a scrub without a limit. Its processor time, at the
// rate of a node, is what a scrub costs the node.
func BenchmarkScrub(b *testing.B) {
	s := openStore(b, b.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}, TailBytes: 1})
	const count, size = 1000, 64 << 10
	var entries []wal.Entry
	for i := range uint64(count) {
		entries = append(entries, wal.Entry{Index: i + 1, Data: batch(i*64+1, 64, strings.Repeat("x", size/64))})
		if len(entries) == 50 {
			if err := s.Log(0).Append(entries...); err != nil {
				b.Fatal(err)
			}
			entries = nil
		}
	}
	s.WaitApplied()
	b.SetBytes(count * size)
	for b.Loop() {
		if d := scrubbed(b, s); len(d) > 0 {
			b.Fatal(d[0].Err)
		}
	}
}

// Checkpoints must not wait for the pace of a scrub.
func TestScrubHoldsUpNoCheckpoint(t *testing.T) {
	s := openStore(t, t.TempDir(), small())
	for i := range uint64(100) {
		if err := s.Log(0).Append(wal.Entry{Index: i + 1, Data: batch(i+1, 1, strings.Repeat("p", 3000))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	paced := 0
	err := s.Scrub(t.Context(), func(context.Context, int) error {
		paced++
		return s.Checkpoint()
	}, func(d wal.Damage) { t.Error(d.Err) })
	if err != nil || paced == 0 {
		t.Errorf("paced %d times: %v", paced, err)
	}
}

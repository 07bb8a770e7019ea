package backup_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/wal"
)

// checkFirst checks what a check of partition 0 says.
func checkFirst(t *testing.T, a *backup.Archive, base wal.Base, want uint64, because string) {
	t.Helper()
	first, err := a.Check(t.Context(), 0, base, []string{"abc"})
	if first != want || (err == nil) != (because == "") {
		t.Errorf("the archive is whole from %d, %v; want %d, %q", first, err, want, because)
	}
	if because != "" {
		wantNotArchived(t, err, because)
	}
}

// archived is a log of ten batches with two transactions each, and a backup of
// it in five segments.
type archived struct {
	*cluster
	*log
	memory *memory
	clock  *clock
	base   wal.Base
}

func newArchived(t *testing.T) *archived {
	t.Helper()
	c, clock := newCluster(1), newClock()
	a := &archived{c, c.logs[0], newMemory(clock.now), clock, wal.Base{}}
	r := backup.New(a.memory, backup.Options{Now: clock.now})
	for range 5 {
		for range 2 {
			c.append(0, 2, 100_000) // segments of this size are not merged
		}
		mustRun(t, r, c)
	}
	a.base = a.baseAfter(10)
	if n := len(a.memory.names(".seg")); n < 2 {
		t.Fatalf("%d segments", n)
	}
	return a
}

func (a *archived) open(logger *slog.Logger) *backup.Archive {
	return backup.NewArchive(backup.New(a.memory, backup.Options{Now: a.clock.now, Logger: logger}))
}

// segments returns those of the newest manifest.
func (a *archived) segments(t *testing.T) []backup.Segment {
	t.Helper()
	m, err := backup.New(a.memory, backup.Options{}).Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m.Partitions[0].Segments
}

// A check says from where on an archive is whole, while segments disappear, are
// damaged, and are put back.
func TestACheckFindsWhatIsNotWhole(t *testing.T) {
	a := newArchived(t)
	archive := a.open(nil)
	checkFirst(t, archive, a.base, 1, "")
	whole := maps.Clone(a.memory.objects)
	segments := a.segments(t)
	for i, s := range segments {
		next := s.Last + 1
		if i == len(segments)-1 {
			next = 0 // the log's base is in this one
		}
		for what, object := range map[string][]byte{"missing": nil, "shorter": whole[s.Name][1:]} {
			a.memory.objects = maps.Clone(whole)
			if a.memory.objects[s.Name] = object; object == nil {
				delete(a.memory.objects, s.Name)
			}
			a.clock.Time = a.clock.Add(2 * time.Hour)
			if first, err := archive.Check(t.Context(), 0, a.base, nil); first != next || !errors.Is(err, backup.ErrNotArchived) || !strings.Contains(err.Error(), s.Name) {
				t.Errorf("segment %d, %s: whole from %d, %v; want %d", i, what, first, err, next)
			}
			a.memory.objects = maps.Clone(whole)
			checkFirst(t, archive, a.base, 1, "")
		}
	}
	// A flipped bit is found by whoever reads it first.
	first := segments[0]
	a.memory.objects[first.Name] = bytes.Clone(whole[first.Name])
	a.memory.objects[first.Name][20] ^= 1
	archive = a.open(nil)
	_, err := archive.Batches(t.Context(), 0, 1, a.base)
	wantNotArchived(t, err, first.Name)
	checkFirst(t, archive, a.base, first.Last+1, first.Name)
	a.memory.objects[first.Name] = whole[first.Name]
	checkFirst(t, archive, a.base, 1, "")
}

// An archive of another log, of another cluster, or with a gap is not usable. A
// log that was not trimmed asks for nothing but the cluster.
func TestACheckFindsAnotherLog(t *testing.T) {
	a := newArchived(t)
	forged := a.base
	forged.Digest[3] ^= 1
	checkFirst(t, a.open(nil), forged, 0, "is of another log")
	beyond := wal.Base{Txid: a.base.Txid + 3}
	checkFirst(t, a.open(nil), beyond, 0, fmt.Sprintf("ends at txid %d, and the log begins after %d", a.base.Txid, beyond.Txid))
	checkFirst(t, a.open(nil), wal.Base{}, 0, "")
	if _, err := a.open(nil).Check(t.Context(), 0, wal.Base{}, []string{"other"}); !errors.Is(err, backup.ErrNotArchived) || !strings.Contains(err.Error(), "another one") {
		t.Errorf("of another cluster: %v", err)
	}
	if _, err := a.open(nil).Check(t.Context(), 1, a.base, nil); !errors.Is(err, backup.ErrNotArchived) {
		t.Errorf("of a partition that is not there: %v", err)
	}
}

// An archive that is gone can't be read: nothing says that it lacks anything.
// It is read again when it is back.
func TestAnArchiveThatIsGone(t *testing.T) {
	a := newArchived(t)
	archive := a.open(nil)
	checkFirst(t, archive, a.base, 1, "")
	whole := a.memory.objects
	a.memory.objects = map[string][]byte{}
	a.clock.Time = a.clock.Add(time.Minute)
	if first, err := archive.Check(t.Context(), 0, a.base, nil); first != 0 || !errors.Is(err, backup.ErrNone) || errors.Is(err, backup.ErrNotArchived) {
		t.Errorf("gone: whole from %d, %v", first, err)
	}
	for name, archive := range map[string]*backup.Archive{"one that was read": archive, "a new one": a.open(nil)} {
		if _, err := archive.Batches(t.Context(), 0, 1, a.base); !errors.Is(err, backup.ErrNone) || errors.Is(err, backup.ErrNotArchived) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a.memory.objects = whole
	a.clock.Time = a.clock.Add(time.Minute)
	checkFirst(t, archive, a.base, 1, "")
	if all, err := readArchive(t.Context(), archive, 1, a.base); err != nil || len(all) != 10 {
		t.Errorf("back: %d batches, %v", len(all), err)
	}
}

// Of manifests that are damaged, or can't be found, the newest before them
// counts, and the log says so once.
func TestTheNewestWholeManifestCounts(t *testing.T) {
	a := newArchived(t)
	manifests := a.memory.names(".json")
	newest, before := manifests[len(manifests)-1], manifests[len(manifests)-2]
	whole := maps.Clone(a.memory.objects)
	a.memory.objects[newest] = a.memory.objects[newest][1:]
	var logged bytes.Buffer
	archive := a.open(slog.New(slog.NewTextHandler(&logged, nil)))
	for range 3 {
		checkFirst(t, archive, a.baseAfter(8), 1, "")
		a.clock.Time = a.clock.Add(time.Minute)
	}
	if text := logged.String(); strings.Count(text, "newest manifest of the archive is damaged") != 1 || !strings.Contains(text, newest) {
		t.Errorf("the log: %s", text)
	}
	checkFirst(t, archive, a.base, 0, "the newest manifest of the archive is damaged")
	if _, err := backup.New(a.memory, backup.Options{}).Newest(t.Context()); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("an archiver goes on from an older manifest: %v", err)
	}
	a.memory.objects[before] = nil
	checkFirst(t, a.open(nil), a.baseAfter(6), 1, "")
	for _, name := range manifests {
		a.memory.objects[name] = nil
	}
	if _, err := a.open(nil).Check(t.Context(), 0, a.base, nil); !errors.Is(err, backup.ErrDamaged) || errors.Is(err, backup.ErrNotArchived) {
		t.Errorf("all are damaged: %v", err)
	}
	a.memory.objects = whole
	a.clock.Time = a.clock.Add(time.Minute)
	checkFirst(t, archive, a.base, 1, "")
	if !strings.Contains(logged.String(), "is whole again") {
		t.Errorf("the log: %s", &logged)
	}
}

// A time is found where a plain scan finds it.
func TestATimeInTheArchive(t *testing.T) {
	a := newArchived(t)
	times := map[uint64]int64{}
	for _, data := range a.batches {
		b, err := wal.ParseBatch(data)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Count {
			times[b.First+uint64(i)] = b.Time + int64(i)
		}
	}
	archive, last := a.open(nil), uint64(len(times))
	for _, batches := range []int{7, 10} {
		base := a.baseAfter(batches)
		for txid := range last {
			for _, at := range []int64{times[txid+1] - 1, times[txid+1], times[txid+1] + 1} {
				for _, from := range []uint64{1, txid + 1, base.Txid} {
					want := from
					for want <= base.Txid && times[want] < at {
						want++
					}
					if want > base.Txid {
						want = 0
					}
					if got, err := archive.Find(t.Context(), 0, at, from, base); got != want || err != nil {
						t.Fatalf("from %d at %d, up to %d: %d, %v; want %d", from, at, base.Txid, got, err, want)
					}
				}
			}
		}
	}
	forged := a.base
	forged.Digest[0] ^= 1
	_, err := archive.Find(t.Context(), 0, times[3], 1, forged)
	wantNotArchived(t, err, "is of another log")
}

// Where an archive begins, an earlier transaction may be missing.
func TestATimeBeforeTheArchive(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	for range 6 {
		c.append(0, 2, 10)
	}
	c.trim(0, 2)
	mustRun(t, backup.New(m, backup.Options{Now: clock.now}), c)
	a := backup.NewArchive(backup.New(m, backup.Options{Now: clock.now}))
	b, err := wal.ParseBatch(c.logs[0].batches[2])
	if err != nil {
		t.Fatal(err)
	}
	base := c.logs[0].baseAfter(6)
	_, err = a.Find(t.Context(), 0, b.Time, 1, base)
	wantNotArchived(t, err, "begins at txid 5")
	if txid, err := a.Find(t.Context(), 0, b.Time, 5, base); txid != 5 || err != nil {
		t.Errorf("from 5: %d, %v", txid, err)
	}
	if txid, err := a.Find(t.Context(), 0, b.Time+1, 1, base); txid != 6 || err != nil {
		t.Errorf("later: %d, %v", txid, err)
	}
}

// What an archive lacks is named without the place where the archive is, since
// clients are shown it.
func TestAMissingSegmentIsNamedWithoutItsPlace(t *testing.T) {
	c, dir := newCluster(1), t.TempDir()
	c.append(0, 2, 10)
	r, err := backup.Open(t.Context(), dir, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, r, c)
	segments, err := filepath.Glob(filepath.Join(dir, "p0", "*.seg"))
	if err != nil || len(segments) != 1 || os.Remove(segments[0]) != nil {
		t.Fatalf("%q, %v", segments, err)
	}
	_, err = backup.NewArchive(r).Batches(t.Context(), 0, 1, c.logs[0].baseAfter(1))
	wantNotArchived(t, err, "a segment is missing: p0/")
	if strings.Contains(err.Error(), dir) {
		t.Errorf("the error names the place: %v", err)
	}
}

package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/wal"
)

// base returns the point after a number of batches.
func (l *log) baseAfter(batches int) wal.Base {
	return wal.Base{Txid: l.lasts[batches-1], Digest: l.digests[batches-1]}
}

// readArchive reads the batches up to a base, from a txid on, as a reader does.
func readArchive(ctx context.Context, a *backup.Archive, from uint64, base wal.Base) (all [][]byte, err error) {
	for next := from; next <= base.Txid; {
		batches, err := a.Batches(ctx, 0, next, base)
		if err != nil {
			return all, err
		}
		if len(batches) == 0 || batches[0].First > next || batches[0].Last() < next {
			return all, fmt.Errorf("txid %d is not in what is returned", next)
		}
		for _, b := range batches {
			if b.First > base.Txid {
				break
			}
			all = append(all, bytes.Clone(b.Bytes()))
			next = b.Last() + 1
		}
	}
	return all, nil
}

func mustReadArchive(t *testing.T, a *backup.Archive, l *log, batches int) {
	t.Helper()
	all, err := readArchive(t.Context(), a, 1, l.baseAfter(batches))
	if err != nil || len(all) != batches {
		t.Fatalf("up to batch %d: %d batches, %v", batches, len(all), err)
	}
	for i, b := range all {
		if !bytes.Equal(b, l.batches[i]) {
			t.Fatalf("batch %d is not the log's", i)
		}
	}
}

// wantNotArchived checks an error, and that it says why.
func wantNotArchived(t *testing.T, err error, because string) {
	t.Helper()
	if !errors.Is(err, backup.ErrNotArchived) || !strings.Contains(err.Error(), because) {
		t.Errorf("the error is %v, want one with %q", err, because)
	}
}

// An archive has the log's batches, from anywhere, up to any base, while it
// grows.
func TestAnArchiveIsTheLog(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{Now: clock.now})
	a := backup.NewArchive(backup.New(m, backup.Options{Now: clock.now}))
	l := c.logs[0]
	c.append(0, 3, 10)
	_, err := a.Batches(t.Context(), 0, 1, l.baseAfter(1))
	if !errors.Is(err, backup.ErrNone) || errors.Is(err, backup.ErrNotArchived) { // it may be there later
		t.Errorf("without an archive: %v", err)
	}
	clock.Time = clock.Add(time.Minute)
	for range 30 {
		for range 3 {
			c.append(0, 1+rand.IntN(4), 20)
		}
		mustRun(t, r, c)
		clock.Time = clock.Add(time.Minute)
		n := len(l.batches)
		mustReadArchive(t, a, l, n) // and so reads the manifest again
		mustReadArchive(t, a, l, 1+rand.IntN(n))
		from := 1 + rand.Uint64N(l.last.Txid)
		if _, err := readArchive(t.Context(), a, from, l.baseAfter(n)); err != nil {
			t.Fatalf("from %d: %v", from, err)
		}
	}
	checkFirst(t, a, l.baseAfter(len(l.batches)), 1, "")
	c.append(0, 1, 10)
	clock.Time = clock.Add(time.Minute)
	_, err = a.Batches(t.Context(), 0, 1, l.baseAfter(len(l.batches)))
	wantNotArchived(t, err, fmt.Sprintf("ends at txid %d, and the log begins after %d", l.last.Txid-1, l.last.Txid))
	checkFirst(t, a, l.baseAfter(len(l.batches)), 0, "ends at txid")
}

// An archive that began after a trim says where.
func TestAnArchiveThatBeginsLater(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	l := c.logs[0]
	for range 6 {
		c.append(0, 2, 10)
	}
	c.trim(0, 2)
	mustRun(t, backup.New(m, backup.Options{Now: clock.now}), c)
	a := backup.NewArchive(backup.New(m, backup.Options{Now: clock.now}))
	_, err := a.Batches(t.Context(), 0, 4, l.baseAfter(6))
	wantNotArchived(t, err, "begins at txid 5")
	if all, err := readArchive(t.Context(), a, 5, l.baseAfter(6)); err != nil || len(all) != 4 {
		t.Errorf("%d batches, %v", len(all), err)
	}
	checkFirst(t, a, l.baseAfter(6), 5, "")
}

// Another log is refused, also one that is well-formed, and one that differs in
// what is read and not in the end.
func TestAnArchiveOfAnotherLog(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	for range 4 {
		c.append(0, 2, 10)
	}
	mustRun(t, backup.New(m, backup.Options{Now: clock.now}), c)
	base := c.logs[0].baseAfter(4)
	forged := base
	forged.Digest[3] ^= 1
	inside := base
	inside.Txid--
	for _, base := range []wal.Base{forged, inside} {
		a := backup.NewArchive(backup.New(m, backup.Options{Now: clock.now}))
		_, err := a.Batches(t.Context(), 0, 1, base)
		wantNotArchived(t, err, "is of another log")
	}
	// The beginning is another one, with hashes and digests that fit it.
	other := newCluster(1)
	other.append(0, 2, 11)
	for range 3 {
		other.append(0, 2, 10)
	}
	m2 := newMemory(clock.now)
	mustRun(t, backup.New(m2, backup.Options{Now: clock.now}), other)
	_, err := backup.NewArchive(backup.New(m2, backup.Options{Now: clock.now})).Batches(t.Context(), 0, 1, base)
	wantNotArchived(t, err, "is of another log")
}

// A flipped byte anywhere in a segment is found before any of it is returned.
func TestADamagedArchive(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{Now: clock.now})
	for range 3 {
		c.append(0, 2, 10)
		mustRun(t, r, c)
	}
	l := c.logs[0]
	first := m.names(".seg")[0]
	for i := range m.objects[first] {
		damaged := m.copy()
		damaged.objects[first] = bytes.Clone(damaged.objects[first])
		damaged.objects[first][i] ^= 8
		a := backup.NewArchive(backup.New(damaged, backup.Options{Now: clock.now}))
		_, err := a.Batches(t.Context(), 0, 1, l.baseAfter(3))
		wantNotArchived(t, err, first)
		if all, err := readArchive(t.Context(), a, 3, l.baseAfter(3)); err != nil || len(all) != 2 {
			t.Fatalf("behind the damage: %d batches, %v", len(all), err)
		}
	}
	delete(m.objects, first)
	_, err := backup.NewArchive(backup.New(m, backup.Options{Now: clock.now})).Batches(t.Context(), 0, 1, l.baseAfter(3))
	wantNotArchived(t, err, first)
}

// Segments that were merged and deleted meanwhile are read from the newer
// manifest. Readers are many.
func TestAnArchiveIsReadWhileItGrows(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(time.Now)
	r := backup.New(m, backup.Options{Now: clock.now})
	c.append(0, 2, 10)
	mustRun(t, r, c)
	l := *c.logs[0]
	a := backup.NewArchive(backup.New(m, backup.Options{}))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if all, err := readArchive(ctx, a, 1, l.baseAfter(1)); err == nil && !bytes.Equal(all[0], l.batches[0]) || err != nil && ctx.Err() == nil {
					t.Errorf("%d batches, %v", len(all), err)
					return
				}
			}
		})
	}
	for range 100 {
		c.append(0, 2, 10)
		clock.Time = clock.Add(25 * time.Hour) // what is not named any more is deleted
		mustRun(t, r, c)
	}
	stop()
	readers.Wait()
	mustReadArchive(t, backup.NewArchive(backup.New(m, backup.Options{})), c.logs[0], 101)
}

package backup_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/backup"
)

// A process that has had a backup wants the same one: a directory without it is
// what an unmount leaves. It looks in a run without news too, and goes on once
// the backup is back.
func TestABackupThatVanishes(t *testing.T) {
	for _, news := range []bool{false, true} {
		c := newCluster(1)
		c.append(0, 3, 10)
		place := filepath.Join(t.TempDir(), "backup")
		r, err := backup.Open(t.Context(), place, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		mustRun(t, r, c)
		if err := os.Rename(place, place+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(place, 0o777); err != nil {
			t.Fatal(err)
		}
		if news {
			c.append(0, 3, 10)
		}
		for range 2 {
			result, err := r.Run(t.Context(), source{c}, backup.RunOptions{})
			if !errors.Is(err, backup.ErrNone) || !strings.Contains(err.Error(), "mounted") || result.Manifest.Generation != 0 {
				t.Errorf("news %v: %+v, %v", news, result, err)
			}
		}
		if err := os.Remove(place); err != nil { // nothing was written
			t.Fatal(err)
		}
		if err := os.Rename(place+".away", place); err != nil {
			t.Fatal(err)
		}
		if m := mustRun(t, r, c).Manifest; m.Partitions[0].Last.Txid != c.logs[0].last.Txid {
			t.Errorf("news %v: %+v", news, m)
		}
	}
}

// leaving is a source that calls leave when it has been asked for a partition's
// state.
type leaving struct {
	source
	leave func()
}

func (l leaving) State(ctx context.Context, partition int) (backup.State, error) {
	defer l.leave()
	return l.source.State(ctx, partition)
}

// A backup that goes away within a run is not begun anew in its place, where it
// would keep the backup from coming back, or lie below what is mounted there.
func TestABackupThatVanishesWithinARun(t *testing.T) {
	for _, unmounted := range []bool{false, true} {
		c := newCluster(2)
		c.append(0, 3, 10)
		place := filepath.Join(t.TempDir(), "backup")
		r, err := backup.Open(t.Context(), place, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		one := backup.RunOptions{Partitions: []int{0}}
		if _, err := r.Run(t.Context(), source{c}, one); err != nil {
			t.Fatal(err)
		}
		c.append(0, 3, 10)
		c.append(1, 3, 10) // whose folder is new
		goes := func() {
			err := os.Rename(place, place+".away")
			if err == nil && unmounted {
				err = os.Mkdir(place, 0o777)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		result, err := r.Run(t.Context(), leaving{source{c}, sync.OnceFunc(goes)}, backup.RunOptions{})
		if err == nil || !strings.Contains(err.Error(), "mounted") || result.Wrote {
			t.Errorf("unmounted %v: %+v, %v", unmounted, result, err)
		}
		if err := os.Remove(place); err != nil && unmounted || err == nil && !unmounted {
			t.Errorf("unmounted %v: something is in its place: %v", unmounted, err)
		}
		if err := os.Rename(place+".away", place); err != nil {
			t.Fatal(err)
		}
		mustRun(t, r, c)
	}
}

// switching is a bucket that becomes another one before an object whose name
// begins so is written.
type switching struct {
	backup.Bucket
	before string
	other  backup.Bucket
}

func (s *switching) Put(ctx context.Context, name string, data []byte, mustBeNew bool) error {
	err := s.Bucket.Put(ctx, name, data, mustBeNew)
	if s.other != nil && strings.HasPrefix(name, s.before) {
		s.Bucket, s.other = s.other, nil
	}
	return err
}

// Another backup that comes in place of the first is left as it is, though its
// generation is the same: between two runs, and within one.
func TestAnotherBackupInItsPlace(t *testing.T) {
	for _, within := range []bool{false, true} {
		c, clock := newCluster(1), newClock()
		c.append(0, 3, 10)
		other := newMemory(clock.now)
		mustRun(t, backup.New(other, backup.Options{Now: clock.now}), c)
		was := other.copy()
		b := &switching{Bucket: newMemory(clock.now), before: "p0/"}
		r := backup.New(b, backup.Options{Now: clock.now})
		mustRun(t, r, c)
		c.append(0, 3, 10)
		if b.other = other; !within {
			b.Bucket, b.other = other, nil
		}
		_, err := r.Run(t.Context(), source{c}, backup.RunOptions{})
		if !errors.Is(err, backup.ErrOther) || !strings.Contains(err.Error(), "another one") {
			t.Errorf("within a run %v: %v", within, err)
		}
		if got, want := other.names(".json"), was.names(".json"); len(got) != len(want) {
			t.Errorf("within a run %v: it has %v, and had %v", within, got, want)
		}
	}
}

// Of two copies of a backup that come to the same generation, one may take the
// place of the other within a run: the run begins again from what is there.
func TestACopyInItsPlace(t *testing.T) {
	c, clock := newCluster(1), newClock()
	first := newMemory(clock.now)
	c.append(0, 3, 10)
	b := &switching{Bucket: first, before: "p0/"}
	r := backup.New(b, backup.Options{Now: clock.now})
	mustRun(t, r, c)
	second := first.copy()
	c.append(0, 3, 10)
	mustRun(t, r, c)
	c.append(0, 3, 10)
	mustRun(t, backup.New(second, backup.Options{Now: clock.now}), c)
	c.append(0, 3, 10)
	b.other = second
	mustRun(t, r, c)
	level(t, checkBackup(t, second, c), c)
}

// A backup that has lost its manifests is not taken for a new one, which would
// delete its segments. What an interrupted first run has left just now is.
func TestABackupWithoutItsManifests(t *testing.T) {
	c, clock := newCluster(1), newClock()
	c.append(0, 3, 10)
	m := newMemory(clock.now)
	mustRun(t, backup.New(m, backup.Options{Now: clock.now}), c)
	for _, name := range m.names(".json") {
		if err := m.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, hours := range []int{1, 25} {
		clock.Time = clock.Add(time.Duration(hours) * time.Hour)
		err := backup.New(m, backup.Options{Now: clock.now}).CheckPlace(t.Context())
		if refused := err != nil && strings.Contains(err.Error(), "no manifest: put its folder manifest/ back"); refused != (hours > 24) || !refused && err != nil {
			t.Errorf("after %d hours: %v", hours, err)
		}
	}
}

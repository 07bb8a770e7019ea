package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

func TestRunsAddWhatIsNew(t *testing.T) {
	c, clock := newCluster(3), newClock()
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{Now: clock.now, Version: "1.2.3"})
	c.append(0, 10, 100)
	c.append(1, 1, 0)
	c.setCursor(0, "billing", 7)
	c.logs[1].history = []subjects.PastCluster{{Cluster: "old", LastTxid: 1}}
	result := mustRun(t, r, c)
	if !result.Wrote || result.Transactions != 11 || result.Bytes <= 1000 || result.Stored <= 0 {
		t.Errorf("%+v", result)
	}
	level(t, checkBackup(t, m, c), c)

	if result := mustRun(t, r, c); result.Wrote || result.Manifest.Generation != 1 || result.Transactions != 0 {
		t.Errorf("nothing is new: %+v", result)
	}
	if other := backup.New(m, backup.Options{}); mustRun(t, other, c).Wrote {
		t.Error("nothing is new to another process, and it writes")
	}
	c.append(0, 5, 100)
	c.append(0, 5, 100)
	if result := mustRun(t, r, c); result.Transactions != 10 || result.Manifest.Generation != 2 {
		t.Errorf("%+v", result)
	}
	c.setCursor(0, "billing", 9)
	if result := mustRun(t, r, c); !result.Wrote || result.Transactions != 0 || result.Manifest.Partitions[0].Cursors[0].Txid != 9 {
		t.Errorf("a cursor is new: %+v", result)
	}
	newest := checkBackup(t, m, c)
	level(t, newest, c)
	if p, _ := newest.Find(1); len(p.History) != 1 || p.History[0].Cluster != "old" {
		t.Errorf("the history is %v", p.History)
	}
	if newest.Version != "1.2.3" || !newest.Taken.Equal(clock.Time) || newest.Cluster != c.Cluster {
		t.Errorf("%+v", newest)
	}
	if p, _ := newest.Find(0); !p.Last.Time.Equal(time.Date(2026, 11, 1, 0, 0, 0, 16000+4, time.UTC)) {
		t.Errorf("the last transaction is of %v", p.Last.Time)
	}
}

// A log whose beginning was trimmed is backed up from there on.
func TestATrimmedLog(t *testing.T) {
	c, clock := newCluster(1), newClock()
	for range 10 {
		c.append(0, 7, 10)
	}
	c.trim(0, 4)
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{Now: clock.now})
	mustRun(t, r, c)
	c.trim(0, 7) // the backup keeps it
	newest := checkBackup(t, m, c)
	level(t, newest, c)
	if p, _ := newest.Find(0); p.Base.Txid != 28 || p.Transactions() != 42 {
		t.Errorf("%+v", p)
	}
	err := r.Batches(t.Context(), newest, 0, 28, func(wal.Batch) error { return nil })
	if !errors.Is(err, backup.ErrGap) {
		t.Errorf("a read from before: %v", err)
	}
	c.append(0, 1, 1)
	level(t, func() *backup.Manifest { mustRun(t, r, c); return checkBackup(t, m, c) }(), c)
}

// Many small runs leave few segments, and write each byte few times.
func TestSmallSegmentsAreMerged(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{Now: clock.now})
	most, stored := 0, int64(0)
	for range 1000 {
		c.append(0, 1+rand.IntN(5), rand.IntN(300))
		result := mustRun(t, r, c)
		stored += result.Stored
		most = max(most, len(result.Manifest.Partitions[0].Segments))
		clock.Time = clock.Add(time.Minute)
	}
	newest := checkBackup(t, m, c)
	level(t, newest, c)
	_, size := newest.Partitions[0].Sizes()
	if most > 60 {
		t.Errorf("up to %d segments", most)
	}
	if stored > 12*size {
		t.Errorf("%d bytes were written for %d", stored, size)
	}
	if n := len(m.names(".json")); n != 10 {
		t.Errorf("%d manifests are kept", n)
	}
	// An hour of segments that nothing names may be there beside a day of them.
	if n := len(m.names(".seg")); n > 1500 {
		t.Errorf("%d segments are there", n)
	}
	// From any txid the batches are the log's.
	for range 100 {
		from := 1 + rand.Uint64N(c.logs[0].last.Txid)
		want := from
		err := r.Batches(t.Context(), newest, 0, from, func(b wal.Batch) error {
			if b.First > want || b.Last() < want {
				return fmt.Errorf("from %d comes a batch from %d to %d for %d", from, b.First, b.Last(), want)
			}
			want = b.Last() + 1
			return nil
		})
		if err != nil || want != c.logs[0].last.Txid+1 {
			t.Fatalf("from %d up to %d: %v", from, want, err)
		}
	}
}

// A process that ends at any step leaves the last manifest valid, whether the
// step was done or not, and the next run goes on from there.
func TestCrashAtEveryStep(t *testing.T) {
	c, clock := newCluster(2), newClock()
	m := newMemory(clock.now)
	before := backup.New(m, backup.Options{Now: clock.now})
	for range 15 { // some to merge, and manifests to delete
		c.append(0, 3, 50)
		c.append(1, 3, 50)
		mustRun(t, before, c)
	}
	old := c.logs[0].last.Txid
	for range 3 {
		c.append(0, 3, 50)
		c.append(1, 3, 50)
	}
	c.setCursor(0, "c", 3)
	clock.Time = clock.Add(48 * time.Hour)
	for _, done := range []bool{false, true} {
		for steps := 1; ; steps++ {
			at := m.copy()
			bucket := &crashing{at, steps, done}
			_, err := backup.New(bucket, backup.Options{Now: clock.now}).Run(t.Context(), source{c}, backup.RunOptions{})
			if err != nil && !errors.Is(err, errCrashed) {
				t.Fatalf("step %d: %v", steps, err)
			}
			newest := checkBackup(t, at, c)
			if p, _ := newest.Find(0); p.Last.Txid < old {
				t.Fatalf("step %d: the backup goes back to %d", steps, p.Last.Txid)
			}
			mustRun(t, backup.New(at, backup.Options{Now: clock.now}), c)
			level(t, checkBackup(t, at, c), c)
			if bucket.left > 0 { // the run was over before
				if steps < 20 {
					t.Errorf("a run has %d steps: the test shows little", steps)
				}
				break
			}
		}
	}
}

// The first run crashes too.
func TestCrashInTheFirstRun(t *testing.T) {
	c, clock := newCluster(1), newClock()
	c.append(0, 3, 50)
	for steps := 1; steps < 10; steps++ {
		at := newMemory(clock.now)
		_, err := backup.New(&crashing{at, steps, steps%2 == 0}, backup.Options{}).Run(t.Context(), source{c}, backup.RunOptions{})
		if err != nil && !errors.Is(err, errCrashed) {
			t.Fatal(err)
		}
		checkBackup(t, at, c)
		mustRun(t, backup.New(at, backup.Options{}), c)
		level(t, checkBackup(t, at, c), c)
	}
}

// Two processes write to one repository: both succeed, and nothing is lost.
func TestTwoWriters(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(2)
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			r, err := backup.Open(t.Context(), dir, backup.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				c.append(0, 2, 20)
				c.append(1, 2, 20)
				if _, err := r.Run(t.Context(), source{c}, backup.RunOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	r, err := backup.Open(t.Context(), dir, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	newest, err := r.Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	level(t, newest, c)
	for p := range 2 {
		if err := r.Verify(t.Context(), newest, p, nil); err != nil {
			t.Error(err)
		}
	}
}

// A writer that was away while another one went far ahead begins again there.
func TestAWriterThatWasAway(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	away, other := backup.New(m, backup.Options{}), backup.New(m, backup.Options{})
	for _, r := range []*backup.Repository{away, other} {
		c.append(0, 1, 1)
		mustRun(t, r, c)
	}
	for range 30 { // the manifest after that of the one that is away is deleted
		c.append(0, 1, 1)
		mustRun(t, other, c)
	}
	c.append(0, 1, 1)
	if result := mustRun(t, away, c); result.Manifest.Generation != 33 {
		t.Errorf("it has written generation %d", result.Manifest.Generation)
	}
	level(t, checkBackup(t, m, c), c)
}

// interrupting cancels a run after some batches.
type interrupting struct {
	source
	left   int
	cancel context.CancelFunc
}

func (s *interrupting) Batches(ctx context.Context, partition int, from, to uint64, each func(wal.Batch) error) error {
	return s.source.Batches(ctx, partition, from, to, func(b wal.Batch) error {
		if s.left--; s.left == 0 {
			s.cancel()
		}
		return each(b)
	})
}

// What a run has read when it is cancelled is a valid backup, and no cursor in
// it is past its end.
func TestAnInterruptedRun(t *testing.T) {
	c, clock := newCluster(2), newClock()
	for range 20 {
		c.append(0, 3, 30)
		c.append(1, 3, 30)
	}
	c.setCursor(0, "late", 60)
	c.setCursor(0, "early", 2)
	for after := 1; after < 40; after++ {
		m := newMemory(clock.now)
		ctx, cancel := context.WithCancel(t.Context())
		result, err := backup.New(m, backup.Options{}).Run(ctx, &interrupting{source{c}, after, cancel}, backup.RunOptions{})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d: %v", after, err)
		}
		newest := checkBackup(t, m, c)
		if p, _ := newest.Find(0); p.Last.Txid != uint64(3*min(after, 20)) || p.Cursors[0].Txid != 2 || p.Cursors[1].Txid != p.Last.Txid {
			t.Fatalf("after %d: %d, %v", after, p.Last.Txid, p.Cursors)
		}
		if !result.Wrote || result.Transactions != uint64(3*after) {
			t.Errorf("after %d: %+v", after, result)
		}
		mustRun(t, backup.New(m, backup.Options{}), c)
		level(t, checkBackup(t, m, c), c)
	}
}

// A long run writes a manifest now and then.
func TestALongRunIsWrittenInParts(t *testing.T) {
	c, clock := newCluster(1), newClock()
	for range 100 {
		c.append(0, 1, 1)
	}
	m := newMemory(clock.now)
	result, err := backup.New(m, backup.Options{Now: clock.now}).Run(t.Context(), source{c}, backup.RunOptions{
		Progress: func(backup.Progress) { clock.Time = clock.Add(time.Second) },
	})
	if err != nil || result.Manifest.Generation < 4 || result.Manifest.Generation > 5 || !result.Wrote {
		t.Errorf("%d manifests, %v", result.Manifest.Generation, err)
	}
	level(t, checkBackup(t, m, c), c)
}

// A backup goes on with its own log only.
func TestAnotherLogIsRefused(t *testing.T) {
	filled := func() *cluster {
		c := newCluster(1)
		for range 5 {
			c.append(0, 4, 10)
		}
		return c
	}
	for name, test := range map[string]struct {
		change func(*cluster)
		want   error
		text   string
	}{
		"another cluster":  {func(c *cluster) { c.ID = "def" }, backup.ErrOther, "back it up elsewhere"},
		"a shorter log":    {func(c *cluster) { *c = *newCluster(1); c.append(0, 4, 10) }, backup.ErrOther, "lost transactions"},
		"another digest":   {func(c *cluster) { *c = *newCluster(1); c.append(0, 20, 10) }, backup.ErrOther, "the digest"},
		"another history":  {func(c *cluster) { *c = *newCluster(1); c.append(0, 20, 10); c.append(0, 2, 1) }, backup.ErrOther, "lead to txid 22"},
		"other batches":    {func(c *cluster) { *c = *newCluster(1); c.append(0, 25, 10) }, backup.ErrOther, "a batch begins at txid 1"},
		"a trimmed log":    {func(c *cluster) { c.append(0, 1, 1); c.append(0, 1, 1); c.trim(0, 6) }, backup.ErrGap, "begin another one elsewhere"},
		"nothing new":      {func(*cluster) {}, nil, ""},
		"trimmed to there": {func(c *cluster) { c.append(0, 1, 1); c.trim(0, 5) }, nil, ""},
	} {
		c, clock := filled(), newClock()
		m := newMemory(clock.now)
		mustRun(t, backup.New(m, backup.Options{}), c)
		before := m.copy()
		test.change(c)
		_, err := backup.New(m, backup.Options{}).Run(t.Context(), source{c}, backup.RunOptions{})
		if !errors.Is(err, test.want) || test.want != nil && !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
		if test.want != nil && len(m.names(".json")) != len(before.names(".json")) {
			t.Errorf("%s: a manifest was written", name)
		}
	}
}

// failing is a source of which one partition can't be read.
type failing struct{ source }

func (s failing) State(ctx context.Context, partition int) (backup.State, error) {
	if partition == 1 {
		return backup.State{}, errCrashed
	}
	return s.source.State(ctx, partition)
}

func TestOnePartitionFails(t *testing.T) {
	c, clock := newCluster(3), newClock()
	for p := range 3 {
		c.append(p, 3, 3)
	}
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{})
	_, err := r.Run(t.Context(), failing{source{c}}, backup.RunOptions{})
	if !errors.Is(err, errCrashed) || !strings.Contains(err.Error(), "partition 1") {
		t.Errorf("%v", err)
	}
	newest := checkBackup(t, m, c)
	if _, ok := newest.Find(1); ok || len(newest.Partitions) != 2 {
		t.Errorf("%+v", newest.Partitions)
	}
	if _, err := r.Run(t.Context(), source{c}, backup.RunOptions{Partitions: []int{1}}); err != nil {
		t.Error(err)
	}
	level(t, checkBackup(t, m, c), c)
}

// Every byte of every object counts: with any of them flipped, the object is
// named.
func TestEveryFlippedByteIsFound(t *testing.T) {
	c, clock := newCluster(2), newClock()
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{})
	c.append(0, 3, 40)
	c.append(1, 2, 10)
	c.setCursor(1, "c", 1)
	mustRun(t, r, c)
	newest := checkBackup(t, m, c)
	for _, name := range append(m.names(".seg"), m.names(".json")...) {
		object := m.objects[name]
		for i := range object {
			object[i] ^= 1 << (i % 8)
			err := verify(t.Context(), m)
			if !errors.Is(err, backup.ErrDamaged) || !strings.Contains(err.Error(), name) {
				t.Fatalf("byte %d of %s: %v", i, name, err)
			}
			object[i] ^= 1 << (i % 8)
		}
		for _, cut := range [][]byte{object[:len(object)-1], append(object[:len(object):len(object)], 0), nil} {
			m.objects[name] = cut
			if err := verify(t.Context(), m); !errors.Is(err, backup.ErrDamaged) || !strings.Contains(err.Error(), name) {
				t.Fatalf("%s with %d bytes: %v", name, len(cut), err)
			}
		}
		m.objects[name] = object
	}
	for _, name := range m.names(".seg") {
		object := m.objects[name]
		delete(m.objects, name)
		if err := verify(t.Context(), m); !errors.Is(err, backup.ErrDamaged) || !strings.Contains(err.Error(), name+" is missing") {
			t.Errorf("%s is missing: %v", name, err)
		}
		m.objects[name] = object
	}
	if err := verify(t.Context(), m); err != nil {
		t.Error(err)
	}
	// A run does not build on a damaged manifest.
	name := m.names(".json")[0]
	m.objects[name][10]++
	if _, err := backup.New(m, backup.Options{}).Run(t.Context(), source{c}, backup.RunOptions{}); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("%v", err)
	}
	_ = newest
}

// verify checks all of the newest backup.
func verify(ctx context.Context, b backup.Bucket) error {
	r := backup.New(b, backup.Options{})
	m, err := r.Newest(ctx)
	if err != nil {
		return err
	}
	for _, p := range m.Partitions {
		err = errors.Join(err, r.Verify(ctx, m, p.Partition, nil))
	}
	return err
}

// Segments that are merged and deleted while somebody reads are read from those
// that have replaced them.
func TestSegmentsAreMergedWhileTheyAreRead(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	writer := backup.New(m, backup.Options{Now: clock.now})
	for range 7 {
		c.append(0, 5, 30)
		mustRun(t, writer, c)
	}
	reader := backup.New(m, backup.Options{})
	old, err := reader.Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end := old.Partitions[0].Last.Txid
	read, last := 0, uint64(0)
	err = reader.Batches(t.Context(), old, 0, 1, func(b wal.Batch) error {
		read, last = read+1, b.Last()
		if read == 3 {
			for range 12 {
				c.append(0, 5, 30)
				mustRun(t, writer, c)
				clock.Time = clock.Add(25 * time.Hour)
			}
			if _, err := m.Get(t.Context(), old.Partitions[0].Segments[4].Name, 0); !errors.Is(err, fs.ErrNotExist) {
				return errors.New("the old segments are there: the test shows nothing")
			}
		}
		return nil
	})
	if err != nil || read != 7 || last != end {
		t.Errorf("%d batches up to %d of %d: %v", read, last, end, err)
	}
}

// What no manifest names is deleted after a day, and not before.
func TestUnnamedSegmentsAreDeleted(t *testing.T) {
	c, clock := newCluster(1), newClock()
	m := newMemory(clock.now)
	r := backup.New(m, backup.Options{Now: clock.now})
	lost := "p0/00000000000000000001-00000000000000000009-00000000.seg"
	if err := m.Put(t.Context(), lost, []byte("of a process that was killed"), false); err != nil {
		t.Fatal(err)
	}
	others := []string{"journal/00000001.seg", "p0/notes.seg"} // of something else
	for _, name := range others {
		if err := m.Put(t.Context(), name, nil, false); err != nil {
			t.Fatal(err)
		}
	}
	for hours := range 30 {
		c.append(0, 1, 1)
		mustRun(t, r, c)
		_, err := m.Get(t.Context(), lost, 0)
		if gone := errors.Is(err, fs.ErrNotExist); gone != (hours > 24) {
			t.Fatalf("after %d hours it is deleted: %t", hours, gone)
		}
		clock.Time = clock.Add(time.Hour)
	}
	for _, name := range others {
		if _, err := m.Get(t.Context(), name, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	level(t, checkBackup(t, m, c), c)
}

func TestNoBackup(t *testing.T) {
	r, err := backup.Open(t.Context(), t.TempDir(), backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Newest(t.Context()); !errors.Is(err, backup.ErrNone) {
		t.Error(err)
	}
	if _, err := backup.Open(t.Context(), "ftp://host/x", backup.Options{}); err == nil || !strings.Contains(err.Error(), "s3://") {
		t.Error(err)
	}
}

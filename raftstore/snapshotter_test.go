package raftstore_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

// quietOptions have a snapshot taken after a second without entries, and after
// many.
var quietOptions = raftstore.Options{SnapshotEntries: 1000, SnapshotInterval: 5 * time.Second, SnapshotQuiet: time.Second}

// Once no more entries come there is one snapshot of those that came, and then
// none. While they come there is none but that after many.
func TestASnapshotIsTakenWhenNoMoreEntriesCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taken := atomic.Int64{}
		s := raftstore.NewSnapshotter(quietOptions, func() error { taken.Add(1); return nil })
		check := func(when string, want int64) {
			t.Helper()
			synctest.Wait()
			if got := taken.Load(); got != want {
				t.Fatalf("%s: %d snapshots were taken, want %d", when, got, want)
			}
		}
		for i := range uint64(100) {
			s.Apply(i + 1)
			time.Sleep(900 * time.Millisecond)
		}
		check("while entries come", 0)
		time.Sleep(4 * time.Second)
		check("after the last", 1)
		time.Sleep(time.Hour)
		check("an hour later", 1)
		s.Apply(101)
		time.Sleep(4 * time.Second)
		check("after another", 2)
		time.Sleep(time.Hour)
		check("an hour after that", 2)
	})
}

// A snapshot that fails is tried again until it succeeds, or the group is
// closed.
func TestAQuietSnapshotIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var outcomes []error
		s := raftstore.NewSnapshotter(quietOptions, func() error {
			err := outcomes[0]
			outcomes = slices.Delete(outcomes, 0, 1)
			return err
		})
		for i, want := range [][]error{{errors.New("no room"), errors.New("no room"), nil}, {errors.New("no room"), raftstore.ErrClosed}} {
			outcomes = want
			s.Apply(uint64(i + 1))
			time.Sleep(time.Hour)
			synctest.Wait()
			if len(outcomes) > 0 {
				t.Errorf("%d attempts were not made", len(outcomes))
			}
		}
	})
}

// Each replica of a group that is idle has a snapshot of all its entries.
func TestAnIdleGroupHasASnapshotOfAllEntries(t *testing.T) {
	c, _ := startCluster(t, "n1", "n2", "n3")
	want := c.putSome(21)
	for _, n := range c.nodes {
		until(t, n.name+" has a snapshot of all", func() bool {
			_, state, err := raftstore.LastSnapshot(n.log())
			if err != nil {
				t.Fatal(err)
			}
			return len(state) == 8 && binary.BigEndian.Uint64(state) >= uint64(len(want))
		})
	}
}

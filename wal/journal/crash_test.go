package journal_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

var outcomes = map[string]journaltest.Outcome{
	"lost": journaltest.Lost, "kept": journaltest.Kept, "torn": journaltest.Torn,
}

// TestCrashAtEveryOperation stops at the k-th operation on the disk, for each k
// until there is none, by a power cut or by the end of the process, and again
// by a power cut soon after the restart.
func TestCrashAtEveryOperation(t *testing.T) {
	everyFault(t, journaltest.Fault{Crash: true}, func(w *world, seed uint64) {
		if seed%2 == 0 {
			w.mustWork(w.fs.PowerCut())
		} else {
			w.mustWork(w.fs.Kill())
		}
		w.mustWork(w.fs.PowerCut())
		if err := w.j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFailAtEveryOperation has the k-th operation fail while the machine stays
// up: the journal latches, is opened again on what the page cache has, and is
// used. Then the power is cut, which shows what never reached the disk.
func TestFailAtEveryOperation(t *testing.T) {
	everyFault(t, journaltest.Fault{}, func(w *world, _ uint64) {
		w.mustWork(w.fs.Kill())
		w.mustWork(w.fs.PowerCut())
		if err := w.j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func everyFault(t *testing.T, fault journaltest.Fault, after func(w *world, seed uint64)) {
	t.Run("segments of one size", func(t *testing.T) { everyFaultWith(t, 8<<10, fault, after) })
	if testing.Short() {
		return
	}
	t.Run("segments that grow", func(t *testing.T) { everyFaultWith(t, 32<<10, fault, after) })
}

func everyFaultWith(t *testing.T, largest int64, fault journaltest.Fault, after func(w *world, seed uint64)) {
	for name, outcome := range outcomes {
		t.Run(name, func(t *testing.T) {
			fault := fault
			fault.Outcome = outcome
			hits := 0
			for fault.At = 1; ; fault.At++ {
				seed := uint64(fault.At)
				w := newWorld(t, seed)
				w.largest = largest
				w.fs.Fail(fault)
				err := w.run()
				if w.fs.Ops() < fault.At {
					if err != nil {
						t.Fatalf("no fault, yet %v", err)
					}
					break
				}
				hits++
				if w.j != nil {
					latched := w.j.Err()
					if e := w.j.Commit(ops(0, w.rng)); latched != nil && e == nil {
						t.Fatalf("fault at %d: commit after %v", fault.At, latched)
					}
				}
				after(w, seed)
			}
			if hits < 50 {
				t.Fatalf("only %d operations were hit", hits)
			}
		})
	}
}

// TestFailedSyncLatches: every commit after a failed write or sync returns the
// same error, and so do Release and Close.
func TestFailedSyncLatches(t *testing.T) {
	for _, kind := range []journaltest.Kind{journaltest.Write, journaltest.Sync} {
		t.Run(string(kind), func(t *testing.T) {
			w := newWorld(t, 1)
			if err := w.open(); err != nil {
				t.Fatal(err)
			}
			if err := w.commit(1); err != nil {
				t.Fatal(err)
			}
			cause := fmt.Errorf("the disk is on fire")
			fired := false
			w.fs.Hook(func(c journaltest.Call) error {
				if c.Kind == kind && !fired {
					fired = true
					return cause
				}
				return nil
			})
			first := w.commit(1)
			for first == nil { // a seal may have met the fault, or may still
				first = w.commit(1)
			}
			if !errors.Is(first, journal.ErrFailed) || !errors.Is(first, cause) {
				t.Fatalf("got %v", first)
			}
			if err := w.j.Commit(ops(99, w.rng)); err.Error() != first.Error() || !errors.Is(err, journal.ErrFailed) {
				t.Fatalf("later commit: %v", err)
			}
			if err := w.j.Release(1); !errors.Is(err, journal.ErrFailed) {
				t.Fatalf("release: %v", err)
			}
			<-w.j.Failed()
			if err := w.j.Close(); !errors.Is(err, journal.ErrFailed) {
				t.Fatalf("close: %v", err)
			}
			w.fs.Hook(nil)
			w.mustWork(w.fs)
			if err := w.j.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

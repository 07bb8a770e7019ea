package wal_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// faulty returns options of a small store, whose journal begins and releases
// segments all the time.
func faulty(fs *journaltest.FS) wal.Options {
	opts := small()
	opts.FS, opts.SegmentSize, opts.CheckpointBytes = fs, 8<<10, 3<<10
	return opts
}

// tally is what a run tried and what was acknowledged. What is found later is
// checked against it.
type tally struct {
	appended, tried uint64 // last index acknowledged, and last one tried
	set, setTried   uint64 // the same of a counter in the log's small state
}

// run writes n times, or until an error.
func (a *tally) run(l *wal.Log, n int) error {
	for range n {
		if a.tried%5 == 4 {
			a.setTried = a.set + 1
			if err := l.SetMeta(wal.Meta{Name: "n", Value: binary.BigEndian.AppendUint64(nil, a.setTried)}); err != nil {
				return err
			}
			a.set = a.setTried
		}
		a.tried = a.appended + 1
		if err := l.Append(numbered(a.tried)); err != nil {
			return err
		}
		a.appended = a.tried
	}
	return nil
}

// numbered returns the entry with an index in the tests of faults and crashes.
func numbered(index uint64) wal.Entry {
	return wal.Entry{Index: index, Term: 1, Data: batch(index, 1, fmt.Sprintf("%0300d", index))}
}

// check compares what the log holds with what was acknowledged and tried, and
// continues from there.
func (a *tally) check(l *wal.Log) error {
	last := l.LastIndex()
	if last < a.appended || last > a.tried {
		return fmt.Errorf("log ends at %d: %d was acknowledged and %d tried", last, a.appended, a.tried)
	}
	set := uint64(0)
	if v := l.Meta("n"); v != nil {
		set = binary.BigEndian.Uint64(v)
	}
	if set < a.set || set > a.setTried {
		return fmt.Errorf("counter is %d: %d was acknowledged and %d tried", set, a.set, a.setTried)
	}
	next := uint64(1)
	for e, err := range l.Entries(1, last) {
		if err == nil && !sameEntry(e, numbered(next)) {
			err = fmt.Errorf("entry %d is another one", next)
		}
		if err != nil {
			return err
		}
		next++
	}
	if r := wal.VerifyLog(l, wal.Base{}); r.Err != nil || r.LastTxid != last {
		return fmt.Errorf("verify: %+v", r)
	}
	*a = tally{appended: last, tried: last, set: set, setTried: set}
	return nil
}

// TestEveryJournalFaultLatches fails each operation of the journal in turn, and
// then lets the process die or the power fail.
func TestEveryJournalFaultLatches(t *testing.T) {
	t.Parallel()
	const writes = 25
	r := chance(t)
	outcomes := []journaltest.Outcome{journaltest.Lost, journaltest.Kept, journaltest.Torn}
	for k, fired := 1, true; fired; k += 1 + r.IntN(6) {
		fs := journaltest.New(r.Uint64())
		dir := filepath.Join(t.TempDir(), "data")
		s, err := wal.Open(dir, faulty(fs))
		if err != nil {
			t.Fatal(err)
		}
		var acked tally
		fault := journaltest.Fault{At: fs.Ops() + k, Outcome: outcomes[r.IntN(3)], Crash: r.IntN(2) == 0}
		fs.Fail(fault)
		err = acked.run(s.Log(0), writes)
		fired = fs.Ops() >= fault.At
		if err != nil || s.Failed() != nil {
			mustBeLatched(t, s, err)
		} else if fired && acked.run(s.Log(0), 1) == nil && fs.Crashed() {
			t.Fatalf("fault %+v: a write was acknowledged after the crash", fault)
		}
		if err := s.Close(); err == nil && s.Failed() != nil {
			t.Fatalf("fault %+v: closed without a word", fault)
		}
		after := fs.Kill()
		if r.IntN(2) == 0 {
			after = fs.PowerCut()
		}
		s, err = wal.Open(dir, faulty(after))
		if err != nil {
			t.Fatalf("fault %+v: %v", fault, err)
		}
		if err := acked.check(s.Log(0)); err != nil {
			t.Fatalf("fault %+v: %v", fault, err)
		}
		if err := errors.Join(acked.run(s.Log(0), 3), acked.check(s.Log(0)), s.Close()); err != nil {
			t.Fatalf("fault %+v, going on: %v", fault, err)
		}
	}
}

// mustBeLatched checks that nothing more is written; err is that of the failed
// write.
func mustBeLatched(t *testing.T, s *wal.Store, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, wal.ErrFailed) {
		t.Fatalf("the write that failed says %v", err)
	}
	<-s.Failure()
	if !errors.Is(s.Failed(), wal.ErrFailed) {
		t.Fatalf("failed with %v", s.Failed())
	}
	l := s.Log(0)
	for _, err := range []error{
		l.Append(numbered(l.LastIndex() + 1)), s.Log(1).Append(numbered(1)),
		l.SetMeta(wal.Meta{Name: "x", Value: []byte("y")}), l.Void(1),
	} {
		if !errors.Is(err, wal.ErrFailed) {
			t.Fatalf("a write after the failure: %v", err)
		}
	}
}

// TestFullDiskIsSaidAndSurvived takes all space from the journal: writes that
// need some fail, and no others, until there is space again.
func TestFullDiskIsSaidAndSurvived(t *testing.T) {
	t.Parallel()
	fs := journaltest.New(1)
	dir := filepath.Join(t.TempDir(), "data")
	s, err := wal.Open(dir, faulty(fs))
	if err != nil {
		t.Fatal(err)
	}
	var full atomic.Bool
	fs.Hook(func(c journaltest.Call) error {
		if full.Load() && (c.Kind == journaltest.Create || c.Kind == journaltest.Allocate) {
			return syscall.ENOSPC
		}
		return nil
	})
	var acked tally
	for range 3 {
		if err := acked.run(s.Log(0), 10); err != nil {
			t.Fatal(err)
		}
		full.Store(true)
		err := acked.run(s.Log(0), 1_000)
		if !errors.Is(err, wal.ErrNoSpace) || errors.Is(err, wal.ErrFailed) || s.Failed() != nil {
			t.Fatalf("on a full disk: %v, failed %v", err, s.Failed())
		}
		acked.tried, acked.setTried = acked.appended, acked.set
		full.Store(false)
	}
	if err := errors.Join(acked.run(s.Log(0), 10), acked.check(s.Log(0)), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, faulty(fs.Kill()))
	if err := acked.check(s.Log(0)); err != nil {
		t.Fatal(err)
	}
}

// A leader learns that there is no space while entries are on their way. Their
// failure would end its leadership, so the journal takes them.
func TestEntriesOnTheirWayAreTaken(t *testing.T) {
	t.Parallel()
	var free atomic.Int64
	free.Store(1 << 40)
	opts := small()
	opts.FreeSpace = func(string) (int64, error) { return free.Load(), nil }
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, dir, opts)
	var acked tally
	if err := acked.run(s.Log(0), 10); err != nil {
		t.Fatal(err)
	}
	free.Store(1 << 20)
	if s.CheckRoom(); !s.Tight() {
		t.Fatal("there is no room, and the store is not tight")
	}
	if err := acked.run(s.Log(0), 10); err != nil {
		t.Fatal(err)
	}
	free.Store(1 << 40)
	if s.CheckRoom(); s.Tight() {
		t.Fatal("there is room, and the store is tight")
	}
	if err := acked.check(s.Log(0)); err != nil {
		t.Fatal(err)
	}
}

// TestCloseAsSpaceComesBack frees space just before a store is closed that had
// none to store its entries: it may store the newer ones only after the older
// ones, or leave all of them to the next start.
func TestCloseAsSpaceComesBack(t *testing.T) {
	t.Parallel()
	var free atomic.Int64
	free.Store(1 << 40)
	opts := small()
	opts.SegmentSize = 4 << 20 // the journal has space
	opts.FreeSpace = func(string) (int64, error) { return free.Load(), nil }
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, dir, opts)
	l := s.Log(0)
	free.Store(0)
	appendMany(t, l, 400, 600)
	testkit.Until(t, "the entries wait for space", s.Tight)
	appendMany(t, l, 50, 600)
	last := l.LastIndex()
	free.Store(1 << 40)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, opts)
	if r := wal.VerifyLog(s.Log(0), wal.Base{}); r.Err != nil || r.LastTxid != last {
		t.Fatalf("after a restart, with %d entries: %+v", last, r)
	}
}

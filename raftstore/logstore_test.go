package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

var errBroken = errors.New("the disk is broken")

func openLog(t *testing.T, dir string, opts wal.Options) *wal.Log {
	t.Helper()
	opts.Identity = wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}
	s, err := wal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Log(0)
}

func TestLogStoreRoundTrip(t *testing.T) {
	s := &logStore{truncating: make(chan struct{}, 1), log: openLog(t, t.TempDir(), wal.Options{})}
	want := []*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("c"), AppendedAt: time.Unix(5, 6)},
		{Index: 2, Term: 1, Type: raft.LogNoop},
		{Index: 3, Term: 2, Type: raft.LogCommand, Data: []byte("d"), Extensions: []byte("e")},
	}
	if err := s.StoreLogs(want[:2]); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLog(want[2]); err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		var got raft.Log
		if err := s.GetLog(w.Index, &got); err != nil {
			t.Fatal(err)
		}
		if got.Index != w.Index || got.Term != w.Term || got.Type != w.Type || !bytes.Equal(got.Data, w.Data) ||
			!bytes.Equal(got.Extensions, w.Extensions) || !got.AppendedAt.Equal(w.AppendedAt) {
			t.Errorf("got %+v, want %+v", got, *w)
		}
	}
	var l raft.Log
	for _, index := range []uint64{0, 4, 1 << 60} {
		//nolint:errorlint // raft compares
		if err := s.GetLog(index, &l); err != raft.ErrLogNotFound {
			t.Errorf("entry %d: got %v, want exactly raft.ErrLogNotFound", index, err)
		}
	}
	if err := s.DeleteRange(1, 2); err == nil {
		t.Error("the head was deleted")
	}
	if err := s.DeleteRange(2, 3); err != nil {
		t.Error(err)
	}
	if last, _ := s.LastIndex(); last != 3 { // the entries stay until others replace them
		t.Errorf("the last index is %d", last)
	}
	if err := s.StoreLog(&raft.Log{Index: 2, Term: 9}); err != nil {
		t.Error(err)
	}
	if last, _ := s.LastIndex(); last != 2 {
		t.Errorf("the last index is %d", last)
	}
	if err := s.GetLog(2, &l); err != nil || l.Term != 9 {
		t.Errorf("got %+v, %v", l, err)
	}
}

// A conflicting suffix that holds a configuration must not outlast the return
// of Raft to the configuration before it.
func TestAConfigurationIsRemovedAtOnce(t *testing.T) {
	s := &logStore{truncating: make(chan struct{}, 1), log: openLog(t, t.TempDir(), wal.Options{})}
	for _, l := range []raft.Log{{Index: 1}, {Index: 2}, {Index: 3, Type: raft.LogConfiguration}, {Index: 4}} {
		l.Term = 1
		if err := s.StoreLog(&l); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ from, to, last uint64 }{{4, 4, 4}, {2, 4, 1}} {
		if err := s.DeleteRange(c.from, c.to); err != nil {
			t.Fatal(err)
		}
		if last, _ := s.LastIndex(); last != c.last {
			t.Errorf("entries from %d on are replaced: the last is %d, want %d", c.from, last, c.last)
		}
	}
	if err := s.StoreLog(&raft.Log{Index: 2, Term: 2}); err != nil {
		t.Error(err)
	}
}

func TestStableStore(t *testing.T) {
	s := &logStore{truncating: make(chan struct{}, 1), log: openLog(t, t.TempDir(), wal.Options{})}
	if v, err := s.Get([]byte("k")); err != nil || len(v) != 0 {
		t.Fatalf("a key that was never set: %q, %v", v, err)
	}
	if n, err := s.GetUint64([]byte("k")); err != nil || n != 0 {
		t.Fatalf("a number that was never set: %d, %v", n, err)
	}
	value := []byte("v")
	if err := s.Set([]byte("k"), value); err != nil {
		t.Fatal(err)
	}
	value[0] = 'x' // the caller may reuse it
	if v, _ := s.Get([]byte("k")); string(v) != "v" {
		t.Fatalf("got %q", v)
	}
	if err := s.SetUint64([]byte("n"), 7); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.GetUint64([]byte("n")); n != 7 {
		t.Fatalf("got %d", n)
	}
}

func TestOutcomes(t *testing.T) {
	for _, c := range []struct{ raft, want error }{
		{nil, nil},
		{raft.ErrNotLeader, ErrNotLeader},
		{raft.ErrEnqueueTimeout, ErrNotLeader},
		{raft.ErrLeadershipTransferInProgress, ErrNotLeader},
		{fmt.Errorf("wrapped: %w", raft.ErrNotLeader), ErrNotLeader},
		{raft.ErrLeadershipLost, ErrUnknown},
		{raft.ErrRaftShutdown, ErrUnknown},
		{raft.ErrAbortedByRestore, ErrUnknown},
		{wal.ErrFailed, ErrUnknown},
		{wal.ErrNoSpace, wal.ErrNoSpace},
		{io.ErrUnexpectedEOF, ErrUnknown},
	} {
		got := proposalError(c.raft)
		if !errors.Is(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%v: got %v, want %v", c.raft, got, c.want)
		}
		if c.raft != nil && !errors.Is(got, c.raft) {
			t.Errorf("%v: the cause is lost in %v", c.raft, got)
		}
		if errors.Is(got, ErrNotLeader) && errors.Is(got, ErrUnknown) {
			t.Errorf("%v: %v is both ErrNotLeader and ErrUnknown", c.raft, got)
		}
	}
}

// echo is an FSM whose results are the data of the entries.
type echo struct{}

func (echo) Apply(entries []Committed) []any {
	results := make([]any, len(entries))
	for i, e := range entries {
		results[i] = string(e.Data)
	}
	return results
}
func (echo) Snapshot() Snapshot   { return Snapshot{State: []byte{}} }
func (echo) Restore([]byte) error { return nil }

func leading(t *testing.T, log *wal.Log) *Group {
	t.Helper()
	g, err := Open(Options{Node: "n1", Voters: []string{"n1"}, Log: log, FSM: echo{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	testkit.Until(t, "the replica leads", g.Leading)
	if err := g.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g
}

// A group whose store has failed is unusable, but must not end the process:
// raft panics if it can't store its term.
func TestAFailedStoreDoesNotPanic(t *testing.T) {
	dir := t.TempDir()
	fs := journaltest.NewGate()
	log := openLog(t, dir, wal.Options{FS: fs})
	g := leading(t, log)
	if _, err := g.Propose([]byte("kept")).Wait(); err != nil {
		t.Fatal(err)
	}
	term := g.Status().Term
	fs.Fail(errBroken)
	var ps []Proposal
	for range 100 {
		ps = append(ps, g.Propose([]byte("lost")))
	}
	for _, p := range ps {
		if _, err := p.Wait(); !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotLeader) {
			t.Fatalf("got %v", err)
		}
	}
	// The replica starts an election. Its term increases in memory only, and it
	// is not elected by its own vote.
	testkit.Until(t, "an election", func() bool {
		select {
		case led := <-g.Leadership():
			if led {
				t.Fatal("the replica leads again although its store has failed")
			}
		default:
		}
		return g.Status().Term != term
	})
	if err := g.Barrier(t.Context()); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("barrier: %v", err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

// Once there is room again, a term that could not be stored on the full disk is
// stored before anything else.
func TestAPendingTermIsStoredFirst(t *testing.T) {
	testkit.Violates(t, invariant.TermPending)
	fs := journaltest.NewGate()
	s := &logStore{truncating: make(chan struct{}, 1), log: openLog(t, t.TempDir(), wal.Options{FS: fs, SegmentSize: 1 << 16})}
	if err := s.SetUint64([]byte(keyTerm), 1); err != nil {
		t.Fatal(err)
	}
	fs.Fill(true)
	large := make([]byte, 4<<10)
	index := uint64(0)
	for {
		if index > 1000 {
			t.Fatal("the disk does not fill")
		}
		err := s.StoreLog(&raft.Log{Index: index + 1, Term: 1, Data: large})
		if errors.Is(err, wal.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		index++
	}
	testkit.Until(t, "there is no room even for a term", func() bool { return s.SetUint64([]byte("CurrentTime"), 1) != nil })
	if err := s.SetUint64([]byte(keyTerm), 2); err != nil {
		t.Fatalf("raft would panic: %v", err)
	}
	if n, _ := s.GetUint64([]byte(keyTerm)); n != 1 {
		t.Fatalf("the term is %d: the disk is not full enough for this test", n)
	}
	if err := s.SetUint64([]byte("LastVoteTerm"), 2); !errors.Is(err, wal.ErrNoSpace) {
		t.Fatalf("a vote in a term that is not stored: %v", err)
	}
	s.standalone = true // a vote for itself has no effect, since the entry that begins its term can't be stored either
	if err := errors.Join(s.SetUint64([]byte("LastVoteTerm"), 2), s.Set([]byte("LastVoteCand"), []byte("n1"))); err != nil {
		t.Fatalf("the only voter's vote: %v", err)
	}
	if err := s.StoreLog(&raft.Log{Index: index + 1, Term: 2}); !errors.Is(err, wal.ErrNoSpace) {
		t.Fatalf("an entry of a term that is not stored: %v", err)
	}
	fs.Fill(false)
	if err := s.StoreLog(&raft.Log{Index: index + 1, Term: 2}); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.GetUint64([]byte(keyTerm)); n != 2 {
		t.Fatalf("the term is %d, and an entry of term 2 is stored", n)
	}
}

func TestAForeignSinkIsRefused(t *testing.T) {
	err := fsmSnapshot{}.Persist(&raft.InmemSnapshotSink{})
	if !errors.Is(err, errForeignSink) {
		t.Fatalf("got %v", err)
	}
}

func TestACancelledSnapshotIsNotStored(t *testing.T) {
	log := openLog(t, t.TempDir(), wal.Options{})
	m := snapshotStore{log}
	sink, err := m.Create(raft.SnapshotVersionMax, 5, 2, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sink.Cancel(), sink.Close()); err != nil {
		t.Fatal(err)
	}
	if list, err := m.List(); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
}

// A replica halts itself rather than remove committed entries, or replace its
// term or vote by an older one. It then stores nothing more.
func TestStoredStateNeverRegresses(t *testing.T) {
	testkit.Violates(t, invariant.TermRises, invariant.VoteTermRises, invariant.CommittedKept)
	open := func(t *testing.T) (*logStore, chan error) {
		halted := make(chan error, 1)
		s := &logStore{truncating: make(chan struct{}, 1), log: openLog(t, t.TempDir(), wal.Options{}), halt: &halt{haltedItself: func(err error) { halted <- err }}}
		for i := range uint64(5) {
			if err := s.StoreLog(&raft.Log{Index: i + 1, Term: 1}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.SetUint64([]byte(keyTerm), 7), s.SetUint64([]byte("LastVoteTerm"), 7),
			s.log.SetMeta(wal.Meta{Name: metaSnapshot, Value: []byte(`{"index":3,"term":1}`)})); err != nil {
			t.Fatal(err)
		}
		return s, halted
	}
	for what, c := range map[string]struct {
		do   func(*logStore) error
		want error
	}{
		"the snapshot's entry": {func(s *logStore) error { return s.DeleteRange(3, 5) }, ErrCommittedCut},
		"all entries":          {func(s *logStore) error { return s.DeleteRange(1, 5) }, ErrCommittedCut},
		"the vote":             {func(s *logStore) error { return s.SetUint64([]byte("LastVoteTerm"), 6) }, ErrTermBack},
		"the term": {func(s *logStore) error { // raft would panic on an error
			if err := s.SetUint64([]byte(keyTerm), 6); err != nil {
				t.Errorf("the term: raft would panic for %v", err)
			}
			return s.halt.err()
		}, ErrTermBack},
	} {
		t.Run(what, func(t *testing.T) {
			s, halted := open(t)
			if err := errors.Join(s.SetUint64([]byte(keyTerm), 7), s.SetUint64([]byte("LastVoteTerm"), 7), s.DeleteRange(4, 5)); err != nil {
				t.Fatalf("an allowed change: %v", err)
			}
			if err := c.do(s); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err := <-halted; !errors.Is(err, c.want) {
				t.Errorf("haltedItself is called with %v, want %v", err, c.want)
			}
			for _, err := range []error{s.StoreLog(&raft.Log{Index: 4, Term: 2}), s.SetUint64([]byte("LastVoteTerm"), 9), s.Set([]byte("LastVoteCand"), []byte("n2"))} {
				if !errors.Is(err, ErrHalted) {
					t.Errorf("a change after the halt: %v", err)
				}
			}
			if term, err := s.GetUint64([]byte(keyTerm)); err != nil || term != 7 {
				t.Errorf("the term is %d, %v", term, err)
			}
			if last := s.log.LastIndex(); last != 5 {
				t.Errorf("the log ends at %d", last)
			}
		})
	}
}

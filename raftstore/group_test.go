package raftstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is an FSM that records the applied entries.
type machine struct {
	mu       sync.Mutex
	applied  []string
	snapshot int           // the number of entries that the last snapshot covers
	restored int           // the number of entries that the restored snapshot covers
	forget   bool          // record nothing
	hold     chan struct{} // if not nil, Apply waits until it is closed
	held     chan struct{} // receives a value when Apply waits
}

func (m *machine) Apply(entries []raftstore.Committed) []any {
	if m.hold != nil {
		select {
		case m.held <- struct{}{}:
		default:
		}
		<-m.hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	results := make([]any, len(entries))
	for i, e := range entries {
		if m.forget {
			continue
		}
		m.applied = append(m.applied, string(e.Data))
		results[i] = len(m.applied)
	}
	return results
}

func (m *machine) Snapshot() raftstore.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshot = len(m.applied)
	state := binary.BigEndian.AppendUint64(nil, uint64(len(m.applied)))
	return raftstore.Snapshot{State: state, Metas: []wal.Meta{{Name: "count", Value: state}}}
}

func (m *machine) Restore(state []byte) error {
	if len(state) != 8 {
		return fmt.Errorf("state has %d bytes", len(state))
	}
	m.restored = int(binary.BigEndian.Uint64(state))
	m.applied = make([]string, m.restored)
	return nil
}

// covered returns the number of entries that the last snapshot covers.
func (m *machine) covered() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snapshot
}

func (m *machine) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.applied)
}

func openStore(t *testing.T, dir string, opts wal.Options) *wal.Store {
	t.Helper()
	opts.Identity = wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}
	s, err := wal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// openGroup starts a group and waits until it leads.
func openGroup(t *testing.T, s *wal.Store, fsm raftstore.FSM) *raftstore.Group {
	t.Helper()
	g, err := raftstore.Open(raftstore.Options{Node: "n1", Voters: []string{"n1"}, Log: s.Log(0), FSM: fsm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	lead(t, g)
	return g
}

func lead(t *testing.T, g *raftstore.Group) {
	t.Helper()
	for led := g.Leading(); !led; {
		select {
		case led = <-g.Leadership():
		case <-time.After(testkit.Patience):
			t.Fatal("no leader")
		}
	}
	if err := g.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func propose(t *testing.T, g *raftstore.Group, data string) int {
	t.Helper()
	result, err := g.Propose([]byte(data)).Wait()
	if err != nil {
		t.Fatalf("propose %q: %v", data, err)
	}
	return result.(int)
}

func TestProposalsAreAppliedInOrderWithTheirResults(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	fsm := &machine{}
	g := openGroup(t, s, fsm)
	var ps []raftstore.Proposal
	var want []string
	for i := range 100 {
		ps = append(ps, g.Propose(fmt.Append(nil, i)))
		want = append(want, fmt.Sprint(i))
	}
	for i, p := range ps {
		if n, err := p.Wait(); err != nil || n != i+1 {
			t.Fatalf("proposal %d: %v, %v", i, n, err)
		}
	}
	if got := fsm.all(); !slices.Equal(got, want) {
		t.Fatalf("applied %v", got)
	}
	if err := g.VerifyLeader(t.Context(), g.Term()); err != nil {
		t.Fatal(err)
	}
	st := g.Status()
	if st.Leader != "n1" || st.State != "leader" || st.Term == 0 || len(st.Replicas) != 1 || !st.Replicas[0].Voter || st.Replicas[0].Name != "n1" {
		t.Fatalf("status %+v", st)
	}
}

func TestRestartWithoutASnapshotReplaysAll(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, wal.Options{})
	g := openGroup(t, s, &machine{})
	for i := range 10 {
		propose(t, g, fmt.Sprint(i))
	}
	term := g.Status().Term
	closeAll(t, g, s)

	s = openStore(t, dir, wal.Options{})
	fsm := &machine{}
	g = openGroup(t, s, fsm)
	if fsm.restored != 0 || len(fsm.all()) != 10 || fsm.all()[9] != "9" {
		t.Fatalf("restored %d, applied %v", fsm.restored, fsm.all())
	}
	if now := g.Status().Term; now <= term {
		t.Fatalf("term %d after %d: a term must not be used twice", now, term)
	}
}

func TestRestartWithASnapshotReplaysTheRest(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, wal.Options{})
	g := openGroup(t, s, &machine{})
	for i := range 10 {
		propose(t, g, fmt.Sprint(i))
	}
	for range 2 { // the second has nothing new
		if err := g.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Log(0).Meta("count"); len(got) != 8 || got[7] != 10 {
		t.Fatalf("the snapshot's metas: count is %v", got)
	}
	propose(t, g, "after")
	closeAll(t, g, s)

	s = openStore(t, dir, wal.Options{})
	if first := s.Log(0).FirstIndex(); first != 1 {
		t.Fatalf("the log begins at %d: raft must not trim it", first)
	}
	fsm := &machine{}
	g = openGroup(t, s, fsm)
	if fsm.restored != 10 || len(fsm.all()) != 11 || fsm.all()[10] != "after" {
		t.Fatalf("restored %d, applied %v", fsm.restored, fsm.all())
	}
	if n := propose(t, g, "more"); n != 12 {
		t.Fatalf("result %d", n)
	}
}

func TestSnapshotsDuringProposalsLoseNothing(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, wal.Options{})
	fsm := &machine{}
	g := openGroup(t, s, fsm)
	var snapshots sync.WaitGroup
	stop := make(chan struct{})
	snapshots.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := g.Snapshot(); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 200 {
		propose(t, g, fmt.Sprint(i))
	}
	close(stop)
	snapshots.Wait()
	covered := fsm.snapshot
	closeAll(t, g, s)

	s = openStore(t, dir, wal.Options{})
	again := &machine{}
	openGroup(t, s, again)
	if again.restored != covered || len(again.all()) != 200 {
		t.Fatalf("restored %d entries of a snapshot of %d, %d in the end", again.restored, covered, len(again.all()))
	}
	for i, data := range again.all()[covered:] {
		if data != fmt.Sprint(covered+i) {
			t.Fatalf("entry %d after the snapshot is %q", i, data)
		}
	}
}

func TestOpenWithADamagedSnapshot(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	g := openGroup(t, s, &machine{})
	propose(t, g, "x")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Log(0).SetMeta(wal.Meta{Name: "marker", Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	g, err := raftstore.Open(raftstore.Options{Node: "n1", Voters: []string{"n1"}, Log: s.Log(0), FSM: &machine{}})
	if err == nil {
		_ = g.Close()
	}
	if !errors.Is(err, wal.ErrDamaged) {
		t.Fatalf("got %v, want ErrDamaged", err)
	}
}

func TestBadOptions(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	if g, err := raftstore.Open(raftstore.Options{Log: s.Log(0), FSM: &machine{}}); err == nil {
		_ = g.Close()
		t.Fatal("a replica without a name was opened")
	}
}

func TestAfterClose(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	g := openGroup(t, s, &machine{})
	for range 2 {
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := g.Propose([]byte("x")).Wait()
	for what, err := range map[string]error{
		"propose": err, "barrier": g.Barrier(t.Context()), "verify": g.VerifyLeader(t.Context(), g.Term()), "snapshot": g.Snapshot(),
	} {
		if !errors.Is(err, raftstore.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", what, err)
		}
	}
	if st := g.Status(); st.State != "shutdown" || g.Leading() {
		t.Errorf("status %+v", st)
	}
}

// Proposals that raft has not handled when the group is closed still get an
// outcome.
func TestCloseDuringProposalsLeavesNoneWaiting(t *testing.T) {
	for range 5 {
		s := openStore(t, t.TempDir(), wal.Options{})
		fsm := &machine{}
		g := openGroup(t, s, fsm)
		ps := make(chan raftstore.Proposal, 1000)
		var done sync.WaitGroup
		done.Go(func() {
			defer close(ps)
			for range cap(ps) {
				ps <- g.Propose([]byte("x"))
			}
		})
		first := <-ps
		closed := make(chan error, 1)
		go func() { closed <- g.Close() }()
		acked, refused := 0, 0
		for p := first; ; {
			switch _, err := p.Wait(); {
			case err == nil:
				acked++
			case errors.Is(err, raftstore.ErrClosed):
				refused++
			default:
				t.Fatalf("%v", err)
			}
			var more bool
			if p, more = <-ps; !more {
				break
			}
		}
		done.Wait()
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if n := len(fsm.all()); n != acked || acked+refused != 1000 {
			t.Fatalf("%d acknowledged, %d refused, %d applied", acked, refused, n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBarrierWithACancelledContext(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	fsm := &machine{}
	g := openGroup(t, s, fsm)
	fsm.held, fsm.hold = make(chan struct{}, 1), make(chan struct{})
	p := g.Propose([]byte("x"))
	<-fsm.held // the FSM blocks, and so does the barrier
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- g.Barrier(ctx) }()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(fsm.hold)
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := g.Barrier(t.Context()); err != nil { // the group still works
		t.Fatal(err)
	}
}

func closeAll(t *testing.T, g *raftstore.Group, s *wal.Store) {
	t.Helper()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A standalone replica does not wait for its timeouts, however long they are.
func TestAStandaloneReplicaLeadsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // when it bootstraps the group, and when the group exists
		s := openStore(t, dir, wal.Options{})
		g, err := raftstore.Open(raftstore.Options{
			Node: "n1", Voters: []string{"n1"}, Log: s.Log(0), FSM: &machine{},
			HeartbeatTimeout: time.Hour, ElectionTimeout: time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for led := g.Leading(); !led; {
			select {
			case led = <-g.Leadership():
			case <-ctx.Done():
				t.Fatal("no leader")
			}
		}
		propose(t, g, "x")
		if err := errors.Join(g.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// spoiled is a machine that can't restore its own state.
type spoiled struct{ machine }

var errSpoiled = errors.New("the state has spoiled")

func (*spoiled) Restore([]byte) error { return errSpoiled }

// The error for a state that can't be restored contains the FSM's error.
func TestAFailedRestoreReturnsTheReason(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	g := openGroup(t, s, &machine{})
	propose(t, g, "a")
	if err := errors.Join(g.Snapshot(), g.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := raftstore.Open(raftstore.Options{Node: "n1", Voters: []string{"n1"}, Log: s.Log(0), FSM: &spoiled{}})
	if !errors.Is(err, errSpoiled) || strings.Contains(err.Error(), "failed to load") {
		t.Errorf("%v", err)
	}
}

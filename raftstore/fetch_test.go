package raftstore_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// putMany puts count entries of about size bytes, numbered from from on, and
// returns them.
func (c *cluster) putMany(from, count, size int) (all []string) {
	c.t.Helper()
	for i := range count {
		all = append(all, fmt.Sprint(from+i, " ", strings.Repeat("x", size)))
	}
	c.putAll(all)
	return all
}

// putAll puts entries, 16 at a time. If one fails, putAll puts it and those
// after it again, in order.
func (c *cluster) putAll(all []string) {
	c.t.Helper()
	for batch := range slices.Chunk(all, 16) {
		leader := c.leader().group
		var ps []raftstore.Proposal
		for _, data := range batch {
			ps = append(ps, leader.Propose([]byte(data)))
		}
		failed := false
		for i, p := range ps {
			_, err := p.Wait()
			if c.mayFail(err); err != nil || failed {
				failed = true
				c.put(batch[i])
			}
		}
	}
}

// trimAll takes a snapshot on each node and trims its log as far as possible.
func trimAll(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		trim(t, n, n.group.Status().LastIndex)
	}
}

func trim(t *testing.T, n *node, through uint64) {
	t.Helper()
	until(t, n.name+" has a snapshot", func() bool { return n.group.Snapshot() == nil })
	if err := n.group.Trim(through); err != nil {
		t.Fatal(err)
	}
}

// sameLog checks that two logs have the same first index and the same entries,
// up to the end of the shorter one.
func sameLog(t *testing.T, a, b *wal.Log) {
	t.Helper()
	if a.FirstIndex() != b.FirstIndex() {
		t.Fatalf("one log begins at %d, the other at %d", a.FirstIndex(), b.FirstIndex())
	}
	for i := a.FirstIndex(); i <= min(a.LastIndex(), b.LastIndex()); i++ {
		x, errX := a.Entry(i)
		y, errY := b.Entry(i)
		if err := errors.Join(errX, errY); err != nil {
			t.Fatal(err)
		}
		if x.Term != y.Term || x.Type != y.Type || string(x.Data) != string(y.Data) ||
			string(x.Extensions) != string(y.Extensions) || x.AppendedAt != y.AppendedAt {
			t.Fatalf("entry %d differs", i)
		}
	}
}

// solo returns a cluster of n1, whose log is trimmed, and n2, which has none.
func solo(t *testing.T, entries, size int) (c *cluster, want []string) {
	c = newCluster(t, "n1", "n2")
	c.nodes["n1"].open("n1")
	want = c.putMany(0, entries, size)
	trim(t, c.nodes["n1"], uint64(entries/2))
	return c, want
}

func TestANewReplicaFetchesATrimmedLog(t *testing.T) {
	t.Parallel()
	c, want := solo(t, 100, 1000)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	if err := n1.log().Void(60); err != nil {
		t.Fatal(err)
	}
	if err := raftstore.Fetch(timeout(t), n2.network, theGroup, "n1", n2.log()); err != nil {
		t.Fatal(err)
	}
	if n2.log().LastIndex() != n1.log().LastIndex() || n2.log().FirstIndex() != 51 {
		t.Fatalf("fetched %d to %d, there is %d to %d", n2.log().FirstIndex(), n2.log().LastIndex(), n1.log().FirstIndex(), n1.log().LastIndex())
	}
	sameLog(t, n1.log(), n2.log())
	if got := n2.log().Voids(); !slices.Equal(got, []uint64{60}) {
		t.Fatalf("voids %v", got)
	}
	if string(n2.log().Meta("count")) != string(n1.log().Meta("count")) {
		t.Fatal("the FSM's metas were not fetched")
	}
	n2.open()
	for _, add := range []func() error{
		func() error { return n1.group.AddReplica(timeout(t), "n2") },
		func() error { return n1.group.Promote(timeout(t), "n2") },
	} {
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	ends(t, c.putMany(len(want), 10, 10), n2)
	if n2.fsm.restored != len(want) {
		t.Fatalf("restored %d", n2.fsm.restored)
	}
	select {
	case <-n2.group.Behind():
		t.Fatal("the replica is behind after the fetch")
	default:
	}
}

// A fence is of one replica: a fetch neither copies it nor deletes one that is
// there, and a reset deletes it with the log.
func TestAFenceIsNotFetched(t *testing.T) {
	t.Parallel()
	c, _ := solo(t, 20, 100)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	theirs, ours := raftstore.FencePrefix+"/theirs", raftstore.FencePrefix+"/ours"
	err := errors.Join(
		n1.log().SetMeta(wal.Meta{Name: theirs, Value: []byte("a")}),
		n2.log().SetMeta(wal.Meta{Name: ours, Value: []byte("b")}),
		raftstore.Fetch(timeout(t), n2.network, theGroup, "n1", n2.log()),
	)
	if err != nil {
		t.Fatal(err)
	}
	if n2.log().Meta(theirs) != nil || string(n2.log().Meta(ours)) != "b" {
		t.Errorf("after a fetch: %q", n2.log().Metas(raftstore.FencePrefix))
	}
	if err := raftstore.Reset(n2.log()); err != nil {
		t.Fatal(err)
	}
	if left := n2.log().Metas(raftstore.FencePrefix); len(left) > 0 {
		t.Errorf("after a reset: %q", left)
	}
}

// A fetch ends when the disk is full, before what a store keeps free for other
// things is used up, and resumes when there is room.
func TestAFetchWaitsForRoom(t *testing.T) {
	t.Parallel()
	c, _ := solo(t, 200, 50_000)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	var free atomic.Int64
	free.Store(1 << 40)
	n2.free = func(string) (int64, error) { return free.Load(), nil }
	n2.closeStore()
	n2.openStore()
	free.Store(50 << 20)
	until(t, "the disk is full", n2.store.Tight)
	if err := raftstore.Fetch(timeout(t), n2.network, theGroup, "n1", n2.log()); !errors.Is(err, wal.ErrNoSpace) {
		t.Fatalf("a fetch on a full disk: %v", err)
	}
	if last := n2.log().LastIndex(); last != 0 {
		t.Errorf("fetched up to %d", last)
	}
	free.Store(1 << 40)
	until(t, "there is room", func() bool { return !n2.store.Tight() })
	if err := raftstore.Fetch(timeout(t), n2.network, theGroup, "n1", n2.log()); err != nil {
		t.Fatal(err)
	}
	sameLog(t, n1.log(), n2.log())
}

func TestAFetchResumesAfterBrokenConnectionsAndCrashes(t *testing.T) {
	t.Parallel()
	c, _ := solo(t, 200, 50_000)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	fetched := uint64(0)
	for failures := 0; ; failures++ {
		n1.proxy.Limit(2 << 20)
		err := raftstore.Fetch(timeout(t), n2.network, theGroup, "n1", n2.log())
		if err == nil {
			if failures < 2 {
				t.Fatalf("the fetch failed %d times: nothing was resumed", failures)
			}
			break
		}
		if !raftstore.Fetching(n2.log()) {
			t.Fatalf("after %v: Fetching is false", err)
		}
		if last := n2.log().LastIndex(); last <= fetched {
			t.Fatalf("after %v: the log ends at entry %d, before at %d", err, last, fetched)
		} else {
			fetched = last
		}
		if failures%2 == 0 { // the node restarts
			n2.closeNetwork()
			n2.closeStore()
			n2.openStore()
			n2.openNetwork()
		}
		if !raftstore.Fetching(n2.log()) || n2.log().LastIndex() != fetched {
			t.Fatalf("fetching %v, up to %d of %d", raftstore.Fetching(n2.log()), n2.log().LastIndex(), fetched)
		}
		if g, err := raftstore.Open(n2.options("n2")); !errors.Is(err, raftstore.ErrFetching) {
			if err == nil {
				_ = g.Close()
			}
			t.Fatalf("open: %v", err)
		}
	}
	n1.proxy.Limit(0)
	if raftstore.Fetching(n2.log()) {
		t.Fatal("Fetching is true after the fetch")
	}
	sameLog(t, n1.log(), n2.log())
	n2.open()
	if n2.fsm.restored != 200 {
		t.Fatalf("restored %d", n2.fsm.restored)
	}
}

// A fetch that was begun from one replica may be completed from another, whose
// snapshot is older than what has arrived.
func TestAFetchEndsWithAnOlderSnapshot(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	applied(t, c.putMany(0, 10, 10), c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	n, next := c.others(leader)[0], c.others(leader)[1]
	n.closeGroup()
	until(t, "transferred", func() bool { return leader.group.Transfer(timeout(t), next.name) == nil })
	until(t, "the entry with which the term begins is committed: no snapshot ends with it", func() bool {
		last := next.group.Status().LastIndex
		return next.group.Leading() && next.log().LastIndex() == last && leader.group.Status().CommitIndex == last && last > n.log().LastIndex()
	})
	if err := raftstore.Fetch(timeout(t), n.network, theGroup, "n4", n.log()); err == nil || !raftstore.Fetching(n.log()) {
		t.Fatalf("a fetch from a node that is not known: %v", err)
	}
	for e, err := range next.log().Entries(n.log().LastIndex()+1, next.log().LastIndex()) {
		if err == nil {
			err = n.log().Append(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := raftstore.Fetch(timeout(t), n.network, theGroup, leader.name, n.log()); err != nil {
		t.Fatal(err)
	}
	sameLog(t, next.log(), n.log())
	n.open()
}

func TestAReplicaThatIsBehindFetchesAndCatchesUp(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	want := c.putMany(0, 20, 100)
	late := c.others(leader)[0]
	applied(t, want, late)
	late.closeGroup()
	want = append(want, c.putMany(20, 200, 100)...)
	other := c.others(leader)[1]
	applied(t, want, other)
	trimAll(t, leader, other)

	late.open()
	behind := late.group.Behind()
	until(t, "the late replica is behind", func() bool {
		select {
		case <-behind:
			return true
		default:
			return false
		}
	})
	late.closeGroup()
	if err := raftstore.Fetch(timeout(t), late.network, theGroup, other.name, late.log()); err != nil {
		t.Fatal(err)
	}
	late.open()
	if n := late.fsm.restored; n < len(want) {
		t.Fatalf("restored %d", n)
	}
	ends(t, c.putMany(220, 20, 100), late, leader, other)
	sameLog(t, late.log(), other.log())
	select {
	case <-late.group.Behind():
		t.Fatal("the replica is behind after the fetch")
	default:
	}
}

func TestResetKeepsTheTermAndFetchesAnew(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	want := c.putMany(0, 50, 100)
	n := c.others(leader)[0]
	applied(t, want, n)
	n.closeGroup()
	raftMetas := n.log().Metas("raft/")
	if len(raftMetas) == 0 {
		t.Fatal("raft's term is stored under another key: the test proves nothing")
	}
	for range 2 {
		if err := raftstore.Reset(n.log()); err != nil {
			t.Fatal(err)
		}
	}
	for crash := range 2 {
		if !raftstore.Fetching(n.log()) || n.log().LastIndex() != 0 || n.log().Meta("count") != nil || n.log().Meta("marker") != nil {
			t.Fatal("the log is not reset")
		}
		for name, v := range raftMetas {
			if string(n.log().Meta(name)) != string(v) {
				t.Fatalf("%s is %q, was %q", name, n.log().Meta(name), v)
			}
		}
		if crash == 0 {
			n.closeNetwork()
			n.closeStore()
			n.openStore()
			n.openNetwork()
		}
	}
	if _, err := raftstore.Open(n.options()); !errors.Is(err, raftstore.ErrFetching) {
		t.Fatalf("open: %v", err)
	}
	if err := raftstore.Fetch(timeout(t), n.network, theGroup, leader.name, n.log()); err != nil {
		t.Fatal(err)
	}
	n.open()
	ends(t, c.putMany(50, 10, 10), n, leader)
}

// The entries that a replica has acknowledged may be committed. It must not be
// opened without them, so it must not fetch from a replica that lacks them.
func TestAFetchFromAReplicaThatLagsIsRefused(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	applied(t, c.putMany(0, 10, 10), c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	lags, n := c.others(leader)[0], c.others(leader)[1]
	c.disconnect(lags.name)
	c.putMany(10, 10, 10) // n has acknowledged these
	n.closeGroup()
	leader.closeGroup() // so that the lagging replica can't catch up
	c.reconnect(lags.name)
	if err := raftstore.Reset(n.log()); err != nil {
		t.Fatal(err)
	}
	err := raftstore.Fetch(timeout(t), n.network, theGroup, lags.name, n.log())
	if !errors.Is(err, raftstore.ErrStale) {
		t.Fatalf("fetch: %v", err)
	}
	leader.open()
	want := c.putMany(20, 1, 10)
	if err := raftstore.Fetch(timeout(t), n.network, theGroup, leader.name, n.log()); err != nil {
		t.Fatal(err)
	}
	n.open()
	ends(t, append(want, c.putMany(21, 1, 10)...)[1:], n)
}

func TestFetchErrors(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	for _, step := range []struct {
		from, want string
		before     func()
	}{
		{"n3", "node n3 is not known", func() {}},
		{"n1", "no replica of group 7 here", func() {}},
		{"n1", "no snapshot yet", func() { n1.open() }},
	} {
		step.before()
		err := raftstore.Fetch(timeout(t), n2.network, theGroup, step.from, n2.log())
		if err == nil || !strings.Contains(err.Error(), step.want) || !strings.Contains(err.Error(), "fetch group 7 from "+step.from) {
			t.Errorf("got %v, want %q", err, step.want)
		}
		if !raftstore.Fetching(n2.log()) {
			t.Error("Fetching is false after a failed fetch")
		}
	}
}

func TestTrimKeepsWhatRaftNeeds(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	if err := leader.group.Trim(1); err != nil || leader.log().FirstIndex() != 1 {
		t.Fatalf("without a snapshot: %v, the log begins at %d", err, leader.log().FirstIndex())
	}
	want := c.putMany(0, 50, 10)
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	trimAll(t, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	for _, n := range c.nodes {
		if first, last := n.log().FirstIndex(), n.log().LastIndex(); first < 50 || first > last {
			t.Fatalf("%s keeps %d to %d", n.name, first, last)
		}
		if err := n.group.Trim(3); err != nil {
			t.Fatal(err)
		}
	}
	// Each replica restarts, the leader last.
	for _, n := range append(c.others(leader), leader) {
		n.closeGroup()
		n.open()
	}
	want = c.putMany(50, 50, 10)
	for _, n := range c.nodes {
		ends(t, want, n)
		select {
		case <-n.group.Behind():
			t.Fatalf("%s is behind", n.name)
		default:
		}
	}
}

func TestEntriesAreFetched(t *testing.T) {
	t.Parallel()
	c, _ := solo(t, 100, 1000)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	fetch := func(first, last uint64) (got []wal.Entry, err error) {
		err = raftstore.FetchEntries(timeout(t), n2.network, theGroup, "n1", first, last, func(e wal.Entry) error {
			got = append(got, e)
			return nil
		})
		return got, err
	}
	got, err := fetch(60, 70)
	if err != nil || len(got) != 11 {
		t.Fatalf("%d entries: %v", len(got), err)
	}
	for i, e := range got {
		want, err := n1.log().Entry(60 + uint64(i))
		if err != nil || e.Index != want.Index || e.Term != want.Term || string(e.Data) != string(want.Data) || e.AppendedAt != want.AppendedAt {
			t.Errorf("entry %d differs: %v", want.Index, err)
		}
	}
	if n2.log().LastIndex() != 0 {
		t.Error("they were stored")
	}
	if got, err := fetch(10, 20); err == nil || len(got) > 0 {
		t.Errorf("of trimmed entries %d came: %v", len(got), err)
	}
	if _, err := fetch(90, 1_000); !errors.Is(err, wal.ErrNotFound) {
		t.Errorf("past the end: %v", err)
	}
	stop := errors.New("stop")
	if err := raftstore.FetchEntries(timeout(t), n2.network, theGroup, "n1", 60, 70, func(wal.Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
}

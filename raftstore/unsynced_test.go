package raftstore_test

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal"
)

// slowDisk is the operating system's file system, whose syncs wait while it is
// stuck.
type slowDisk struct {
	journal.FS

	mu    sync.Mutex
	stuck chan struct{} // nil while it is not
	fails bool
}

type slowFile struct {
	journal.File
	disk *slowDisk
}

func (d *slowDisk) OpenFile(name string, flag int, perm os.FileMode) (journal.File, error) {
	f, err := d.FS.OpenFile(name, flag, perm)
	return slowFile{f, d}, err
}

func (f slowFile) Sync() error {
	f.disk.mu.Lock()
	stuck := f.disk.stuck
	f.disk.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.fails {
		return errors.New("the disk is broken")
	}
	return f.File.Sync()
}

// stick has syncs wait from now on.
func (d *slowDisk) stick() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stuck = make(chan struct{})
}

// free lets them go on, or fail.
func (d *slowDisk) free(fails bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck != nil {
		d.fails = fails
		close(d.stuck)
		d.stuck = nil
	}
}

// slowLeader gives a group of three whose leader's disk is its own.
func slowLeader(t *testing.T) (*cluster, *node, *slowDisk) {
	c := newCluster(t, "n1", "n2", "n3")
	disks := map[string]*slowDisk{}
	for _, n := range c.nodes {
		disks[n.name] = &slowDisk{FS: journal.OSFS}
		if err := n.store.Close(); err != nil {
			t.Fatal(err)
		}
		n.fs, n.fails = disks[n.name], true
		n.openStore()
		n.open(c.names...)
	}
	leader := c.leader()
	t.Cleanup(func() { disks[leader.name].free(false) }) // if the test fails
	c.put("first")
	for _, n := range c.nodes {
		until(t, "they are level", func() bool { return len(n.fsm.all()) == 1 })
	}
	return c, leader, disks[leader.name]
}

// TestNothingIsCommittedThatTheLeaderHasNotSynced: followers get entries while
// the leader still writes them, and nobody takes them for committed before it
// has.
func TestNothingIsCommittedThatTheLeaderHasNotSynced(t *testing.T) {
	t.Parallel()
	c, leader, disk := slowLeader(t)
	disk.stick()
	index := leader.group.Status().LastIndex + 1
	p := leader.group.Propose([]byte("second"))
	outcome := make(chan error, 1)
	go func() { _, err := p.Wait(); outcome <- err }()
	for _, n := range c.others(leader) {
		until(t, "the followers have it", func() bool { return n.log().LastIndex() == index })
	}
	if leader.log().LastIndex() >= index {
		t.Fatal("the leader has synced it: the test does not see")
	}
	if err := leader.group.VerifyLeader(timeout(t)); err != nil { // more goes over to them
		t.Fatal(err)
	}
	// A follower would hear of a commit within some 80 ms.
	for began := time.Now(); time.Since(began) < 300*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		for _, n := range c.nodes {
			if s := n.group.Status(); s.CommitIndex >= index || len(n.fsm.all()) != 1 {
				t.Fatalf("%s takes entry %d for committed: %+v", n.name, index, s)
			}
		}
	}
	select {
	case err := <-outcome:
		t.Fatalf("it was answered: %v", err)
	default:
	}
	disk.free(false)
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		until(t, "all apply it", func() bool { return len(n.fsm.all()) == 2 })
	}
}

// TestAFailedSyncBehindTheFollowersBack: the followers have what the leader then
// fails to sync. It applies nothing more, and another leads; the entry's outcome
// is unknown to its proposer, and the others agree on it.
func TestAFailedSyncBehindTheFollowersBack(t *testing.T) {
	t.Parallel()
	c, leader, disk := slowLeader(t)
	disk.stick()
	index := leader.group.Status().LastIndex + 1
	p := leader.group.Propose([]byte("second"))
	for _, n := range c.others(leader) {
		until(t, "the followers have it", func() bool { return n.log().LastIndex() == index })
	}
	disk.free(true)
	if _, err := p.Wait(); !errors.Is(err, raftstore.ErrUnknown) {
		t.Fatalf("outcome: %v", err)
	}
	until(t, "it leads no more", func() bool { return !leader.group.Leading() })
	if _, err := leader.group.Propose([]byte("third")).Wait(); err == nil {
		t.Fatal("it went on")
	}
	if n := len(leader.fsm.all()); n != 1 {
		t.Fatalf("it applied %d entries", n)
	}
	if !errors.Is(leader.store.Failed(), wal.ErrFailed) {
		t.Fatal("its store has not failed")
	}
	leader.closeGroup()
	c.put("fourth")
	for _, n := range c.others(leader) {
		until(t, "they agree", func() bool { return len(n.fsm.all()) == 3 })
	}
}

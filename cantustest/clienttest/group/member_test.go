package group_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/group"
	"github.com/cantuslog/cantus/internal/testkit"
)

// quick is long enough for a loaded machine to renew in time.
const quick = time.Second

// members are those of a group and what they have handled.
type members struct {
	t    *testing.T
	log  *cantustest.Log
	opts group.Options

	mu      sync.Mutex
	inside  map[int]int // running handlers, by partition
	handled map[int][]uint64
	held    map[string][]int
	changed chan struct{} // closed at the next change
}

func newMembers(t *testing.T, partitions int, opts group.Options) *members {
	opts.Lease = quick
	if opts.CommitInterval == 0 {
		opts.CommitInterval = 5 * time.Millisecond
	}
	return &members{
		t: t, log: cantustest.New(t, cantustest.Options{Partitions: partitions}), opts: opts,
		inside: map[int]int{}, handled: map[int][]uint64{}, held: map[string][]int{}, changed: make(chan struct{}),
	}
}

func (c *members) change(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do()
	close(c.changed)
	c.changed = make(chan struct{})
}

// until waits until so returns true.
func (c *members) until(what string, so func() bool) {
	c.t.Helper()
	ctx := soon(c.t)
	for {
		c.mu.Lock()
		ok, changed := so(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("never: %s; held %v", what, c.held)
		}
	}
}

// handle records a call, and checks that no other runs for the partition.
func (c *members) handle(_ context.Context, tx *client.Transaction) error {
	c.change(func() {
		if c.inside[tx.Partition]++; c.inside[tx.Partition] > 1 {
			c.t.Errorf("two members handle partition %d", tx.Partition)
		}
	})
	c.change(func() {
		c.inside[tx.Partition]--
		c.handled[tx.Partition] = append(c.handled[tx.Partition], tx.Txid)
	})
	return nil
}

// join adds a member with a connection of its own. leave makes it leave, crash
// closes its connection.
func (c *members) join(name string, handle client.Handler) (leave func() error, crash func()) {
	c.t.Helper()
	nc, err := c.log.Connect()
	if err != nil {
		c.t.Fatal(err)
	}
	member, err := client.New(nc, client.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	opts := c.opts
	opts.OnChange = func(held []int) { c.change(func() { c.held[name] = held }) }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- group.Join(ctx, member, "team", handle, opts) }()
	end := sync.OnceValue(func() error {
		err := <-done
		return errors.Join(err, member.Close())
	})
	c.t.Cleanup(func() {
		cancel()
		_ = end()
	})
	return func() error { cancel(); return end() }, func() { nc.Close(); _ = end() }
}

func (c *members) fill(partition, n int) {
	c.t.Helper()
	cl := c.log.NewClient(c.t, client.Options{})
	for range n {
		if _, err := cl.Append(soon(c.t), &client.Request{Partition: partition}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// shared waits until the members hold these numbers of partitions.
func (c *members) shared(each map[string]int) {
	c.t.Helper()
	c.until(fmt.Sprint("shared as ", each), func() bool {
		all := map[int]bool{}
		for name, n := range each {
			if len(c.held[name]) != n {
				return false
			}
			for _, p := range c.held[name] {
				if all[p] {
					return false
				}
				all[p] = true
			}
		}
		return true
	})
}

// handledAll waits until all n transactions of a partition were handled, and
// checks that each member handled a sequence in order and without a gap.
func (c *members) handledAll(partition, n int) {
	c.t.Helper()
	c.until(fmt.Sprint("all of partition ", partition), func() bool {
		h := c.handled[partition]
		return len(h) > 0 && h[len(h)-1] == uint64(n)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	most := uint64(0)
	for i, txid := range c.handled[partition] {
		if txid > most+1 {
			c.t.Fatalf("partition %d: %d came when %d had been handled", partition, txid, most)
		}
		if i > 0 && txid != c.handled[partition][i-1]+1 && txid > most {
			c.t.Fatalf("partition %d: %d is out of order", partition, txid)
		}
		most = max(most, txid)
	}
}

func (c *members) position(partition int) uint64 {
	c.t.Helper()
	k, err := c.log.NewClient(c.t, client.Options{}).Cursor(partition, "team")
	if err != nil {
		c.t.Fatal(err)
	}
	pos, err := k.Get(soon(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	return pos.Txid
}

func TestMembersShareAndTakeOver(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "members wait for leases to end")
	const partitions = 5
	c := newMembers(t, partitions, group.Options{MaxMembers: 4})
	for p := range partitions {
		c.fill(p, 20)
	}
	leaveA, _ := c.join("a", c.handle)
	c.shared(map[string]int{"a": 5})
	_, crashB := c.join("b", c.handle)
	c.until("two members", func() bool { return len(c.held["a"])+len(c.held["b"]) == 5 && len(c.held["b"]) >= 2 })
	_, _ = c.join("c", c.handle)
	c.until("three members", func() bool {
		return len(c.held["a"])+len(c.held["b"])+len(c.held["c"]) == 5 && len(c.held["c"]) >= 1 && len(c.held["b"]) >= 1 && len(c.held["a"]) >= 1
	})
	for p := range partitions {
		c.fill(p, 20)
	}
	crashB()
	c.until("two are left", func() bool { return len(c.held["a"])+len(c.held["c"]) == 5 })
	for p := range partitions {
		c.fill(p, 20)
	}
	if err := leaveA(); !errors.Is(err, context.Canceled) {
		t.Errorf("left with %v", err)
	}
	c.until("one is left", func() bool { return len(c.held["c"]) == 5 })
	for p := range partitions {
		c.fill(p, 20)
		c.handledAll(p, 80)
	}
}

// A member that leaves sets the position to what it handled: nothing is handled
// twice.
func TestLeavingLosesNothing(t *testing.T) {
	t.Parallel()
	c := newMembers(t, 1, group.Options{CommitInterval: time.Hour})
	c.fill(0, 30)
	leave, _ := c.join("a", c.handle)
	c.handledAll(0, 30)
	_ = leave()
	if at := c.position(0); at != 30 {
		t.Fatalf("left at %d", at)
	}
	c.fill(0, 30)
	leave, _ = c.join("b", c.handle)
	c.handledAll(0, 60)
	_ = leave()
	if c.handled[0][30] != 31 || len(c.handled[0]) != 60 {
		t.Errorf("handled %v", c.handled[0])
	}
}

// A member that leaves inside an atomic batch has not handled it: the next one
// gets all of it.
func TestLeavingInsideAnAtomicBatch(t *testing.T) {
	t.Parallel()
	c := newMembers(t, 1, group.Options{CommitInterval: time.Millisecond})
	c.fill(0, 1)
	b := &client.AtomicBatch{Transactions: []*client.Request{{}, {}, {}}}
	if _, err := c.log.NewClient(t, client.Options{}).AppendAtomic(soon(t), b); err != nil {
		t.Fatal(err)
	}
	inside := make(chan struct{})
	leave, _ := c.join("a", func(ctx context.Context, tx *client.Transaction) error {
		if tx.Txid == 3 {
			close(inside)
			<-ctx.Done()
			return ctx.Err()
		}
		return c.handle(ctx, tx)
	})
	<-inside
	_ = leave()
	if at := c.position(0); at != 1 {
		t.Errorf("left at %d", at)
	}
	leave, _ = c.join("b", c.handle)
	c.until("the rest is handled", func() bool { return len(c.handled[0]) > 0 && c.handled[0][len(c.handled[0])-1] == 4 })
	_ = leave()
	if got := fmt.Sprint(c.handled[0]); got != "[1 2 2 3 4]" || c.position(0) != 4 {
		t.Errorf("handled %s, left at %d", got, c.position(0))
	}
}

// If somebody else moves the position, the member does not move it back, and
// continues from there.
func TestMovedPositionIsNotOverwritten(t *testing.T) {
	t.Parallel()
	c := newMembers(t, 1, group.Options{})
	c.fill(0, 20)
	release, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	_, _ = c.join("a", func(ctx context.Context, tx *client.Transaction) error {
		if tx.Txid == 5 {
			once.Do(func() { close(held); <-release })
		}
		return c.handle(ctx, tx)
	})
	<-held
	k, err := c.log.NewClient(t, client.Options{}).Cursor(0, "team")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Set(soon(t), 15); err != nil {
		t.Fatal(err)
	}
	close(release)
	c.until("goes on behind 15", func() bool { return slices.Contains(c.handled[0], 16) })
	if at := c.position(0); at < 15 {
		t.Errorf("the position was moved back to %d", at)
	}
}

// An error that stops one partition does not stop another. Join returns it.
func TestPoisonStopsItsPartitionOnly(t *testing.T) {
	t.Parallel()
	c := newMembers(t, 2, group.Options{})
	poison := errors.New("poison")
	c.fill(0, 10)
	c.fill(1, 10)
	stopped := make(chan error, 100) // again, if the lease expires before the position was moved
	c.opts.Follow.OnStop = func(_ int, err error) { stopped <- err }
	leave, _ := c.join("a", func(ctx context.Context, tx *client.Transaction) error {
		if tx.Partition == 0 && tx.Txid == 4 {
			return poison
		}
		return c.handle(ctx, tx)
	})
	c.handledAll(1, 10)
	c.handledAll(0, 3)
	<-stopped
	c.fill(1, 10)
	c.handledAll(1, 20)
	if err := leave(); !errors.Is(err, poison) {
		t.Errorf("left with %v", err)
	}
	if c.position(0) != 3 {
		t.Errorf("the position is %d", c.position(0))
	}
}

// A partition that stops while the answer to a move of its position is lost
// stays stopped: that the position has moved is the member's own doing.
func TestPoisonDuringAMoveWithoutAnswer(t *testing.T) {
	t.Parallel()
	c := newMembers(t, 1, group.Options{})
	poison := errors.New("poison")
	moving := make(chan struct{})
	c.log.FailFunc(cantustest.Cursor, func(m *nats.Msg) cantustest.Fault {
		if !strings.HasSuffix(m.Subject, ".team") || len(m.Data) == 0 {
			return cantustest.Fault{}
		}
		select {
		case <-moving:
			return cantustest.Fault{}
		default:
			close(moving)
			return cantustest.LoseAnswer()
		}
	})
	stopped := make(chan error, 100)
	c.opts.Follow.OnStop = func(_ int, err error) { stopped <- err }
	c.fill(0, 10)
	leave, _ := c.join("a", func(ctx context.Context, tx *client.Transaction) error {
		if tx.Txid == 4 {
			<-moving
			return poison
		}
		return c.handle(ctx, tx)
	})
	if err := <-stopped; !errors.Is(err, poison) {
		t.Errorf("stopped with %v", err)
	}
	if err := leave(); !errors.Is(err, poison) || errors.Is(err, group.ErrLost) {
		t.Errorf("left with %v", err)
	}
	if at := c.position(0); at != 3 {
		t.Errorf("the position is %d", at)
	}
}

// A group starts on a log without a transaction.
func TestEmptyPartitionsAreTakenUpWhenTheyGrow(t *testing.T) {
	t.Parallel()
	c := newMembers(t, 3, group.Options{})
	_, _ = c.join("a", c.handle)
	c.fill(2, 5)
	c.handledAll(2, 5)
	c.fill(0, 5)
	c.handledAll(0, 5)
	c.fill(1, 5)
	c.handledAll(1, 5)
}

// Requests and answers about cursors are lost at random while members come and
// go. handle checks that no two handlers run at a time.
func TestNoTwoHandleAPartitionAtATime(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "members wait for leases to end")
	c := newMembers(t, 2, group.Options{MaxMembers: 3})
	// By chance: if faults came at every eleventh request, they could always meet
	// the same request of a member that makes as many in each round.
	c.log.FailFunc(cantustest.Cursor, func(*nats.Msg) cantustest.Fault {
		switch rand.IntN(11) {
		case 3:
			return cantustest.LoseAnswer()
		case 5:
			return cantustest.DelayAnswer(quick / 5)
		case 7:
			return cantustest.Delay(quick / 2)
		}
		return cantustest.Fault{}
	})
	const rounds = 2 // TestLeaseIsHeldByOneAtATime simulates hours of it
	var leavers []func() error
	for i := range rounds {
		leave, crash := c.join(fmt.Sprint("m", 2*i), c.handle)
		other, _ := c.join(fmt.Sprint("m", 2*i+1), c.handle)
		leavers = append(leavers, other)
		for p := range 2 {
			c.fill(p, 10)
			c.handledAll(p, 10*(i+1))
		}
		if i%2 == 0 {
			crash()
		} else {
			_ = leave()
		}
		if i > 0 {
			_ = leavers[i-1]()
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	for name, opts := range map[string]group.Options{
		"": {}, "a.b": {}, "members": {MaxMembers: 2000}, "lease": {Lease: time.Millisecond}, "commit": {CommitInterval: -1},
		"a-name-that-leaves-no-space-for-the-suffixes-of-a-group": {},
	} {
		if err := group.Join(soon(t), c, name, nil, opts); !errors.Is(err, group.ErrOptions) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestIdlePartitionsAreNotWritten has two members hold partitions for several
// lease times without a write to them: only the members' own leases are
// renewed.
func TestIdlePartitionsAreNotWritten(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "members wait for leases to end")
	const partitions = 4
	c := newMembers(t, partitions, group.Options{MaxMembers: 2})
	for p := range partitions {
		c.fill(p, 1)
	}
	c.join("a", c.handle)
	c.join("b", c.handle)
	c.shared(map[string]int{"a": 2, "b": 2})
	cl := c.log.NewClient(t, client.Options{})
	leases := func() (all []client.Position) {
		for p := range partitions {
			all = append(all, cursor(t, cl, p, "team-lease"))
		}
		return all
	}
	// A member that a loaded machine keeps from renewing loses its partitions,
	// which are written then. So it is about some ten renewals.
	same := func(a, b client.Position) bool { return a.Time.Equal(b.Time) && a.Txid == b.Txid }
	before := leases()
	lease := cursor(t, cl, 0, "team-member-0")
	renewed := 0 // four times a lease, as partitions' leases were
	testkit.Until(t, "ten renewals of members without a write for idle partitions", func() bool {
		if now := cursor(t, cl, 0, "team-member-0"); !now.Time.Equal(lease.Time) {
			lease = now
			renewed++
		}
		if now := leases(); !slices.EqualFunc(now, before, same) {
			before, renewed = now, 0
		}
		return renewed >= 10
	})
}

// cursor reads a cursor.
func cursor(t *testing.T, cl *client.Client, partition int, name string) client.Position {
	t.Helper()
	k, err := cl.Cursor(partition, name)
	if err != nil {
		t.Fatal(err)
	}
	pos, err := k.Get(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

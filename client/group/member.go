package group

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cantuslog/cantus/client"
)

// member is a process's part in a group. It is used by one goroutine, that of
// Join; within a round, each lease has a goroutine of its own.
type member struct {
	client *client.Client
	name   string
	handle client.Handler
	opts   Options

	coordPartition int // partition with the members' leases; -1: none has a transaction
	memberLeases   []*lease
	number         int   // index in memberLeases of the lease held or claimed, -1: none
	assigned       []int // partitions assigned to this member, as last computed
	leases         map[int]*lease
	workers        map[int]*worker
	failures       map[int]error // errors of partitions that have stopped
	handled        map[int]handled
	lastNotified   []int
}

// Join makes the process a member of the group until ctx ends. It calls handle
// for the transactions of the partitions assigned to the member, on one
// goroutine per partition. It returns when no handler runs any more and the
// partitions are free for others, with the error of ctx and those of partitions
// that stopped. If an option is invalid, it returns ErrOptions at once.
func Join(ctx context.Context, c *client.Client, name string, handle client.Handler, opts Options) error {
	opts, err := opts.withDefaults(name)
	if err != nil {
		return err
	}
	if len(opts.Partitions) == 0 {
		n, err := c.Partitions(ctx)
		if err != nil {
			return err
		}
		for p := range n {
			opts.Partitions = append(opts.Partitions, p)
		}
	}
	opts.Partitions = slices.Sorted(slices.Values(opts.Partitions))
	m := &member{client: c, name: name, handle: handle, opts: opts, coordPartition: -1, number: -1, leases: map[int]*lease{}, workers: map[int]*worker{}, failures: map[int]error{}, handled: map[int]handled{}}
	for _, p := range opts.Partitions {
		if m.leases[p], err = m.lease(p, name+"-lease"); err != nil {
			return err
		}
		m.leases[p].byReading = true // its holder is known by the members' leases
	}
	return m.run(ctx)
}

func (m *member) lease(partition int, name string) (*lease, error) {
	k, err := m.client.Cursor(partition, name)
	if err != nil {
		return nil, err
	}
	return newLease(k, m.opts.Lease), nil
}

// run executes a round every third of a lease.
func (m *member) run(ctx context.Context) error {
	for {
		if err := m.round(ctx); errors.Is(err, client.ErrClosed) {
			return errors.Join(err, m.leave(ctx))
		}
		select {
		case <-time.After(m.opts.Lease / 4): // plus a round's duration: at most a third
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), m.leave(ctx))
		}
	}
}

// round renews the member's own lease, reads those of the other members, and
// renews, claims or releases partitions. An error other than ErrClosed means
// that a request failed, which the next round repeats. What is held stays held.
func (m *member) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.opts.Lease/3)
	defer cancel()
	if err := m.findCoordPartition(ctx); err != nil || m.coordPartition < 0 {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(m.opts.Partitions), len(m.opts.Partitions)+1)
	for i, p := range m.opts.Partitions {
		// A partition that is no longer assigned is still held while its
		// handler runs.
		if m.workers[p] != nil || slices.Contains(m.assigned, p) {
			wg.Go(func() { errs[i] = m.leases[p].step(ctx) })
		}
	}
	membership := m.renewMembership(ctx)
	wg.Wait()
	if membership == nil {
		m.assigned = m.assignment()
	}
	for i, p := range m.opts.Partitions {
		errs[i] = errors.Join(errs[i], m.reconcile(ctx, p, slices.Contains(m.assigned, p)))
	}
	m.notify()
	return errors.Join(append(errs, membership)...)
}

// findCoordPartition finds the first partition with a transaction, and moves
// the members' leases there if it was another before. A partition that does not
// answer counts as empty: the leases are for discovery only, and nothing is
// lost if that fails for a while.
func (m *member) findCoordPartition(ctx context.Context) error {
	for _, p := range m.opts.Partitions {
		if p == m.coordPartition {
			return nil
		}
		soon, cancel := context.WithTimeout(ctx, m.opts.Lease/10)
		mark, err := m.client.HighWaterMark(soon, p)
		cancel()
		if errors.Is(err, client.ErrClosed) {
			return err
		}
		if err != nil || mark == 0 {
			continue
		}
		return m.setCoordPartition(ctx, p)
	}
	return nil
}

// setCoordPartition changes to the members' leases in partition.
func (m *member) setCoordPartition(ctx context.Context, partition int) (err error) {
	leases := make([]*lease, m.opts.MaxMembers)
	for i := range leases {
		if leases[i], err = m.lease(partition, fmt.Sprintf("%s-member-%d", m.name, i)); err != nil {
			return err
		}
	}
	if m.number >= 0 {
		_ = m.memberLeases[m.number].release(ctx) // on failure it expires
	}
	m.coordPartition, m.memberLeases, m.number = partition, leases, -1
	return nil
}

// renewMembership reads all members' leases and renews that of this member, or
// claims a free one. A member that is alone need not be seen to be alive: it
// starts to renew its lease when it sees another member, which has then watched
// the lease for less than its duration.
func (m *member) renewMembership(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, len(m.memberLeases))
	for i, l := range m.memberLeases {
		if i != m.number {
			wg.Go(func() { errs[i] = l.read(ctx) })
		}
	}
	wg.Wait()
	if m.number >= 0 {
		m.memberLeases[m.number].byReading = m.alone() && errors.Join(errs...) == nil
		errs[m.number] = m.memberLeases[m.number].step(ctx)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if m.number >= 0 && m.memberLeases[m.number].ownTime.IsZero() {
		m.number = -1 // lost
	}
	if m.number >= 0 {
		return nil
	}
	var free []int
	for i, l := range m.memberLeases {
		if !l.taken() {
			free = append(free, i)
		}
	}
	if len(free) == 0 {
		return nil
	}
	m.number = free[rand.N(len(free))]
	return m.memberLeases[m.number].step(ctx)
}

// alone reports whether the leases of all other members are free. If there is
// only one lease, other members may stand by unseen.
func (m *member) alone() bool {
	for i, l := range m.memberLeases {
		if i != m.number && l.taken() {
			return false
		}
	}
	return len(m.memberLeases) > 1
}

// assignment returns the partitions assigned to the member, as far as it sees.
// It counts members whose lease is merely claimed, as all members do:
// partitions have leases of their own.
func (m *member) assignment() (mine []int) {
	if m.number < 0 {
		return nil
	}
	rank, n := 0, 0
	for i, l := range m.memberLeases {
		if i == m.number {
			rank = n
		}
		if i == m.number || l.taken() {
			n++
		}
	}
	for i, p := range m.opts.Partitions {
		if i%n == rank {
			mine = append(mine, p)
		}
	}
	return mine
}

// reconcile starts or stops the partition's worker: it runs if and only if the
// partition is wanted and its lease is held. A worker that failed is not
// started again while that is so.
func (m *member) reconcile(ctx context.Context, partition int, wanted bool) error {
	l, w := m.leases[partition], m.workers[partition]
	if w != nil {
		if wanted && l.held() && (!w.finished() || w.failed()) {
			w.extend(l.heldUntil)
			return nil
		}
		w.stop(ErrLost)
		if !w.finished() {
			return nil // a later round continues
		}
		m.forget(w)
	}
	if wanted && l.held() {
		m.workers[partition] = m.begin(partition, l.heldUntil, m.handled[partition])
		return nil
	}
	if !wanted {
		return l.release(ctx)
	}
	return nil
}

// forget removes a finished worker and stores its error.
func (m *member) forget(w *worker) {
	if w.failed() {
		m.failures[w.partition] = w.err
	}
	if w.handled.cluster != "" {
		m.handled[w.partition] = w.handled
	}
	delete(m.workers, w.partition)
}

// notify calls OnChange if the partitions have changed.
func (m *member) notify() {
	var now []int
	for _, p := range m.opts.Partitions {
		if m.workers[p] != nil {
			now = append(now, p)
		}
	}
	if !slices.Equal(now, m.lastNotified) {
		m.lastNotified = now
		if m.opts.OnChange != nil {
			m.opts.OnChange(slices.Clone(now))
		}
	}
}

// leave stops all workers and releases what is held. It returns the errors of
// partitions that had stopped.
func (m *member) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opts.Lease/3)
	defer cancel()
	for _, w := range m.workers {
		w.stop(context.Canceled)
	}
	for p, w := range m.workers {
		<-w.done
		m.forget(w)
		_ = m.leases[p].release(ctx) // on failure it expires
	}
	m.notify()
	if m.number >= 0 {
		_ = m.memberLeases[m.number].release(ctx)
	}
	return errors.Join(slices.Collect(maps.Values(m.failures))...)
}

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

// member is a process's part in a group. One goroutine owns it; within a
// round each lease has one of its own.
type member struct {
	client *client.Client
	name   string
	handle client.Handler
	opts   Options

	coordPartition int // the partition that the slots are in; -1: none has a transaction
	memberLeases   []*lease
	number         int   // that is held or claimed, -1: none
	assigned       []int // the member's share, as last seen
	leases         map[int]*lease
	workers        map[int]*worker
	failures       map[int]error // partitions that an error stopped, sometime
	lastNotified   []int
}

// Join makes the process a member of the group until ctx ends: handle is
// called for the transactions of its partitions, on a goroutine a partition.
// It returns when no handler runs any more and the partitions are free for others,
// with ctx's error and those of partitions that were stopped; at once for ErrOptions.
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
	m := &member{client: c, name: name, handle: handle, opts: opts, coordPartition: -1, number: -1, leases: map[int]*lease{}, workers: map[int]*worker{}, failures: map[int]error{}}
	for _, p := range opts.Partitions {
		if m.leases[p], err = m.lease(p, name+"-lease"); err != nil {
			return err
		}
		m.leases[p].byReading = true // its holder is known by the slots
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

// run does a round every third of a lease.
func (m *member) run(ctx context.Context) error {
	for {
		if err := m.round(ctx); errors.Is(err, client.ErrClosed) {
			return errors.Join(err, m.leave(ctx))
		}
		select {
		case <-time.After(m.opts.Lease / 4): // with what a round takes, within a third
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), m.leave(ctx))
		}
	}
}

// round keeps the member's slot, sees who else there is, and keeps, claims or
// gives up partitions. An error other than ErrClosed says that something could
// not be asked, which the next round does again: what is held elsewhere goes on.
func (m *member) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.opts.Lease/3)
	defer cancel()
	if err := m.findCoordPartition(ctx); err != nil || m.coordPartition < 0 {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(m.opts.Partitions), len(m.opts.Partitions)+1)
	for i, p := range m.opts.Partitions {
		// Also what is not wanted any more, as long as its handler runs.
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

// findHome finds the first partition with a transaction. Where that is another
// than before, the slots there are looked at anew. One that does not answer
// counts as empty: slots are for knowing each other, and nothing is lost if
// that fails for a while.
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

// moveTo has the slots in a partition.
func (m *member) setCoordPartition(ctx context.Context, partition int) (err error) {
	leases := make([]*lease, m.opts.MaxMembers)
	for i := range leases {
		if leases[i], err = m.lease(partition, fmt.Sprintf("%s-member-%d", m.name, i)); err != nil {
			return err
		}
	}
	if m.number >= 0 {
		_ = m.memberLeases[m.number].release(ctx) // else it runs out
	}
	m.coordPartition, m.memberLeases, m.number = partition, leases, -1
	return nil
}

// keepSlot looks at all slots and keeps the own one, or claims a free one. A
// member that is alone need not be seen to live: it begins to renew its slot when
// it sees another one, which has then looked at it for less than a lease.
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

// alone reports whether every other slot is free. Where there is only one, others
// may stand by unseen.
func (m *member) alone() bool {
	for i, l := range m.memberLeases {
		if i != m.number && l.taken() {
			return false
		}
	}
	return len(m.memberLeases) > 1
}

// share returns the partitions that are the member's, as far as it sees. A slot
// that is merely claimed counts too, everywhere: partitions have leases of their
// own.
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

// settle has the partition handled if it is held and wanted, and only then.
func (m *member) reconcile(ctx context.Context, partition int, wanted bool) error {
	l, w := m.leases[partition], m.workers[partition]
	if w != nil {
		if wanted && l.held() && (!w.finished() || w.failure() != nil) {
			w.extend(l.heldUntil)
			return nil
		}
		w.stop(ErrLost)
		if !w.finished() {
			return nil // a later round sees to it
		}
		m.forget(w)
	}
	if wanted && l.held() {
		m.workers[partition] = m.begin(partition, l.heldUntil)
		return nil
	}
	if !wanted {
		return l.release(ctx)
	}
	return nil
}

// forget drops a finished worker, and keeps why it stopped.
func (m *member) forget(w *worker) {
	if err := w.failure(); err != nil {
		m.failures[w.partition] = err
	}
	delete(m.workers, w.partition)
}

// tell tells OnChange.
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

// leave stops all handling and frees what is held. It gives the errors of
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
		_ = m.leases[p].release(ctx) // else it runs out
	}
	m.notify()
	if m.number >= 0 {
		_ = m.memberLeases[m.number].release(ctx)
	}
	return errors.Join(slices.Collect(maps.Values(m.failures))...)
}

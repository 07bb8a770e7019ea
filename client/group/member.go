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

	home    int // the partition that the slots are in; -1: none has a transaction
	slots   []*lease
	slot    int   // that is held or claimed, -1: none
	wanted  []int // the member's share, as last seen
	leases  map[int]*lease
	workers map[int]*worker
	stopped map[int]error // partitions that an error stopped, sometime
	told    []int
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
	m := &member{client: c, name: name, handle: handle, opts: opts, home: -1, slot: -1, leases: map[int]*lease{}, workers: map[int]*worker{}, stopped: map[int]error{}}
	for _, p := range opts.Partitions {
		if m.leases[p], err = m.lease(p, name+"-lease"); err != nil {
			return err
		}
		m.leases[p].quiet = true // its holder is known by the slots
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
	if err := m.findHome(ctx); err != nil || m.home < 0 {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(m.opts.Partitions), len(m.opts.Partitions)+1)
	for i, p := range m.opts.Partitions {
		// Also what is not wanted any more, as long as its handler runs.
		if m.workers[p] != nil || slices.Contains(m.wanted, p) {
			wg.Go(func() { errs[i] = m.leases[p].keep(ctx) })
		}
	}
	slot := m.keepSlot(ctx)
	wg.Wait()
	if slot == nil {
		m.wanted = m.share()
	}
	for i, p := range m.opts.Partitions {
		errs[i] = errors.Join(errs[i], m.settle(ctx, p, slices.Contains(m.wanted, p)))
	}
	m.tell()
	return errors.Join(append(errs, slot)...)
}

// findHome finds the first partition with a transaction. Where that is another
// than before, the slots there are looked at anew. One that does not answer
// counts as empty: slots are for knowing each other, and nothing is lost if
// that fails for a while.
func (m *member) findHome(ctx context.Context) error {
	for _, p := range m.opts.Partitions {
		if p == m.home {
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
		return m.moveTo(ctx, p)
	}
	return nil
}

// moveTo has the slots in a partition.
func (m *member) moveTo(ctx context.Context, partition int) (err error) {
	slots := make([]*lease, m.opts.MaxMembers)
	for i := range slots {
		if slots[i], err = m.lease(partition, fmt.Sprintf("%s-member-%d", m.name, i)); err != nil {
			return err
		}
	}
	if m.slot >= 0 {
		_ = m.slots[m.slot].release(ctx) // else it runs out
	}
	m.home, m.slots, m.slot = partition, slots, -1
	return nil
}

// keepSlot looks at all slots and keeps the own one, or claims a free one. A
// member that is alone need not be seen to live: it begins to renew its slot when
// it sees another one, which has then looked at it for less than a lease.
func (m *member) keepSlot(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, len(m.slots))
	for i, l := range m.slots {
		if i != m.slot {
			wg.Go(func() { errs[i] = l.look(ctx) })
		}
	}
	wg.Wait()
	if m.slot >= 0 {
		m.slots[m.slot].quiet = m.alone() && errors.Join(errs...) == nil
		errs[m.slot] = m.slots[m.slot].keep(ctx)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if m.slot >= 0 && m.slots[m.slot].mine.IsZero() {
		m.slot = -1 // lost
	}
	if m.slot >= 0 {
		return nil
	}
	var free []int
	for i, l := range m.slots {
		if !l.alive() {
			free = append(free, i)
		}
	}
	if len(free) == 0 {
		return nil
	}
	m.slot = free[rand.N(len(free))]
	return m.slots[m.slot].keep(ctx)
}

// alone reports whether every other slot is free. Where there is only one, others
// may stand by unseen.
func (m *member) alone() bool {
	for i, l := range m.slots {
		if i != m.slot && l.alive() {
			return false
		}
	}
	return len(m.slots) > 1
}

// share returns the partitions that are the member's, as far as it sees. A slot
// that is merely claimed counts too, everywhere: partitions have leases of their
// own.
func (m *member) share() (mine []int) {
	if m.slot < 0 {
		return nil
	}
	rank, n := 0, 0
	for i, l := range m.slots {
		if i == m.slot {
			rank = n
		}
		if i == m.slot || l.alive() {
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
func (m *member) settle(ctx context.Context, partition int, wanted bool) error {
	l, w := m.leases[partition], m.workers[partition]
	if w != nil {
		if wanted && l.held() && (!w.finished() || w.stopped() != nil) {
			w.extend(l.until)
			return nil
		}
		w.end(ErrLost)
		if !w.finished() {
			return nil // a later round sees to it
		}
		m.forget(w)
	}
	if wanted && l.held() {
		m.workers[partition] = m.begin(partition, l.until)
		return nil
	}
	if !wanted {
		return l.release(ctx)
	}
	return nil
}

// forget drops a finished worker, and keeps why it stopped.
func (m *member) forget(w *worker) {
	if err := w.stopped(); err != nil {
		m.stopped[w.partition] = err
	}
	delete(m.workers, w.partition)
}

// tell tells OnChange.
func (m *member) tell() {
	var now []int
	for _, p := range m.opts.Partitions {
		if m.workers[p] != nil {
			now = append(now, p)
		}
	}
	if !slices.Equal(now, m.told) {
		m.told = now
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
		w.end(context.Canceled)
	}
	for p, w := range m.workers {
		<-w.done
		m.forget(w)
		_ = m.leases[p].release(ctx) // else it runs out
	}
	m.tell()
	if m.slot >= 0 {
		_ = m.slots[m.slot].release(ctx)
	}
	return errors.Join(slices.Collect(maps.Values(m.stopped))...)
}

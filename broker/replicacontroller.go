package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// replicaController keeps this node's replica of one partition as the facts
// say. Each node has a controller for every partition, whether or not it holds
// a replica of it.
//
// One goroutine, run, does everything in turn. While the facts give the node a
// replica, ensure opens it, and fetches its log from another node first if it
// has to; serve then runs the replica until awaitEnd returns a reason to end
// it, closes the replica and deletes its log.
//
// Raft decides when a replica may go: the leader removes it from the group
// before its node deletes it. The facts alone do not suffice. A node that
// starts has those of its last snapshot, and the newer ones may have given it a
// replica, which has acknowledged entries since. So a log that is there is
// opened whatever the facts say, and takes part until the replica is removed.
type replicaController struct {
	controllerConfig
	id   int
	log  *slog.Logger
	data *wal.Log

	rebuilds chan struct{} // capacity 1: delete the replica and fetch it again
	rebuilt  atomic.Uint64 // how often that was done

	mu       sync.Mutex
	replica  *replica // nil while there is no replica
	progress string   // why there is none

	// Owned by run.
	logged  loglimit.Repeats // why there is no replica
	backoff time.Duration    // the last wait after a failed fetch
}

// controllerConfig is what a replicaController needs of the node.
type controllerConfig struct {
	self             string
	names            subjects.Names
	founders         []string // the group's first voters, nil unless this node is one of them
	peers            *peers
	facts            func() (facts cluster.Facts, changed <-chan struct{})
	factsCurrent     func() bool // the facts are not outdated
	shared           *sharedSubjects
	network          *raftstore.Network // nil on a standalone node
	host             func() host        // for the replica
	full             func() bool        // the node takes no more transactions
	removalSuspected func() bool        // the node may have been removed
	fail             func(error)
	sources          *replicaSources
	forgetDamage     func(partition int) // of a log that was deleted or repaired
	removeIndex      func(partition int) error
}

func newReplicaController(config controllerConfig, id int, log *slog.Logger, data *wal.Log) *replicaController {
	return &replicaController{controllerConfig: config, id: id, log: log, data: data, rebuilds: make(chan struct{}, 1)}
}

// current returns the replica, nil if there is none.
func (c *replicaController) current() *replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.replica
}

func (c *replicaController) set(r *replica, progress string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replica, c.progress = r, progress
}

func (c *replicaController) wanted(f cluster.Facts) bool { return f.Hosts(c.self, c.id) }

// openLocal opens the replica if its log is here or need not be fetched first.
func (c *replicaController) openLocal() error {
	facts, _ := c.facts()
	if c.mustFetch() || c.data.LastIndex() == 0 && !c.wanted(facts) {
		return nil
	}
	err := c.open()
	if c.repairable(err) {
		c.log.Error("the replica's log is damaged: it is to be repaired from the other replicas", "err", err)
		c.set(nil, "is to be repaired: its log is damaged")
		return nil
	}
	return err
}

// checkTail reads the entries after the replica's snapshot, and the last entry,
// if they could be repaired: Raft would only find out when it applies them, and
// reads the last one when it starts.
func (c *replicaController) checkTail() error {
	last := c.data.LastIndex()
	if c.network == nil || last == 0 {
		return nil
	}
	first := min(raftstore.Snapshotted(c.data)+1, last)
	for _, err := range c.data.Entries(max(first, c.data.FirstIndex()), last) {
		if err != nil {
			return err
		}
	}
	return nil
}

// repairable reports whether a replica that can't be opened because of err may
// be repaired from others.
func (c *replicaController) repairable(err error) bool {
	return errors.Is(err, wal.ErrDamaged) && c.network != nil
}

// errUnrepairable is returned for a log in which no entry is damaged, and which
// still can't be opened.
var errUnrepairable = errors.New("no entry is damaged")

// repair reads the whole log, and restores what is damaged from other replicas.
// Entries after the replica's last snapshot are not known to be committed: if
// one of them is damaged, they are all fetched again.
func (c *replicaController) repair(ctx context.Context) error {
	snapshotted := raftstore.Snapshotted(c.data)
	var found wal.Damage
	err := c.data.Scrub(ctx, func(ctx context.Context, _ int) error { return ctx.Err() }, func(d wal.Damage) { found = d })
	if err != nil {
		return err
	}
	if len(found.Entries) == 0 {
		return errors.Join(errUnrepairable, found.Err)
	}
	after, _ := slices.BinarySearch(found.Entries, snapshotted+1)
	if after > 0 {
		if err := c.sources.restore(ctx, c.data, found.Entries[:after], snapshotted); err != nil {
			return fmt.Errorf("repair: %w", err)
		}
	}
	if after < len(found.Entries) {
		if err := c.fetch(ctx); err != nil {
			return err
		}
	}
	c.forgetDamage(c.id)
	c.log.Warn("the replica's log was repaired: the disk may be failing", "entries", len(found.Entries), "damage", found.Err)
	return nil
}

// mustFetch reports whether the log has to be fetched before the replica can be
// opened.
func (c *replicaController) mustFetch() bool {
	return raftstore.Fetching(c.data) || c.data.LastIndex() == 0 && c.founders == nil
}

func (c *replicaController) open() error {
	if err := c.checkTail(); err != nil {
		return err
	}
	r, err := openReplica(c.host(), c.id, c.data, c.founders)
	if err != nil {
		return err
	}
	c.set(r, "")
	return nil
}

// report returns the node's report of its replica. ok is false while there is
// none.
func (c *replicaController) report() (report groupReport, ok bool) {
	rebuilt := c.rebuilt.Load() // before current: a replica may not count as one that comes after it
	r := c.current()
	if r == nil {
		return report, false
	}
	report = r.report()
	report.Rebuilds = rebuilt
	return report, true
}

// run controls the replica until ctx ends.
func (c *replicaController) run(ctx context.Context) {
	for ctx.Err() == nil {
		facts, changed := c.facts()
		r := c.current()
		switch {
		case r != nil:
			c.serve(ctx, r)
		case c.wanted(facts):
			if err := c.ensure(ctx); err != nil && ctx.Err() == nil {
				c.awaitRetry(ctx, err, changed)
			}
		default:
			c.leave(ctx, changed)
		}
	}
}

// leave handles the local data of a replica that the facts do not place on this
// node, until the facts change.
func (c *replicaController) leave(ctx context.Context, changed <-chan struct{}) {
	if err := c.openLocal(); err != nil {
		c.fail(fmt.Errorf("partition %d: %w", c.id, err))
		return
	}
	if c.current() != nil {
		return
	}
	for {
		heard := c.peers.next()
		if c.data.LastIndex() > 0 && c.mayDelete() {
			c.deleteReplica()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			return
		case <-heard:
		}
	}
}

// maxFetchWait is the longest wait between two attempts to fetch a log.
const maxFetchWait = 10 * announceInterval

// awaitRetry logs why there is no replica and waits before the next attempt.
// The wait doubles each time that another node sends nothing, and ends when the
// facts change.
func (c *replicaController) awaitRetry(ctx context.Context, err error, changed <-chan struct{}) {
	wait := announceInterval
	switch {
	case errors.Is(err, errMaybeRemoved): // which is logged for all partitions together
	case errors.Is(err, errNoSource), errors.Is(err, errFull):
		c.logAbsence(err)
	default:
		c.logAbsence(err)
		c.backoff = min(max(2*c.backoff, announceInterval), maxFetchWait)
		wait = c.backoff
	}
	select {
	case <-ctx.Done():
	case <-changed:
		c.backoff = 0
	case <-time.After(wait):
	}
}

// logAbsence logs why there is no replica. It withholds a reason that was
// logged lately.
func (c *replicaController) logAbsence(err error) {
	if ok, withheld := c.logged.Allow(err.Error(), time.Now()); ok {
		c.log.Info("the replica is not here yet", "err", err, "not_logged_before", withheld)
	}
}

// deleteReplica deletes the log of a replica that is not open: its fetch is not
// done, or it was to be repaired.
func (c *replicaController) deleteReplica() {
	if err := c.reset(); err != nil {
		c.log.Warn("the removed replica's log is not deleted", "err", err)
		return
	}
	c.log.Info("replica removed")
}

// reset deletes the log of a replica that is not open, and what was made of it.
func (c *replicaController) reset() error {
	if err := c.removeIndex(c.id); err != nil {
		c.log.Warn("the index is not deleted", "err", err) // its runs don't fit another log
	}
	return raftstore.Reset(c.data)
}

// ensure opens the replica, and fetches its log from another node first if it
// has to.
func (c *replicaController) ensure(ctx context.Context) error {
	if c.mustFetch() {
		if err := c.fetch(ctx); err != nil {
			return err
		}
	}
	err := c.open()
	for c.repairable(err) {
		repaired := c.repair(ctx)
		if errors.Is(repaired, errUnrepairable) {
			break
		}
		if repaired != nil {
			return repaired
		}
		err = c.open()
	}
	if err != nil {
		err = fmt.Errorf("partition %d: %w", c.id, err)
		c.fail(err)
		return err
	}
	return nil
}

var errNoSource = errors.New("no live node has a replica to fetch from")

// fetch fetches the log from the leader, or without one from the replica that
// has applied most.
func (c *replicaController) fetch(ctx context.Context) error {
	switch {
	case c.full():
		return c.noRoom()
	case c.removalSuspected():
		return errMaybeRemoved
	}
	now := time.Now()
	from, _, ok := c.peers.leader(c.id, now)
	best := uint64(0)
	for _, q := range c.peers.all(now) {
		if r, has := c.peers.report(q.Name, c.id, now); !ok && has && r.Fenced == "" && r.Applied > best {
			from, best = q.Name, r.Applied
		}
	}
	if from == "" || c.network == nil {
		return errNoSource
	}
	c.set(nil, "is fetched from "+from)
	if ok, _ := c.logged.Allow("from "+from, time.Now()); ok {
		c.log.Info("fetching the log", "from", from)
	}
	began := time.Now()
	fetching, cancel := context.WithCancel(ctx)
	defer cancel()
	go c.cancelWhenFull(fetching, cancel)
	if err := raftstore.Fetch(fetching, c.network, uint32(c.id), from, c.data); err != nil {
		if ctx.Err() == nil && c.full() {
			return c.noRoom()
		}
		return fmt.Errorf("fetch from %s: %w", from, err)
	}
	c.backoff, c.logged = 0, loglimit.Repeats{}
	c.log.Info("log fetched", "from", from, "entries", c.data.LastIndex(), "took", time.Since(began))
	return nil
}

// noRoom says that the log is not fetched because the disk is full, and returns
// errFull.
func (c *replicaController) noRoom() error {
	c.set(nil, "is to be fetched: "+errFull.Error())
	return errFull
}

// cancelWhenFull cancels a fetch when the disk becomes full: what it has
// fetched stays, and it resumes when there is room.
func (c *replicaController) cancelWhenFull(fetching context.Context, cancel func()) {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	for !c.full() {
		select {
		case <-fetching.Done():
			return
		case <-tick.C:
		}
	}
	cancel()
}

// endReason is why a replica ends.
type endReason uint8

const (
	stopping   endReason = iota // the node stops
	unwanted                    // the facts and its group have it elsewhere
	behind                      // its log ends before that of the others begins
	rebuilding                  // an operator asked for it
	renamed                     // it belongs to another namespace now, or to none
)

// serve runs the replica until it ends. It then closes it, and deletes it or
// fetches what it lacks; a node that stops closes its replicas later.
func (c *replicaController) serve(ctx context.Context, r *replica) {
	running, cancel := context.WithCancel(ctx)
	end := c.serveReads(running, r)
	var serving sync.WaitGroup
	serving.Go(func() { r.run(running) })
	if r.fencing.interrupted {
		serving.Go(func() { c.rebuildUnvoted(running.Done()) })
	}
	why := c.awaitEnd(ctx, r)
	cancel()
	serving.Wait()
	end()
	if why == stopping {
		return
	}
	c.set(nil, map[bool]string{true: "is opened under other names", false: "is to be fetched anew"}[why == renamed])
	c.log.Info("replica ends", "because", [...]string{
		behind: "the others have trimmed what it misses", unwanted: "it was moved away", rebuilding: "it is rebuilt", renamed: "its namespace has changed",
	}[why])
	if err := r.group.Close(); err != nil {
		c.log.Warn("close replica", "err", err)
	}
	switch why {
	case renamed:
		return // run opens it again
	case behind:
		c.refetch(ctx)
		return
	}
	if err := c.reset(); err != nil {
		c.fail(fmt.Errorf("partition %d: delete the replica: %w", c.id, err))
		return
	}
	c.unfence()
	c.forgetDamage(c.id)
	if why == rebuilding {
		c.rebuilt.Add(1)
	}
}

// serveReads serves the reads that any replica answers, until end is called.
func (c *replicaController) serveReads(ctx context.Context, r *replica) (end func()) {
	views := []struct {
		*view
		subject string
	}{{&r.view, c.names.ReplicaRead(c.id)}, {&r.faced, r.face.names.ReplicaRead(r.face.number)}}
	if r.face.part.Namespace == "" {
		views = views[:1]
	}
	var ends []func()
	for _, v := range views {
		end, err := c.shared.add(v.subject, v.requests.handler(ctx, v.reader.serveReplicaRead))
		if err != nil && ctx.Err() == nil {
			c.log.Warn("replica reads are not served", "err", err)
		}
		ends = append(ends, end)
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// unfence deletes a fence that was written while its replica was deleted.
func (c *replicaController) unfence() {
	if err := c.data.SetMeta(wal.Meta{Name: metaFenced}, wal.Meta{Name: metaOrdered}); err != nil {
		c.log.Warn("the fence was not deleted", "err", err)
	}
}

// refetch fetches what a log lacks that others have trimmed. What the log has
// beyond that stays.
func (c *replicaController) refetch(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.fetch(ctx)
		if err == nil {
			return
		}
		_, changed := c.facts()
		c.awaitRetry(ctx, err, changed)
	}
}

// awaitEnd blocks until the replica must end, and returns why.
func (c *replicaController) awaitEnd(ctx context.Context, r *replica) endReason {
	for {
		facts, changed := c.facts()
		heard := c.peers.next()
		wanted := c.wanted(facts)
		if !wanted && c.mayDelete() {
			return unwanted
		}
		if part, _ := facts.PartOf(c.id); part != r.face.part {
			return renamed
		}
		if wanted {
			heard = nil
		}
		select {
		case <-ctx.Done():
			return stopping
		case <-r.group.Behind():
			return behind
		case <-c.rebuilds:
			return rebuilding
		case <-changed:
		case <-heard:
		}
	}
}

// mayDelete reports whether a replica that the facts do not give this node may
// be deleted: the facts are not outdated, and its group has removed it.
func (c *replicaController) mayDelete() bool { return c.factsCurrent() && c.removed() }

// removed reports whether the group's leader, on another node, has removed this
// replica.
func (c *replicaController) removed() bool {
	name, r, ok := c.peers.leader(c.id, time.Now())
	if !ok || name == c.self {
		return false
	}
	_, member := r.Voters[c.self]
	return !member
}

// rebuildUnvoted waits until the leader has taken the replica's vote, and then
// requests the rebuild. It gives up when quit is closed.
func (c *replicaController) rebuildUnvoted(quit <-chan struct{}) {
	for {
		heard := c.peers.next()
		if _, r, ok := c.peers.leader(c.id, time.Now()); ok && !r.Voters[c.self] {
			c.requestRebuild()
			return
		}
		select {
		case <-quit:
			return
		case <-heard:
		}
	}
}

// requestRebuild has the replica deleted and fetched again.
func (c *replicaController) requestRebuild() { wake(c.rebuilds) }

// unserved returns what keeps the partition from being served, or this node's
// replica from following its leader; "" if nothing does.
func (c *replicaController) unserved() string {
	facts, _ := c.facts()
	if !c.wanted(facts) {
		return ""
	}
	c.mu.Lock()
	r, progress := c.replica, c.progress
	c.mu.Unlock()
	if r == nil {
		return fmt.Sprintf("partition %d %s", c.id, progress)
	}
	return r.unserved()
}

package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// A node scrubs: it reads all that it has stored from the disk, again and again
// at a limited rate, so that damage is found while other replicas still have
// what is damaged. The store writes again what it knows itself. A damaged entry
// is read from another replica and written again. Nothing is deleted for that,
// and no replica loses its vote: see docs/adr/0033.

const (
	// firstScrub is the longest time from a node's start to its first scrub.
	// Nodes that start together do not scrub at the same moment.
	firstScrub = time.Minute
	// restoreGap is how many intact entries between two damaged ones are
	// fetched with them, rather than on a connection of their own.
	restoreGap = 64
	// restoreTime bounds how long entries of one log are fetched.
	restoreTime = 10 * time.Minute
	// damagedReads is how many damaged entries that were read may wait to be
	// restored. A scrub finds the others.
	damagedReads = 64
)

// scrubber finds damage in the node's files and has it repaired.
type scrubber struct {
	self     string
	dir      string
	log      *slog.Logger
	store    *wal.Store
	rate     int64         // bytes a second; 0 for never
	interval time.Duration // the least time between the starts of two scrubs
	metrics  *metrics
	advise   func(event string, fields map[string]any)
	secret   func() wal.Secret
	sources  *replicaSources
	// applied returns how far this node's replica has applied a group's log.
	applied func(group uint32) uint64

	reads chan wal.Damage // damaged entries that somebody has read
	again chan struct{}   // capacity 1: scrub now

	restored  atomic.Bool   // entries were written again since a scrub began
	repairing chan struct{} // capacity 1: filled while damage is repaired
	mu        sync.Mutex    // guards what follows
	current   []unrepaired  // what is damaged and not repaired
	found     []unrepaired  // the same, by the scrub that is under way
}

// unrepaired is damage that is there: where, as partitionOf returns it, and
// what it is.
type unrepaired struct{ where, text string }

func newScrubber(i *identity, m *metrics, advise func(string, map[string]any), sources *replicaSources, applied func(uint32) uint64) *scrubber {
	return &scrubber{
		self: i.opts.Name, log: i.log, rate: max(i.opts.ScrubRate, 0), interval: i.opts.ScrubInterval, metrics: m, advise: advise,
		secret: i.currentSecret, sources: sources, applied: applied, reads: make(chan wal.Damage, damagedReads), again: make(chan struct{}, 1),
		repairing: make(chan struct{}, 1),
	}
}

// readDamage is called when an entry was read that is damaged. It does not
// block.
func (s *scrubber) readDamage(d wal.Damage) {
	select {
	case s.reads <- d:
	default:
	}
}

// damaged returns what is damaged and not repaired, "" if nothing is known to
// be.
func (s *scrubber) damaged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var texts []string
	for _, d := range s.current {
		texts = append(texts, d.text)
	}
	return strings.Join(texts, "; ")
}

// forget is called when a partition's log was deleted, with what was damaged in
// it, or when all of that was repaired.
func (s *scrubber) forget(partition int) {
	is := func(d unrepaired) bool { return d.where == label(partition) }
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.found = slices.DeleteFunc(s.current, is), slices.DeleteFunc(s.found, is)
	s.metrics.setDamaged(len(s.current))
}

// run scrubs until ctx ends.
func (s *scrubber) run(ctx context.Context) {
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() { s.repairReads(ctx) })
	if s.rate == 0 {
		return
	}
	wait := rand.N(min(s.interval, firstScrub))
	for isSecond := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.again:
		case <-time.After(wait):
		}
		began := time.Now()
		s.restored.Store(false)
		err := s.scrub(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, wal.ErrClosed):
			return
		case err != nil:
			s.log.Warn("the scrub ended early", "err", err)
		default:
			s.metrics.scrubbed.SetToCurrentTime()
			s.log.Debug("scrub complete", "took", time.Since(began))
		}
		wait = s.pause(began, &isSecond)
	}
}

// pause returns how long to wait after a scrub. One that has written entries
// again is followed by a second one at once: the file that they were in may be
// damaged where nothing could be read before. isSecond says that a scrub is
// that one, and pause sets it for the next.
func (s *scrubber) pause(began time.Time, isSecond *bool) time.Duration {
	if *isSecond = s.restored.Load() && !*isSecond; *isSecond {
		return 0
	}
	return max(s.interval-time.Since(began), 0)
}

// scrub reads everything once.
func (s *scrubber) scrub(ctx context.Context) error {
	s.mu.Lock()
	s.found = nil
	s.mu.Unlock()
	err := s.store.Scrub(ctx, s.pace, func(d wal.Damage) { s.handle(ctx, d) })
	if err == nil {
		err = s.checkSecret(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.current = slices.Clone(s.found)
	}
	s.metrics.setDamaged(len(s.current))
	return err
}

// pace waits for as long as reading n bytes may take.
func (s *scrubber) pace(ctx context.Context, n int) error {
	s.metrics.scrubBytes.Add(float64(n))
	if n == 0 {
		return ctx.Err()
	}
	wait := time.NewTimer(time.Duration(float64(n) / float64(s.rate) * float64(time.Second)))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return nil
	}
}

// repairReads repairs entries that somebody has found damaged.
func (s *scrubber) repairReads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-s.reads:
			if !d.Log.Intact(d.Entries[0]) { // else it was repaired meanwhile
				s.handle(ctx, d)
				wake(s.again) // the file may have more
			}
		}
	}
}

// handle reports damage and has it repaired.
func (s *scrubber) handle(ctx context.Context, d wal.Damage) {
	select {
	case s.repairing <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-s.repairing }()
	where := partitionOf(d)
	s.metrics.damageFound.WithLabelValues(where).Inc()
	fields := []any{"err", d.Err}
	if d.Log != nil {
		fields = append(fields, "partition", where)
	}
	if len(d.Entries) > 0 {
		fields = append(fields, "entries", len(d.Entries), "first_entry", d.Entries[0], "after_txid", d.After)
	}
	left := unrepaired{where, d.Err.Error()}
	known := slices.Contains(s.currentDamage(), left)
	repaired, err := d.Repaired, error(nil)
	if len(d.Entries) > 0 {
		err = s.restore(ctx, d)
		if repaired = err == nil; repaired {
			s.restored.Store(true)
		}
	}
	if ctx.Err() != nil {
		return
	}
	if repaired {
		s.metrics.damageRepaired.WithLabelValues(where).Inc()
		s.log.Error("damage was found on the disk, and repaired: the disk may be failing", fields...)
		s.report(d, true)
		return
	}
	s.mu.Lock()
	s.found = append(s.found, left)
	if !known {
		s.current = append(s.current, left)
	}
	s.metrics.setDamaged(len(s.current))
	s.mu.Unlock()
	if known {
		return
	}
	if err != nil {
		fields = append(fields, "not_repaired", err)
	}
	s.log.Error("damage was found on the disk: "+s.cure(d, where), fields...)
	s.report(d, false)
}

func (s *scrubber) currentDamage() []unrepaired {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.current)
}

func (s *scrubber) report(d wal.Damage, repaired bool) {
	fields := map[string]any{"because": d.Err.Error(), "repaired": repaired}
	if d.Log != nil && d.Log.Group() != metaGroup {
		fields["partition"] = int(d.Log.Group())
	}
	s.advise("damaged", fields)
}

// partitionOf returns the label of the partition that is damaged: "facts" for
// the facts, "" for what belongs to no log.
func partitionOf(d wal.Damage) string {
	switch {
	case d.Log == nil:
		return ""
	case d.Log.Group() == metaGroup:
		return "facts"
	}
	return label(int(d.Log.Group()))
}

// cure says what an operator does about damage that was not repaired.
func (s *scrubber) cure(d wal.Damage, where string) string {
	const alone = `there is no other replica: stop the node and save what is left ("cantus salvage")`
	switch {
	case s.sources.network == nil:
		return alone
	case d.Log != nil && len(d.Entries) > 0:
		return `it will be tried again; if that doesn't help, have the replica fetched from the others ("cantus cluster rebuild")`
	case d.Log != nil && where != "facts":
		return fmt.Sprintf(`have the replica fetched from the others ("cantus cluster rebuild %s --node %s")`, where, s.self)
	}
	return `while the other nodes are whole, remove this node from the cluster, and add it again with an empty directory`
}

// checkSecret writes the cluster's secret again if its file is damaged.
func (s *scrubber) checkSecret(ctx context.Context) error {
	secret := s.secret()
	if secret.Key == nil {
		return nil
	}
	stored, err := wal.ReadSecret(s.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && string(stored.Key) != string(secret.Key) {
		err = fmt.Errorf("%w: the cluster's secret in %s is missing, or another one", wal.ErrDamaged, s.dir)
	}
	if !errors.Is(err, wal.ErrDamaged) {
		return err
	}
	s.handle(ctx, wal.Damage{Err: err, Repaired: wal.WriteSecret(s.dir, secret) == nil})
	return nil
}

// restore writes damaged entries of a log again, from memory or from other
// replicas.
func (s *scrubber) restore(ctx context.Context, d wal.Damage) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	var rest []uint64
	for _, index := range d.Entries {
		if done, err := d.Log.RestoreFromMemory(index); err != nil && !errors.Is(err, wal.ErrNotFound) {
			return err
		} else if !done {
			rest = append(rest, index)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return s.sources.restore(ctx, d.Log, rest, s.applied(d.Log.Group()))
}

// replicaSources reads entries from the other replicas.
type replicaSources struct {
	peers   *peers
	network *raftstore.Network // nil on a standalone node
}

var errNoReplica = errors.New("no other replica is there to read it from")

// restore writes the entries of a log again that other replicas still have.
// Those up to committed are known to be the same on every replica.
func (s *replicaSources) restore(ctx context.Context, l *wal.Log, entries []uint64, committed uint64) error {
	if s.network == nil {
		return errNoReplica
	}
	if last := entries[len(entries)-1]; last > committed {
		return fmt.Errorf("entry %d is not known to be committed yet", last)
	}
	err := errNoReplica
	for _, from := range s.holders(l.Group(), entries[len(entries)-1]) {
		if err = s.restoreFrom(ctx, l, from, entries); err == nil || ctx.Err() != nil {
			return err
		}
		entries = slices.DeleteFunc(slices.Clone(entries), l.Intact)
		if len(entries) == 0 {
			return nil
		}
	}
	return err
}

// holders returns the nodes whose replica of a group has applied an entry and
// is not fenced.
func (s *replicaSources) holders(group uint32, index uint64) (names []string) {
	now := time.Now()
	for _, q := range s.peers.all(now) {
		r, ok := groupReport{}, false
		if group == metaGroup && q.Meta != nil {
			r, ok = *q.Meta, true
		} else if group != metaGroup {
			r, ok = s.peers.report(q.Name, int(group), now)
		}
		if ok && r.Fenced == "" && r.Applied >= index {
			names = append(names, q.Name)
		}
	}
	return names
}

func (s *replicaSources) restoreFrom(ctx context.Context, l *wal.Log, from string, entries []uint64) error {
	for len(entries) > 0 {
		n := 1
		for n < len(entries) && entries[n]-entries[n-1] <= restoreGap {
			n++
		}
		run := entries[:n]
		err := raftstore.FetchEntries(ctx, s.network, l.Group(), from, run[0], run[n-1], func(e wal.Entry) error {
			if _, damaged := slices.BinarySearch(run, e.Index); !damaged {
				return nil
			}
			return l.Restore(e)
		})
		if err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

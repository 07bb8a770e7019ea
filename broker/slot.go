package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// slot is a partition's place on this node. While the facts say that the node
// has a replica of it, there is one in the slot.
type slot struct {
	slotNode
	id   int
	log  *slog.Logger
	data *wal.Log

	rebuilds chan struct{} // capacity 1: the replica is to be thrown away and fetched anew

	mu        sync.Mutex
	partition *partition // nil while there is no replica
	doing     string     // what is done meanwhile

	said loglimit.Repeats // what was logged while there is none
	wait time.Duration
}

// slotNode is what a slot needs of the node.
type slotNode struct {
	self     string
	names    subjects.Names
	founders []string // that found the group, nil unless this node is one of them
	peers    *peers
	facts    func() (facts cluster.Facts, changed <-chan struct{})
	shared   *sharedSubjects
	network  *raftstore.Network // nil for a node alone
	host     func() host        // for the replica
	full     func() bool        // the node takes no more transactions
	doubted  func() bool        // the node may have been removed
	fail     func(error)
	unfenced func(partition int) // a fenced replica was thrown away
}

func newSlot(n slotNode, id int, log *slog.Logger, data *wal.Log) *slot {
	return &slot{slotNode: n, id: id, log: log, data: data, rebuilds: make(chan struct{}, 1)}
}

// current is the replica in the slot, nil if there is none.
func (s *slot) current() *partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.partition
}

func (s *slot) set(p *partition, doing string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.partition, s.doing = p, doing
}

func (s *slot) wanted(f cluster.Facts) bool { return f.Hosts(s.self, s.id) }

// openLocal opens the replica from what the node has, if it is to be there
// and nothing has to be fetched first.
func (s *slot) openLocal() error {
	facts, _ := s.facts()
	if !s.wanted(facts) || s.mustFetch() {
		return nil
	}
	return s.open()
}

// mustFetch reports whether the log has to be fetched before the replica can
// be one.
func (s *slot) mustFetch() bool {
	return raftstore.Fetching(s.data) || s.data.LastIndex() == 0 && s.founders == nil
}

func (s *slot) open() error {
	p, err := openPartition(s.host(), s.id, s.data, s.founders)
	if err != nil {
		return err
	}
	s.set(p, "")
	return nil
}

// run keeps the slot as the facts say, until ctx ends.
func (s *slot) run(ctx context.Context) {
	for ctx.Err() == nil {
		facts, changed := s.facts()
		p := s.current()
		switch {
		case p != nil:
			s.live(ctx, p)
		case s.wanted(facts):
			if err := s.bring(ctx); err != nil && ctx.Err() == nil {
				s.postpone(ctx, err, changed)
			}
		default:
			s.clear()
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	}
}

// maxFetchWait is the longest wait between two tries to fetch a log.
const maxFetchWait = 10 * helloInterval

// postpone says why the replica is not here and waits before the next try: longer
// each time that another node sends nothing, and no longer once the facts change.
func (s *slot) postpone(ctx context.Context, err error, changed <-chan struct{}) {
	wait := helloInterval
	switch {
	case errors.Is(err, errDoubt): // which is logged for all partitions together
	case errors.Is(err, errNoSource), errors.Is(err, errFull):
		s.complain(err)
	default:
		s.complain(err)
		s.wait = min(max(2*s.wait, helloInterval), maxFetchWait)
		wait = s.wait
	}
	select {
	case <-ctx.Done():
	case <-changed:
		s.wait = 0
	case <-time.After(wait):
	}
}

// complain logs why the replica is not here, each reason once in a while.
func (s *slot) complain(err error) {
	if ok, withheld := s.said.Allow(err.Error(), time.Now()); ok {
		s.log.Info("the replica is not here yet", "err", err, "not_logged_before", withheld)
	}
}

// clear throws away what a replica that is not to be here has left.
func (s *slot) clear() {
	if s.data.LastIndex() == 0 {
		return
	}
	if err := raftstore.Reset(s.data); err != nil {
		s.log.Warn("the removed replica's log stays", "err", err)
		return
	}
	s.log.Info("replica removed")
}

// bring fetches the log from another node if it must, and opens the replica.
func (s *slot) bring(ctx context.Context) error {
	if s.mustFetch() {
		if err := s.fetch(ctx); err != nil {
			return err
		}
	}
	if err := s.open(); err != nil {
		err = fmt.Errorf("partition %d: %w", s.id, err)
		s.fail(err)
		return err
	}
	return nil
}

var errNoSource = errors.New("no node is there that has a replica to fetch from")

// fetch gets the log from the leader, or else from who has most of it.
func (s *slot) fetch(ctx context.Context) error {
	switch {
	case s.full():
		return errFull
	case s.doubted():
		return errDoubt
	}
	now := time.Now()
	from, _, ok := s.peers.leader(s.id, now)
	best := uint64(0)
	for _, q := range s.peers.all(now) {
		if r, has := s.peers.report(q.Name, s.id, now); !ok && has && r.Fenced == "" && r.Applied > best {
			from, best = q.Name, r.Applied
		}
	}
	if from == "" || s.network == nil {
		return errNoSource
	}
	s.set(nil, "is fetched from "+from)
	if ok, _ := s.said.Allow("from "+from, time.Now()); ok {
		s.log.Info("fetching the log", "from", from)
	}
	began := time.Now()
	if err := raftstore.Fetch(ctx, s.network, uint32(s.id), from, s.data); err != nil {
		return fmt.Errorf("fetch from %s: %w", from, err)
	}
	s.wait, s.said = 0, loglimit.Repeats{}
	s.log.Info("log fetched", "from", from, "entries", s.data.LastIndex(), "took", time.Since(began))
	return nil
}

// The reasons why a replica ceases to be in its slot.
type ending uint8

const (
	stopping   ending = iota // the node is
	unwanted                 // the facts have it elsewhere, and its group knows
	behind                   // its log ends before that of the others begins
	rebuilding               // an operator asked for it
)

// live has the replica serve until it ceases to be here.
func (s *slot) live(ctx context.Context, p *partition) {
	running, cancel := context.WithCancel(ctx)
	end, err := s.shared.add(s.names.ReplicaRead(s.id), p.onRead(running, p.serveReplicaRead))
	if err != nil && ctx.Err() == nil {
		s.log.Warn("replica reads are not served", "err", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { p.run(running) })
	why := s.watch(ctx, p)
	cancel()
	serving.Wait()
	end()
	if why == stopping {
		return // the node closes its replicas, each in its place
	}
	s.set(nil, "is to be fetched anew")
	s.log.Info("replica ends", "because", [...]string{behind: "the others have trimmed what it misses", unwanted: "it was moved away", rebuilding: "it is rebuilt"}[why])
	if err := p.group.Close(); err != nil {
		s.log.Warn("close replica", "err", err)
	}
	if why == behind {
		s.refetch(ctx)
		return
	}
	if err := raftstore.Reset(s.data); err != nil {
		s.fail(fmt.Errorf("partition %d: throw the replica away: %w", s.id, err))
		return
	}
	s.unfence()
}

// unfence forgets the fence of a replica that was thrown away.
func (s *slot) unfence() {
	s.unfenced(s.id)
	if err := s.data.SetMeta(wal.Meta{Name: metaFenced}); err != nil {
		s.log.Warn("the fence is still written down", "err", err)
	}
}

// refetch fetches what a log lacks that others have trimmed; what it has
// beyond stays.
func (s *slot) refetch(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.fetch(ctx)
		if err == nil {
			return
		}
		_, changed := s.facts()
		s.postpone(ctx, err, changed)
	}
}

// watch blocks until the replica must go, and says why.
func (s *slot) watch(ctx context.Context, p *partition) ending {
	for {
		facts, changed := s.facts()
		heard := s.peers.next()
		if !s.wanted(facts) && s.removed() {
			return unwanted
		}
		if s.wanted(facts) {
			heard = nil
		}
		select {
		case <-ctx.Done():
			return stopping
		case <-p.group.Behind():
			return behind
		case <-s.rebuilds:
			return rebuilding
		case <-changed:
		case <-heard:
		}
	}
}

// removed reports whether the group's leader, on another node, has taken this
// replica out.
func (s *slot) removed() bool {
	name, r, ok := s.peers.leader(s.id, time.Now())
	if !ok || name == s.self {
		return false
	}
	_, member := r.Voters[s.self]
	return !member
}

// unserved says what keeps the slot from being served, "" if nothing does.
func (s *slot) unserved() string {
	facts, _ := s.facts()
	if !s.wanted(facts) {
		return ""
	}
	s.mu.Lock()
	p, doing := s.partition, s.doing
	s.mu.Unlock()
	if p == nil {
		return fmt.Sprintf("partition %d %s", s.id, doing)
	}
	return p.unserved()
}

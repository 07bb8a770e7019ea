package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// fencing keeps a replica out of its group while its log is wrong, or may be.
// See comparisons.
type fencing struct {
	partition  int
	self       string // this node
	log        *slog.Logger
	store      *wal.Log // holds why the replica is fenced
	digests    *digests
	tenure     *tenureEnd
	advise     func(event string, fields map[string]any)
	announce   func()           // has the announcement sent soon
	fail       func(error)      // stops the node
	background func(func())     // runs a function that Close waits for
	group      *raftstore.Group // set when opened is closed; nil if it could not be opened
	opened     <-chan struct{}

	interrupted bool // the node stopped before a rebuild that was ordered: set by load

	fenced      atomic.Pointer[string] // why the replica must not serve: its log differs from the others'
	halted      atomic.Pointer[string] // why it is halted: its log may be the wrong one
	reporter    atomic.Pointer[string] // the leader whose reports contradict its log
	comparisons comparisons
	shorter     shorterLog
}

// load reads whether the replica was fenced, or was to be rebuilt, when the
// node stopped. It returns why the replica is to be halted, nil if it is not.
func (f *fencing) load() error {
	why := f.store.Meta(metaFenced)
	f.interrupted = f.store.Meta(metaOrdered) != nil
	switch {
	case why != nil:
	case f.interrupted:
		why = []byte(toBeRebuilt)
	default:
		return nil
	}
	text := string(why)
	f.fenced.Store(&text)
	if f.diverged() {
		return fmt.Errorf("%w: %s", errFenced, text)
	}
	f.interrupted = true
	return nil
}

const (
	metaFenced  = raftstore.FencePrefix              // why the log is wrong
	metaOrdered = raftstore.FencePrefix + "/rebuild" // there if an operator has the replica rebuilt
)

var errFenced = errors.New("broker: replica is fenced")

// fence halts the replica durably: it neither votes nor leads nor acknowledges
// until an operator has it rebuilt.
func (f *fencing) fence(why string) {
	if !f.keepOut(why, true) {
		return
	}
	f.background(func() {
		if err := f.store.SetMeta(wal.Meta{Name: metaFenced, Value: []byte(why)}); err != nil {
			f.log.Warn("the fence is not written down", "err", err)
		}
	})
}

// orderRebuild fences the replica, if it is not fenced yet, so that its leader
// takes its vote and it can be rebuilt. Until then it votes and acknowledges,
// unless it is fenced because of its log. When orderRebuild returns nil, the
// order is durable: a node that stops goes on with the rebuild when it starts.
func (f *fencing) orderRebuild() error {
	if err := f.store.SetMeta(wal.Meta{Name: metaOrdered, Value: []byte(toBeRebuilt)}); err != nil {
		return err
	}
	f.keepOut(toBeRebuilt, false)
	return nil
}

// toBeRebuilt is why a replica is fenced that orderRebuild has fenced.
const toBeRebuilt = "an operator has it rebuilt"

// diverged reports whether the replica is fenced because of its log.
func (f *fencing) diverged() bool {
	why := f.fenced.Load()
	return why != nil && *why != toBeRebuilt
}

// keepOut fences the replica until its node stops. It returns false if it was
// fenced already.
func (f *fencing) keepOut(why string, halt bool) (done bool) {
	if !f.fenced.CompareAndSwap(nil, &why) {
		return false
	}
	<-f.opened
	if halt && f.group != nil {
		f.group.Halt(fmt.Errorf("%w: %s", errFenced, why))
	}
	f.log.Error("replica fenced: it stays out of its group until it is rebuilt from the others (cantus cluster rebuild); keep a copy of the data directory first: it may hold what they have lost", "because", why)
	f.advise("diverged", map[string]any{"partition": f.partition, "because": why})
	f.tenure.end(errFenced)
	return true
}

// barred returns why the replica's log must not be relied on, "" if it may: it
// is another one than the others', or may be.
func (f *fencing) barred() string {
	why := f.fenced.Load()
	if why == nil {
		why = f.halted.Load()
	}
	if why == nil {
		return ""
	}
	return *why
}

// compare compares the replica with another node's, and fences, halts or
// resumes it according to the result.
func (f *fencing) compare(name string, r groupReport) {
	status := f.group.Status()
	leads := r.leads() && r.Term >= status.Term
	if leads {
		if why := f.contradiction(name, r); why != "" {
			f.reporter.Store(&name)
			f.halt(why)
			return
		}
		f.reporter.Store(nil)
	}
	if r.Fenced != "" {
		f.comparisons.drop(name)
		return
	}
	result, txid := f.digests.compare(r.Digests)
	f.comparisons.set(name, comparedAt{result, txid})
	if result == nothing {
		return
	}
	leader := status.Leader
	if leads {
		leader = name
	}
	c := f.comparisons.count(f.self, leader, status.Replicas)
	if !invariant.DigestsEqual.Check(result != different, txid, txid) {
		f.log.Warn("replicas have different logs", "other", name, "txid", txid, "agree", c.agree, "differ", c.differ, "majority", c.majority)
	}
	switch {
	case c.differ >= c.majority:
		f.fence(fmt.Sprintf("its log differs from that of %s, and of %d of the %d voters that make a majority, at txid %d", c.other, c.differ, c.majority, c.txid))
	case c.leader && c.agree < c.majority:
		f.halt(fmt.Sprintf("its log differs from that of its leader %s at txid %d, and no majority of voters is there to say which of the two is wrong: "+
			"start the others", c.other, c.txid))
	case f.reporter.Load() == nil && (c.agree >= c.majority || c.differ == 0):
		f.resume()
	}
}

// contradiction returns why a report of the replica's leader contradicts the
// replica's log, "" if it does not.
func (f *fencing) contradiction(leader string, r groupReport) string {
	if why := r.Forgot[f.self]; why != "" {
		return fmt.Sprintf("its leader %s says that it has lost entries: %s", leader, why)
	}
	if had := f.digests.covered(); f.shorter.is(leader, r, had) {
		return fmt.Sprintf("its leader %s has committed the entries up to %d, and this replica had applied those up to %d before: "+
			"one of the nodes runs on an older copy of its data directory", leader, r.Commit, had)
	}
	return ""
}

// shorterLog recognizes a leader that lacks entries which this replica had
// applied before it was opened. A leader that serves has every committed entry.
// One that lacks some was elected with the vote of a node that has forgotten
// them. This replica has entries at the indexes of the leader's next ones: if
// the terms are equal, Raft takes the two for the same, and acknowledges
// entries that the replica does not have.
type shorterLog struct {
	mu     sync.Mutex
	leader string
	term   uint64
	times  int // in a row
}

// is reports whether a leader lacks entries up to had: two of its reports in a
// row must say so, since the first may be from before the replica applied them.
func (s *shorterLog) is(leader string, r groupReport, had uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.Serves || r.Commit >= had {
		s.times = 0
		return false
	}
	if s.leader != leader || s.term != r.Term {
		s.leader, s.term, s.times = leader, r.Term, 0
	}
	s.times++
	return s.times > 1
}

var errHalted = errors.New("broker: replica is halted")

// halt halts the replica until it is known whether its log is wrong.
func (f *fencing) halt(why string) {
	if f.fenced.Load() != nil || !f.halted.CompareAndSwap(nil, &why) {
		return
	}
	f.log.Error("replica halted: it may have lost or changed what was acknowledged", "because", why)
	f.advise("diverged", map[string]any{"partition": f.partition, "because": why})
	err := fmt.Errorf("%w: %s", errHalted, why)
	f.group.Halt(err)
	f.tenure.end(err)
}

// resume resumes a replica that halt has halted.
func (f *fencing) resume() {
	if why := f.halted.Swap(nil); why != nil && f.fenced.Load() == nil {
		f.log.Info("replica resumed: a majority of the voters has its log", "was", *why)
		f.group.Resume()
	}
}

// contradicted is called when the group has halted itself because of err.
func (f *fencing) contradicted(err error) {
	if errors.Is(err, raftstore.ErrTermBack) {
		f.fail(fmt.Errorf("partition %d: %w", f.partition, err))
		return
	}
	f.fence(err.Error())
}

// peerLostEntries is called when a member has lost entries that it had
// acknowledged. The leader sends it no more.
func (f *fencing) peerLostEntries(peer string, has, had uint64) {
	why := fmt.Sprintf("its newest entry is %d, and it had acknowledged %d", has, had)
	f.log.Error("a replica has lost entries that it had acknowledged, and gets no more: its data directory was put back to an older state; "+
		"remove the node, give it an empty directory and add it again", "peer", peer, "has", has, "had", had)
	f.advise("amnesia", map[string]any{"partition": f.partition, "member": peer, "because": why})
	f.announce()
}

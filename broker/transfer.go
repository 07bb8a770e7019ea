package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

// A transfer of leadership begins with request, which ends the tenure that is
// under way. runLeader then waits until every batch in flight is answered,
// while new messages wait in the queues, makes the transferee the leader and
// forwards the queues to it once it serves the partition. If the transfer
// fails, this node leads on, in a new tenure.

// transfer moves a partition's leadership from this node to another.
type transfer struct {
	partition int
	log       *slog.Logger
	group     *raftstore.Group
	peers     *peers
	tenure    *tenureEnd
	// electionTimeout is Options.ElectionTimeout.
	electionTimeout time.Duration
	failed          atomic.Int64 // when a transfer failed last, Unix nanoseconds
}

// tenureEnd ends the tenure that is under way, if there is one.
type tenureEnd struct {
	cancel atomic.Pointer[context.CancelCauseFunc]
	slots  atomic.Pointer[chan struct{}] // the sequencer's
}

func (s *tenureEnd) end(why error) {
	if cancel := s.cancel.Load(); cancel != nil {
		(*cancel)(why)
	}
}

// drainTime bounds the wait for what is in flight.
const drainTime = time.Second

var errInFlight = errors.New("what is in flight does not commit")

// drain waits until nothing is in flight, and lets no batch begin from then on.
// If that takes longer than drainTime, or until ctx ends, batches may begin
// again, and drain returns false.
func (s *tenureEnd) drain(ctx context.Context) bool {
	slots := s.slots.Load()
	if slots == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	for n := range cap(*slots) {
		select {
		case *slots <- struct{}{}:
		case <-ctx.Done():
			for range n {
				<-*slots
			}
			return false
		}
	}
	return true
}

// transferError ends a tenure whose leadership is to go to another node.
type transferError struct{ to string }

func (e transferError) Error() string { return "leadership is transferred to " + e.to }

// request ends the tenure that is under way so that its leadership goes to
// a node, unless such a transfer has just failed, or what is in flight does not
// commit: without a tenure the partition is not served.
func (t *transfer) request(ctx context.Context, to string) error {
	if since := time.Since(time.Unix(0, t.failed.Load())); since < transferPause {
		return fmt.Errorf("leadership could not be transferred %v ago", since.Round(time.Millisecond))
	}
	if to != "" && !t.group.Reachable(to) {
		return fmt.Errorf("node %s can't be reached, or takes no entries", to)
	}
	if !t.tenure.drain(ctx) {
		t.failed.Store(time.Now().UnixNano())
		return errInFlight
	}
	t.tenure.end(transferError{to})
	return nil
}

// transferTime bounds one transfer of leadership.
const transferTime = 2 * time.Second

// leadership makes a node the leader, or for "" the one that pickTransferee
// returns. It reports whether this node no longer leads.
func (t *transfer) leadership(to string) bool {
	if !t.group.Leading() {
		return true
	}
	if to == "" {
		to = t.pickTransferee()
	}
	if to == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), transferTime)
	defer cancel()
	err := t.group.Transfer(ctx, to)
	if err != nil {
		t.log.Warn("leadership was not transferred", "to", to, "err", err)
	}
	return err == nil
}

// pickTransferee returns the other living voter that has applied most, "" if
// there is none.
func (t *transfer) pickTransferee() (name string) {
	now := time.Now()
	best := uint64(0)
	for _, r := range t.group.Status().Replicas {
		g, there := t.peers.report(r.Name, t.partition, now)
		if there && r.Voter && t.peers.alive(r.Name, now) && g.Fenced == "" && g.Applied >= best {
			name, best = r.Name, g.Applied
		}
	}
	return name
}

// minNewLeaderTime is how long messages wait at least for the new leader to
// serve the partition. Where elections take longer, they wait for as long as
// one.
const minNewLeaderTime = 500 * time.Millisecond

// awaitNewLeader waits until another node says that it serves the partition,
// and reports whether one did in time.
func (t *transfer) awaitNewLeader() bool {
	patience := time.NewTimer(max(minNewLeaderTime, t.electionTimeout))
	defer patience.Stop()
	for {
		heard := t.peers.next()
		if _, r, ok := t.peers.leader(t.partition, time.Now()); ok && r.Serves && r.Term >= t.group.Status().Term {
			return true
		}
		select {
		case <-heard:
		case <-patience.C:
			return false
		}
	}
}

package broker

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/traces"
	"github.com/cantuslog/cantus/subjects"
)

// batch is a batch in flight: from the sequencer, which certifies and proposes
// it, through the responder to the publisher. It carries the requests that were
// certified together, those that did not pass included.
type batch struct {
	certification
	proposal proposal // nil if no request passed
	requests *requestArena
	decided  []earlyOutcome
	applied  applied
	release  func() // frees the batch's slots and its bytes in flight
	singles  int    // messages that carried one transaction
	batches  int    // messages that carried a batch

	received  time.Time // the oldest message
	certified time.Time // when certification began
	proposed  time.Time

	// tracer is nil unless any of the requests is traced. Then the times below
	// are set when the batch gets there.
	tracer             *traces.Tracer
	traced             []*traces.Append
	replied, published time.Time

	sessionsChecked bool
	noSessions      *subjects.Error // why it takes no transactions of sessions, nil if it does
	moves           bool            // any of the requests moves a cursor
	noMoves         *subjects.Error // why it takes none of these, nil if it does

	users atomic.Int32 // of requests: the responder and the publisher

	overdue   *time.Timer // answers the batch if it has no outcome in time
	answering sync.Mutex  // held while it is answered; guards answered
	answered  bool
}

// proposal is a batch on its way through the group. Wait is called once.
type proposal interface {
	Wait() (result any, err error)
}

// earlyOutcome is an outcome other than the request's own commit. If dependsOn
// is not 0, it holds only if that transaction, which is in flight, commits.
type earlyOutcome struct {
	r         *request
	outcome   outcome
	dependsOn uint64
}

// done releases the requests once every user of the batch has called it.
func (b *batch) done() {
	if b.users.Add(-1) == 0 {
		b.trace()
		b.requests.free()
	}
}

// trace has the spans of the requests that are traced made. Nothing happens to
// the batch any more.
func (b *batch) trace() {
	if b.tracer == nil {
		return
	}
	a := &b.applied
	b.tracer.Appends(traces.Batch{
		Passed: len(b.passed), Certified: b.certified, Proposed: b.proposed, Taken: a.taken, Synced: a.synced,
		Committed: a.begun, Applied: a.done, Answered: b.replied, Published: b.published,
	}, b.traced)
}

// number sets the txids and times of the transactions that passed.
func (b *batch) number() {
	for i, r := range b.passed {
		r.tx.Txid, r.tx.Time = b.first+uint64(i), b.time+int64(i)
	}
}

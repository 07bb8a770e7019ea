package broker

import (
	"log/slog"
	"math"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// outcomeIs is a proposal with a known outcome.
type outcomeIs struct {
	result applied
	err    error
}

func (o outcomeIs) Wait() (any, error) { return o.result, o.err }

// TestInvariantsOfAPartition makes each statement about a partition false, and
// each event occur.
func TestInvariantsOfAPartition(t *testing.T) {
	metrics := newMetrics().partition(0, newServiceStats())
	p := &responder{
		log: slog.New(slog.DiscardHandler), mark: func() uint64 { return 5 }, confirmLeader: func() bool { return false },
		metrics: &metrics, replies: &fakeConnection{}, limits: fakeNATS{}, term: 2,
		adviseAll: func(string, []byte, *subjects.Error) []byte { return nil },
	}
	decidedBy := func(o outcome, dependsOn uint64) *batch {
		requests := newRequestArena()
		return &batch{requests: requests, decided: []earlyOutcome{{requests.add("r"), o, dependsOn}}}
	}
	conflict := subjects.Errorf(subjects.Conflict, "x")
	conflict.Txid = 6
	for _, test := range []struct {
		breaks *invariant.Invariant
		by     func(t *testing.T)
	}{
		{invariant.TxidsDense, func(t *testing.T) {
			r := newTestReplica()
			first, second := certifyAppend(t, r, "a"), certifyAppend(t, r, "b")
			r.certifier.inFlight = []certifiedBatch{{data: first, count: 2}, {data: second}} // the second is counted with the first
			recordBatch(t, r, first)
		}},
		{invariant.TimesRise, func(*testing.T) {
			for _, at := range []int64{1000, 1000} {
				b := &batch{proposal: outcomeIs{applied{term: 2}, nil}, certification: certification{time: at, passed: []*request{nil}}}
				_ = p.await(b)
			}
		}},
		{invariant.TenureTerm, func(*testing.T) {
			_ = p.await(&batch{proposal: outcomeIs{applied{term: 1}, nil}, certification: certification{time: 2000, passed: []*request{nil}}})
		}},
		{invariant.AcknowledgedApplied, func(*testing.T) {
			p.checkAnswers(&batch{certification: certification{first: 6, passed: []*request{nil}}}, nil, 5)
		}},
		{invariant.CursorMoves, func(*testing.T) { newTestReplica().moveCursor(cursorMove{name: "c", owner: "session:s", txid: 1}) }},
		{invariant.DependencyCommitted, func(*testing.T) {
			p.checkAnswers(decidedBy(outcome{err: subjects.Errorf(subjects.WrongLast, "x")}, 6), nil, 5)
		}},
		{invariant.ConflictCommitted, func(*testing.T) { p.checkAnswers(decidedBy(outcome{err: conflict}, 0), nil, 5) }},
		{invariant.DuplicateCommitted, func(*testing.T) { p.checkAnswers(decidedBy(outcome{txid: 6, duplicate: true}, 0), nil, 5) }},
		{invariant.TenureBeginsEmpty, func(t *testing.T) {
			r := newTestReplica()
			certifyAppend(t, r, "a")
			r.certifier.inFlight = nil // forgotten, and still in the table
			r.certifier.rollback()
		}},
		{invariant.FirstTxidRises, func(*testing.T) {
			r := newTestReplica()
			r.first, r.trimPoints = 9, []trimPoint{{Base: wal.Base{Txid: 3}}}
			r.mark.Store(20)
			r.trim(5, 1)
		}},
		{invariant.TrimWithinLog, func(*testing.T) {
			r := newTestReplica()
			r.trimPoints = []trimPoint{{Base: wal.Base{Txid: 7}}} // of a log without transactions
			r.trim(8, 1)
		}},
		{invariant.FeedInOrder, func(*testing.T) {
			committed := make(chan *batch, 2)
			for _, first := range []uint64{4, 3} {
				b := &batch{requests: newRequestArena(), certification: certification{first: first, passed: []*request{}}}
				b.users.Store(1)
				committed <- b
			}
			close(committed)
			(&publisher{promotedAfter: func() uint64 { return 0 }, committed: committed, nats: fakeNATS{}, feeds: &fakeConnection{}, log: p.log}).run()
		}},
		{invariant.ReadWithinLog, func(t *testing.T) {
			var w wal.BatchWriter
			w.Begin(wal.Transactions, 1, 1000, 0)
			w.Add(&wal.Transaction{Kind: defaultKind})
			w.Add(&wal.Transaction{Kind: defaultKind})
			log := emptyLog(t)
			if err := log.Append(wal.Entry{Index: 1, Term: 1, Data: w.Finish()}); err != nil {
				t.Fatal(err)
			}
			a := readAnswer{reader: &reader{store: log, scans: semaphore.NewWeighted(1), indexer: &indexer{}}, next: 1, q: query{lock: "none", max: 9}}
			if err := a.scan(t.Context(), position{mark: 1, index: 1}); err != nil { // the mark is within the batch
				t.Fatal(err)
			}
		}},
		{invariant.FactsVersionRises, func(t *testing.T) {
			m := &meta{identity: fuzzIdentity(t), changed: make(chan struct{})}
			m.facts = cluster.Bootstrap(map[string]string{"n1": "id1"}, 1, 1)
			m.facts.Version = math.MaxUint64
			m.Apply([]raftstore.Committed{{Index: 1, Data: encodeCommand(cluster.Command{Kind: cluster.Place, Version: math.MaxUint64})}})
		}},
		{invariant.BatchVoided, func(t *testing.T) {
			r := newPartitionState(emptyLog(t), testStateOptions, time.Now, func(err error) { t.Error(err) }, &digests{})
			r.Apply([]raftstore.Committed{{Index: 1, Term: 9, Data: fuzzBatch(1, 1, "a")}})
		}},
		{invariant.DependencyLost, func(*testing.T) {
			p.broken.Store(true)
			defer p.broken.Store(false)
			p.reply(decidedBy(outcome{err: conflict}, 6), nil)
		}},
		{invariant.LeadershipUnconfirmed, func(*testing.T) {
			p.verify(decidedBy(outcome{err: subjects.Errorf(subjects.Ahead, "x")}, 0), 5)
		}},
	} {
		t.Run(test.breaks.Name(), func(t *testing.T) {
			testkit.Violates(t, test.breaks)
			test.by(t)
		})
	}
}

package broker

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"sync"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/traces"
	"github.com/cantuslog/cantus/subjects"
)

// tenure serves a partition for one leader epoch: from the barrier at its
// beginning until leadership is lost or transferred, a proposal fails, or the
// replica closes. It has three goroutines, each a stage of its own:
//
//   - The sequencer takes messages off the queue, decodes and certifies their
//     transactions, and proposes those that pass as one batch. It blocks on the
//     queue, on the limits of batches in flight, the partition's own and the
//     node's, and on raft while that has many proposals waiting. While disks
//     are full, the partition is being restored or a late batch has no outcome
//     yet, it waits for none of these: it rejects messages at once, and blocks
//     on the connection to the NATS server as it replies.
//   - The responder takes batches in order, waits until each is committed and
//     applied, and replies. It blocks on the proposal, on the connection to the
//     NATS server, for at most two seconds on a majority that confirms the
//     leader before some refusals, on the goroutine that answers a late batch,
//     and, once the replies are sent, on its channel to the publisher.
//   - The publisher takes committed batches in order and publishes their
//     transactions on the feed. It blocks on its own connection, so slow
//     subscribers delay replies only when maxInflight batches are waiting for
//     it.
//
// A message whose high-water mark is older than what the certifier remembers
// leaves the sequencer: a goroutine beside the tenure searches the log for it
// (see logChecker), and puts it in the queue again.
//
// Raft's apply goroutine meets them in two mutexes alone: the certifier's, and
// the partitionState's, which the responder takes to read the high-water mark.
//
// When ctx ends, the sequencer stops taking messages and closes its channel;
// what is left in the queue is left to the replica to forward or reject. Every
// batch that was proposed goes on: raft reports an outcome for each proposal,
// even if only that it is unknown, and the responder replies with it and closes
// its channel behind the last. If an outcome takes longer than outcomeTime, the
// batch is late: its requests are answered as unknown on a goroutine of their
// own, and the sequencer rejects messages until the outcome is there. If an
// outcome is not a commit, the responder ends the tenure itself, and from then
// on rejects refusals that depended on a transaction in flight. The next
// tenure begins with a rollback of whatever is still in the certifier.
type tenure struct {
	sequencer sequencer
	responder responder
	publisher publisher
}

// maxInflight is how many batches of a partition may be in flight, from the
// proposal to the outcome. A recovery derives from it what was committed: see
// survivingEnd.
const maxInflight = 5

// tenureConfig lists what a tenure is given.
type tenureConfig struct {
	id         int // the partition, by the cluster's numbers
	partition  int // as clients see it
	partitions int // how many they see
	names      subjects.Names
	term       uint64 // in which this node leads
	log        *slog.Logger
	metrics    *partitionMetrics
	stages     stageMetrics

	tracer    *traces.Tracer // nil for none
	queue     *queue
	certifier *certifier
	cursors   *cursorOrder
	inflight  *inflightLimit
	propose   func(data []byte) proposal
	// checkLog has the log searched for a message.
	checkLog func(*natslink.Message)
	// rejected returns why no transaction can be stored now, nil if it can.
	rejected func() error
	// refusesRecords returns why no records of a version can be stored now, nil
	// if they can.
	refusesRecords func(version int) *subjects.Error
	// countRefused is told how many transactions were rejected with an error.
	countRefused func(e *subjects.Error, n int)
	// mark returns the high-water mark.
	mark func() uint64
	// promotedAfter is that of a publisher.
	promotedAfter func() uint64
	// confirmLeader reports whether a majority confirms that this node leads.
	confirmLeader func() bool
	// end ends the tenure because of an error.
	end func(error)
	// setLate is called when batches in flight begin or cease to have been
	// answered without an outcome.
	setLate func(late bool)

	nats    natsInfo
	replies transmitter
	feeds   transmitter
	feedKey ed25519.PrivateKey
	// adviseRefused returns the advisory for a refusal that has no reply
	// subject.
	adviseRefused func(endpoint string, msgID []byte, e *subjects.Error) []byte
	// adviseAll returns the advisory for a refusal, whether or not it has a
	// reply subject, nil for none.
	adviseAll func(endpoint string, msgID []byte, e *subjects.Error) []byte
}

func newTenure(c tenureConfig) *tenure {
	certified, committed := make(chan *batch, maxInflight), make(chan *batch, maxInflight)
	s := &tenure{
		sequencer: sequencer{
			id: c.id, partition: c.partition, partitions: c.partitions, names: c.names, term: c.term,
			direct: c.names.Append(c.partition), batchSubject: c.names.Batch(c.partition),
			queue: c.queue, certifier: c.certifier, cursors: c.cursors, inflight: c.inflight, propose: c.propose, checkLog: c.checkLog, rejected: c.rejected, refusesRecords: c.refusesRecords, countRefused: c.countRefused,
			limits: c.nats, certified: certified, slots: make(chan struct{}, maxInflight), tracer: c.tracer,
		},
		publisher: publisher{
			partition: c.partition, names: c.names, packed: c.names.PackedFeed(c.partition), log: c.log,
			enc: encoder{partition: c.partition, names: c.names}, key: c.feedKey,
			nats: c.nats, feeds: c.feeds, metrics: c.metrics, promotedAfter: c.promotedAfter, committed: committed,
		},
		responder: responder{
			partition: c.partition, term: c.term, log: c.log, metrics: c.metrics, stages: c.stages,
			mark: c.mark, confirmLeader: c.confirmLeader, end: c.end, setLate: c.setLate, limits: c.nats, replies: c.replies,
			adviseRefused: c.adviseRefused, adviseAll: c.adviseAll, certified: certified, committed: committed,
		},
	}
	s.responder.followed = s.publisher.followed
	s.sequencer.replyRejected, s.sequencer.answerLate, s.sequencer.late = s.responder.replyRejected, s.responder.answerLate, &s.responder.late
	return s
}

// start runs the stages until ctx has ended and every batch is answered.
func (s *tenure) start(ctx context.Context, running *sync.WaitGroup) {
	running.Go(func() { s.sequencer.run(ctx) })
	running.Go(s.responder.run)
	running.Go(s.publisher.run)
}

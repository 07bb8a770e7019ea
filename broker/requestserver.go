package broker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// requestServer serves the requests to a partition that are not appends: it
// starts the handler of each, sends the answer, and turns an error into a
// refusal.
type requestServer struct {
	partition int
	names     subjects.Names
	log       *slog.Logger
	metrics   *partitionMetrics
	position  func() position
	start     func(serve func()) error // runs a handler on a goroutine, within the node's limit
	answers   transmitter              // of handlers
	refusals  outbox                   // of requests whose handler was not started
	term      func() uint64            // of the newest reads; see replica.readTerm
	group     *raftstore.Group
}

// readsAtOnce bounds the reads that the node serves at a time, those that wait
// at the end of a log included.
const readsAtOnce = 4096

var errTooManyReads = errors.New("broker: too many reads")

// handler returns a function that serves each message on a goroutine of its
// own.
func (s *requestServer) handler(ctx context.Context, serve func(context.Context, *natslink.Message) error) func(*natslink.Message) {
	return func(m *natslink.Message) {
		if m.Reply == "" {
			return // there is nowhere to send the answer
		}
		err := s.start(func() {
			began := time.Now()
			defer func() { s.metrics.answered(endpoint(s.names, m.Subject), 1, time.Since(began)) }()
			term := s.term()
			switch err := serve(ctx, m); {
			case errors.Is(err, errNoSubscriber): // nor is there one for a refusal
			case err != nil:
				s.answer(s.refuse(m, s.confirmRefusal(term, s.wireError(err))))
			}
		})
		if err != nil {
			s.refusals.Enqueue(s.refuse(m, s.wireError(err)))
		}
	}
}

// confirmRefusal returns refused, but turns `ahead` into `unavailable` unless a
// majority confirms that this node still leads in term.
func (s *requestServer) confirmRefusal(term uint64, refused *subjects.Error) *subjects.Error {
	if refused.Reason == subjects.Ahead && !s.confirmLeader(term) {
		return notConfirmedError(s.partition)
	}
	return refused
}

// wireError returns an error of a request as clients see it.
func (s *requestServer) wireError(err error) *subjects.Error {
	switch {
	case errors.Is(err, errNotTaken):
		return subjects.Errorf(subjects.Busy,
			"the connection that the answer goes to takes nothing: it is too far behind with what was sent to it before")
	case errors.Is(err, errTooManyReads):
		return subjects.Errorf(subjects.Busy, "the node serves %d reads already: back off and try again", readsAtOnce)
	case errors.Is(err, errScansBusy):
		return subjects.Errorf(subjects.Busy, "too many reads go through the node's logs: back off and try again")
	case errors.Is(err, context.Canceled):
		return subjects.Errorf(subjects.Unavailable, "this node does not serve partition %d any more: try again", s.partition)
	case errors.Is(err, errArchiveBusy):
		return subjects.Errorf(subjects.Busy, "%d reads are answered from the archive already: back off and try again", archiveReads)
	case errors.Is(err, wal.ErrTrimmed):
		first := s.position().first
		e := subjects.Errorf(subjects.Trimmed, "that transaction was trimmed: the oldest one kept is %d", first)
		e.FirstTxid = first
		return e
	}
	if missing, ok := errors.AsType[*notArchivedError](err); ok {
		return missing.refusal(s.position().first)
	}
	e := wireError(err)
	if e.Reason == subjects.Internal {
		s.log.Error("read failed", "err", err)
	}
	return e
}

func (s *requestServer) refuse(m *natslink.Message, e *subjects.Error) []byte {
	s.metrics.refused(endpoint(s.names, m.Subject), e.Reason)
	return appendRefusal(nil, m.Reply, e, map[string]any{
		"partition": s.partition, "error": e, "high_water_mark": s.position().mark,
	})
}

func (s *requestServer) answer(out []byte) {
	if err := s.answers.Send(out); err != nil {
		s.log.Debug("answer not sent", "err", err)
	}
}

// confirmLeader reports whether a majority confirms that this node still leads
// in a term. Only then does it know where the log ends: a leader that was
// paused does not know what others have committed since, and clients take
// `ahead` as final.
func (s *requestServer) confirmLeader(term uint64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), confirmTime)
	defer cancel()
	return s.group.VerifyLeader(ctx, term) == nil
}

// confirmTime bounds the wait for a majority's confirmation.
const confirmTime = 2 * time.Second

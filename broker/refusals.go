package broker

import (
	"strings"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

func busyError(partition int) *subjects.Error {
	return subjects.Errorf(subjects.Busy, "partition %d has too many requests waiting: back off and try again", partition)
}

// refusals refuses messages of a partition as a whole: those that its queues
// have no room for, and those that this node does not serve.
type refusals struct {
	face           *face          // of the partition
	outer          subjects.Names // the cluster's, under which a partition of a namespace has cursors too
	partition      int            // by the cluster's numbers
	metrics        *partitionMetrics
	outbox         outbox
	encodeAdvisory func(names subjects.Names, event string, fields map[string]any) []byte
	// mark returns the high-water mark. It takes no lock: messages are refused
	// on the goroutine that reads those of all partitions, and the lock of a
	// partition's state is held for long while a large batch is applied.
	mark      func() uint64
	busyReply busyReply // when a queue is full
	conflicts conflictAdvice
}

// rejectBusy replies to a message that the queue has no room for.
func (r *refusals) rejectBusy(m *natslink.Message) {
	names, number := r.seen(m.Subject)
	if m.Reply == "" || number != r.face.number {
		r.outbox.Enqueue(r.refuse(m, busyError(number)))
		return
	}
	r.metrics.refused(endpoint(names, m.Subject), r.busyReply.reason)
	r.outbox.Enqueue(r.busyReply.append(nil, m.Reply, r.mark()))
}

// rejectUnavailable replies to messages that this node does not serve.
func (r *refusals) rejectUnavailable(ms []*natslink.Message) {
	for _, m := range ms {
		_, number := r.seen(m.Subject)
		r.reject(m, subjects.Errorf(subjects.Unavailable, "this node does not serve partition %d any more: try again", number))
	}
}

// reject replies to a message with a refusal.
func (r *refusals) reject(m *natslink.Message, e *subjects.Error) { r.outbox.Enqueue(r.refuse(m, e)) }

// seen returns the names that a request's subject is one of, and the
// partition's number there.
func (r *refusals) seen(subject string) (subjects.Names, int) {
	if under(r.face.names, subject) {
		return r.face.names, r.face.number
	}
	return r.outer, r.partition
}

// refuse returns the commands that refuse a message as a whole.
func (r *refusals) refuse(m *natslink.Message, e *subjects.Error) []byte {
	names, number := r.seen(m.Subject)
	endpoint := endpoint(names, m.Subject)
	r.metrics.refused(endpoint, e.Reason)
	if m.Reply == "" {
		return r.advisory(endpoint, msgID(m.Header), e)
	}
	mark := r.mark()
	return appendRefusal(nil, m.Reply, e, subjects.Reply{Partition: number, Error: e, HighWaterMark: &mark})
}

// endpoint returns the name that discovery has for the endpoint of a request's
// subject.
func endpoint(names subjects.Names, subject string) string {
	rest := subject[len(names.Prefix)+1:]
	verb, _, _ := strings.Cut(rest, ".")
	switch verb {
	case "info":
		return "partition_info"
	case "replica":
		return "replica_read"
	}
	return verb
}

// msgID returns the message id in a header block that was not decoded.
func msgID(header []byte) (id []byte) {
	_ = subjects.ScanBlock(header, func(key, value []byte) error {
		if string(key) == subjects.HeaderMsgID {
			id = value
		}
		return nil
	})
	return id
}

// advisory returns the advisory for a refusal that has no reply subject.
func (r *refusals) advisory(endpoint string, msgID []byte, e *subjects.Error) []byte {
	fields := map[string]any{"partition": r.face.number, "endpoint": endpoint, "error": e}
	if len(msgID) > 0 {
		fields["msg_id"] = string(msgID)
	}
	return r.encodeAdvisory(r.face.names, "refused", fields)
}

// trailing returns the last token of a subject.
func trailing(subject string) string {
	for i := len(subject) - 1; i >= 0; i-- {
		if subject[i] == '.' {
			return subject[i+1:]
		}
	}
	return subject
}

// notConfirmedError refuses a request that is ahead of the log, or would be if
// this node still led, which no majority confirms.
func notConfirmedError(partition int) *subjects.Error {
	return subjects.Errorf(subjects.Unavailable, "this node may not lead partition %d any more: nothing was done, try again", partition)
}

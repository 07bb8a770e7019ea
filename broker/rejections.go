package broker

import (
	"context"
	"strings"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

func busyError(partition int) *subjects.Error {
	return subjects.Errorf(subjects.Busy, "partition %d has too many requests waiting: back off and try again", partition)
}

// rejectBusy replies to a message that the queue has no room for. It takes no lock
// that is held for long, as the replica's is while a large batch is applied.
func (p *partition) rejectBusy(m *natslink.Message) {
	if m.Reply == "" {
		p.host.sender.Send(p.refuse(m, busyError(p.id)))
		return
	}
	p.metrics.refused(p.endpoint(m), p.busyReply.reason)
	p.host.sender.Send(p.busyReply.append(nil, m.Reply, p.replica.mark.Load()))
}

// rejectUnavailable replies to messages that this node does not serve.
func (p *partition) rejectUnavailable(ms []*natslink.Message) {
	for _, m := range ms {
		p.host.sender.Send(p.refuse(m, subjects.Errorf(subjects.Unavailable,
			"this node does not serve partition %d any more: try again", p.id)))
	}
}

// refuse returns the commands that refuse a message as a whole.
func (p *partition) refuse(m *natslink.Message, e *subjects.Error) []byte {
	endpoint := p.endpoint(m)
	p.metrics.refused(endpoint, e.Reason)
	if m.Reply == "" {
		return p.adviseRefused(endpoint, msgID(m.Header), e)
	}
	mark := p.replica.position().mark
	return appendRefusal(nil, m.Reply, e, subjects.Reply{Partition: p.id, Error: e, HighWaterMark: &mark})
}

// endpoint returns the name that discovery has for the endpoint that received m.
func (p *partition) endpoint(m *natslink.Message) string {
	rest := m.Subject[len(p.host.names.Prefix)+1:]
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

// adviseRefused returns the advisory for a refusal that has no reply subject.
func (p *partition) adviseRefused(endpoint string, msgID []byte, e *subjects.Error) []byte {
	fields := map[string]any{"partition": p.id, "endpoint": endpoint, "error": e}
	if len(msgID) > 0 {
		fields["msg_id"] = string(msgID)
	}
	return p.host.encodeAdvisory("refused", fields)
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

// confirmLeader reports whether a majority confirms that this node still leads in a
// term. Only then does it know where the log ends: a leader that was paused does not
// know what others have committed since, and clients take `ahead` as final.
func (p *partition) confirmLeader(term uint64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), confirmTime)
	defer cancel()
	return p.group.VerifyLeader(ctx, term) == nil
}

// confirmTime bounds the wait for a majority's confirmation.
const confirmTime = 2 * time.Second

// notConfirmedError refuses a request that is ahead of the log, or would be if this
// node still led, which no majority confirms.
func notConfirmedError(partition int) *subjects.Error {
	return subjects.Errorf(subjects.Unavailable, "this node may not lead partition %d any more: nothing was done, try again", partition)
}

package broker

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// cursorList answers requests for the cursors of a partition.
type cursorList struct {
	partition int
	state     *partitionState
	group     *raftstore.Group
	term      func() uint64 // see replica.readTerm
	nats      natsInfo
	requests  *requestServer
}

// serve lists cursors. Like a cursor that is read, they are the latest: a
// majority has confirmed the leader since the question.
func (l *cursorList) serve(ctx context.Context, m *natslink.Message) error {
	r, err := parseCursorsRequest(m.Payload)
	if err != nil {
		return err
	}
	if err := l.group.VerifyLeader(ctx, l.term()); err != nil {
		return err
	}
	if l.state.position().restoring {
		return errRestoring(l.partition)
	}
	l.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(l.list(r, l.nats.MaxPayload()))))
	return nil
}

func parseCursorsRequest(body []byte) (r subjects.CursorsRequest, err error) {
	var given struct {
		After *string `json:"after"`
		Max   *int    `json:"max"`
	}
	if err := smallJSON(body, &given); err != nil {
		return r, err
	}
	r.Max = subjects.MaxCursorList
	if given.Max != nil {
		if r.Max = *given.Max; r.Max < 1 || r.Max > subjects.MaxCursorList {
			return r, subjects.Errorf(subjects.BadRequest, "max is %d: 1 to %d is allowed", r.Max, subjects.MaxCursorList)
		}
	}
	if given.After != nil {
		if err := subjects.CheckCursor(*given.After); err != nil {
			return r, err
		}
		r.After = *given.After
	}
	return r, nil
}

// cursorListRoom is an upper bound of a list's size beside its cursors, Next
// included.
const cursorListRoom = 512

// list returns the cursors that r asks for, as many as fit into a message of
// most bytes, and at least one.
func (l *cursorList) list(r subjects.CursorsRequest, most int) subjects.CursorsReply {
	l.state.mu.Lock()
	cursors := maps.Clone(l.state.cursors)
	reply := subjects.CursorsReply{Partition: l.partition, Cursors: []subjects.CursorPosition{}, HighWaterMark: l.state.mark.Load()}
	l.state.mu.Unlock()
	room := most - cursorListRoom
	for _, name := range slices.Sorted(maps.Keys(cursors)) {
		if name <= r.After {
			continue
		}
		at := cursors[name]
		c := subjects.CursorPosition{Name: name, Txid: at.Txid, Time: time.Unix(0, at.Time).UTC(), Owner: at.Owner}
		room -= len(mustJSON(c)) + 1
		if n := len(reply.Cursors); n == r.Max || n > 0 && room < 0 {
			reply.Next = reply.Cursors[n-1].Name
			break
		}
		reply.Cursors = append(reply.Cursors, c)
	}
	return reply
}

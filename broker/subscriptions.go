package broker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// subscribed is a subscription and the connection that it is on.
type subscribed struct {
	link connection
	id   int
}

// subscribe subscribes to the partition's requests, and returns once the NATS
// server has all subscriptions, or with those that it has and an error.
func (r *replica) subscribe(ctx context.Context) ([]subscribed, error) {
	h, f := &r.host, &r.face
	var all []subscribed
	wanted := slices.Concat(r.readSubjects(ctx, &r.view, h.names, r.id), []subscription{
		{h.appends, f.names.Append(f.number), r.onAppend},
		{h.appends, f.names.KeyedAppend(f.number, "*"), r.onAppend},
		{h.appends, f.names.Batch(f.number), r.onAppend},
		{h.reads, h.names.Admin("batches", label(r.id)), r.requests.handler(ctx, r.reader.serveBatches)},
		{h.reads, h.names.Admin("trim", label(r.id)), r.requests.handler(ctx, r.trimmer.serve)},
		{h.reads, h.names.Admin("retention", label(r.id)), r.requests.handler(ctx, r.retainer.serve)},
		{h.reads, h.names.Admin("restore", label(r.id)), r.requests.handler(ctx, r.restorer.serve)},
	})
	if f.part.Namespace != "" {
		wanted = append(wanted, r.readSubjects(ctx, &r.faced, f.names, f.number)...)
	}
	for _, s := range wanted {
		// A queue group: while an old leader does not know of the new one, a
		// request must reach only one of the two, or "nothing was done" could be
		// said of what the other one did.
		id, err := s.link.Subscribe(s.subject, h.queueGroup, s.handle)
		if err != nil {
			return all, err
		}
		all = append(all, subscribed{s.link, id})
	}
	for _, l := range []connection{h.appends, h.reads} {
		var ids []int
		for _, s := range all {
			if s.link == l {
				ids = append(ids, s.id)
			}
		}
		if err := l.Confirm(ctx, ids...); err != nil {
			return all, err
		}
	}
	return all, nil
}

// subscription is what a leader subscribes to.
type subscription struct {
	link    connection
	subject string
	handle  func(*natslink.Message)
}

// readSubjects returns the subscriptions to the requests that are not appends.
func (r *replica) readSubjects(ctx context.Context, v *view, names subjects.Names, number int) []subscription {
	reads := r.host.reads
	return []subscription{
		{reads, names.Read(number), v.requests.handler(ctx, v.reader.serveRead)},
		{reads, names.Get(number), v.requests.handler(ctx, v.reader.serveGet)},
		{reads, names.PartitionInfo(number), v.requests.handler(ctx, v.info.serve)},
		{reads, names.Cursor(number, "*"), r.cursors.onRequest},
		{reads, names.Cursors(number), v.requests.handler(ctx, v.cursorList.serve)},
	}
}

// subscribeAll retries subscribe until the NATS server takes every
// subscription. In the meantime the partition is not served in part, and
// leadership goes to another node if one is there.
func (r *replica) subscribeAll(ctx context.Context) ([]subscribed, error) {
	defer r.refused.Store(nil)
	for {
		all, err := r.subscribe(ctx)
		refused, is := errors.AsType[natslink.RefusedError](err)
		if !is {
			return all, err
		}
		r.refused.Store(&refused)
		unsubscribeAll(all, r.log)
		if to := r.transfer.pickTransferee(); to != "" && r.transfer.request(ctx, to) == nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(natslink.RetryInterval):
		}
	}
}

// unsubscribe ends the subscriptions to the partition's requests.
func (r *replica) unsubscribe() {
	unsubscribeAll(r.subscribed, r.log)
	r.subscribed = nil
}

// unsubscribeTime bounds the wait for the NATS server to end subscriptions.
const unsubscribeTime = 5 * time.Second

// unsubscribeAll ends subscriptions. Messages that were sent to them by then
// are still received, so that they are forwarded or rejected, and not lost.
func unsubscribeAll(all []subscribed, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), unsubscribeTime)
	defer cancel()
	ids := map[connection][]int{}
	for _, s := range all {
		ids[s.link] = append(ids[s.link], s.id)
	}
	for l, ids := range ids {
		if err := l.Unsubscribe(ctx, ids...); err != nil {
			log.Debug("unsubscribe", "err", err)
		}
	}
}

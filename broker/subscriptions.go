package broker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// subscribed is a subscription and the connection that it is on.
type subscribed struct {
	link connection
	id   int
}

// subscribe subscribes to the partition's requests, and returns once the NATS
// server has all subscriptions, or with those that it has and an error.
func (p *partition) subscribe(ctx context.Context) ([]subscribed, error) {
	h := &p.host
	var all []subscribed
	for _, s := range []struct {
		link    connection
		subject string
		handle  func(*natslink.Message)
	}{
		{h.appends, h.names.Append(p.id), p.onAppend},
		{h.appends, h.names.KeyedAppend(p.id, "*"), p.onAppend},
		{h.appends, h.names.Batch(p.id), p.onAppend},
		{h.reads, h.names.Read(p.id), p.requests.handler(ctx, p.reader.serveRead)},
		{h.reads, h.names.Get(p.id), p.requests.handler(ctx, p.reader.serveGet)},
		{h.reads, h.names.PartitionInfo(p.id), p.requests.handler(ctx, p.info.serve)},
		{h.reads, h.names.Cursor(p.id, "*"), p.cursors.onRequest},
		{h.reads, h.names.Cursors(p.id), p.requests.handler(ctx, p.cursorList.serve)},
		{h.reads, h.names.Admin("batches", label(p.id)), p.requests.handler(ctx, p.reader.serveBatches)},
		{h.reads, h.names.Admin("trim", label(p.id)), p.requests.handler(ctx, p.trimmer.serve)},
		{h.reads, h.names.Admin("retention", label(p.id)), p.requests.handler(ctx, p.retainer.serve)},
		{h.reads, h.names.Admin("restore", label(p.id)), p.requests.handler(ctx, p.restorer.serve)},
	} {
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

// subscribeAll retries subscribe until the NATS server takes every
// subscription. In the meantime the partition is not served in part, and
// leadership goes to another node if one is there.
func (p *partition) subscribeAll(ctx context.Context) ([]subscribed, error) {
	defer p.refused.Store(nil)
	for {
		all, err := p.subscribe(ctx)
		refused, is := errors.AsType[natslink.RefusedError](err)
		if !is {
			return all, err
		}
		p.refused.Store(&refused)
		unsubscribeAll(all, p.log)
		if to := p.transfer.pickTransferee(); to != "" && p.transfer.request(ctx, to) == nil {
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
func (p *partition) unsubscribe() {
	unsubscribeAll(p.subscribed, p.log)
	p.subscribed = nil
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

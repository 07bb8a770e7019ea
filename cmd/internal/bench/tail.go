package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// reader sees what the workers of its round append.
type reader interface {
	// catchUp waits until it has seen so many transactions since it was made,
	// or none have come for a while: a feed may miss some.
	catchUp(total uint64)
	// answered says that the answer to what was sent, or due, at sent came.
	answered(sent, now int64)
	close()
}

// tailReader notes how long after it was sent, and how long after its answer, each
// transaction came, from the time in its payload.
type tailReader struct {
	counts *meter
	seen   atomic.Uint64
	stop   func()

	mu sync.Mutex
	// first is when the first of two things happened, a transaction's answer and
	// its arrival here, by when it was sent. Two sent at one moment, on different
	// connections, are taken for one another.
	first map[int64]int64
}

// patience is how long nothing may come before a reader gives the rest up.
const patience = 500 * time.Millisecond

func newTailReader(at seat) *tailReader {
	return &tailReader{counts: newMeter(at.clock, at.tally), stop: func() {}, first: map[int64]int64{}}
}

func (r *tailReader) handle(payload []byte) {
	sent, now := stamp(payload), r.counts.clock.now()
	r.counts.took(deliveryOp, sent, now)
	if answered, second := r.meet(sent, now); second {
		r.counts.lasted(afterOp, sent, answered, now)
	}
	r.seen.Add(1)
}

func (r *tailReader) answered(sent, now int64) {
	if _, second := r.meet(sent, now); second {
		r.counts.lasted(afterOp, sent, now, now)
	}
}

// meet notes an event, and gives when the other one was if it was before.
func (r *tailReader) meet(sent, now int64) (before int64, second bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before, second = r.first[sent]; second {
		delete(r.first, sent)
	} else {
		r.first[sent] = now
	}
	return before, second
}

func (r *tailReader) catchUp(total uint64) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	before, since := r.seen.Load(), time.Now()
	for r.seen.Load() < total && time.Since(since) < patience {
		<-tick.C
		if now := r.seen.Load(); now != before {
			before, since = now, time.Now()
		}
	}
}

func (r *tailReader) close() { r.stop() }

// newFeedReader takes the feed of every partition, with plain NATS.
func newFeedReader(at seat, names subjects.Names, partitions int) (reader, error) {
	nc, err := connect(at.url, at.fail)
	if err != nil {
		return nil, err
	}
	r := newTailReader(at)
	r.stop = nc.Close
	for p := range partitions {
		sub, err := nc.Subscribe(names.Feed(p, ">"), func(m *nats.Msg) { r.handle(m.Data) })
		if err == nil {
			err = sub.SetPendingLimits(-1, -1)
		}
		if err != nil {
			nc.Close()
			return nil, fmt.Errorf("subscribe to the feed: %w", err)
		}
	}
	if err := nc.Flush(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("subscribe to the feed: %w", err)
	}
	return r, nil
}

// newFollowReader follows every partition with the Go client.
func newFollowReader(at seat, prefix string, marks []uint64) (reader, error) {
	nc, err := connect(at.url, at.fail)
	if err != nil {
		return nil, err
	}
	cl, err := client.New(nc, client.Options{Prefix: prefix})
	if err != nil {
		nc.Close()
		return nil, err
	}
	r := newTailReader(at)
	after := client.Positions{}
	for p, mark := range marks {
		after[p] = mark
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := cl.Follow(ctx, after, func(_ context.Context, tx *client.Transaction) error {
			r.handle(tx.Payload)
			return nil
		}, client.FollowOptions{})
		if ctx.Err() == nil {
			at.fail(fmt.Errorf("follow: %w", err))
		}
	}()
	r.stop = func() {
		cancel()
		<-ended
		_ = cl.Close()
		nc.Close()
	}
	return r, nil
}

// newStreamTail takes what comes to each stream with an ordered consumer.
func newStreamTail(at seat, st *streams, push bool) (reader, error) {
	r := newTailReader(at)
	var stops []func()
	r.stop = func() {
		for _, stop := range stops {
			stop()
		}
	}
	for _, name := range st.names {
		c, err := newConsumption(at.url, name, push, true)
		if err == nil {
			stops = append(stops, c.nc.Close)
			var stop func()
			if stop, err = c.consume(context.Background(), r.handle); err == nil {
				stops = append([]func(){stop}, stops...)
			}
		}
		if err != nil {
			r.stop()
			return nil, err
		}
	}
	return r, nil
}

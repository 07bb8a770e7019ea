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

// reader receives the transactions that the workers of its round append.
type reader interface {
	// catchUp waits until it has received total transactions, or none for a
	// while: a feed may miss some.
	catchUp(total uint64)
	// answered is called when an answer arrives to a request sent, or due, at
	// sent.
	answered(sent, now int64)
	close()
}

// tailReader measures how long after it was sent, and after its answer, each
// transaction arrived, by the time in its payload.
type tailReader struct {
	counts *counters
	seen   atomic.Uint64
	stop   func()

	mu sync.Mutex
	// first is, by the time when a transaction was sent, the time of the first
	// of two events: its answer, and its arrival here. Two that were sent at
	// the same nanosecond on different connections are confused.
	first map[int64]int64
}

// patience is how long nothing may come before a reader gives the rest up.
const patience = 500 * time.Millisecond

func newTailReader(at workerConfig) *tailReader {
	return &tailReader{counts: newCounters(at.clock, at.tally), stop: func() {}, first: map[int64]int64{}}
}

func (r *tailReader) handle(payload []byte) {
	sent, now := stamp(payload), r.counts.clock.now()
	r.counts.addLatency(deliveryOp, sent, now)
	if answered, second := r.pair(sent, now); second {
		r.counts.addLatencyFrom(afterOp, sent, answered, now)
	}
	r.seen.Add(1)
}

func (r *tailReader) answered(sent, now int64) {
	if _, second := r.pair(sent, now); second {
		r.counts.addLatencyFrom(afterOp, sent, now, now)
	}
}

// pair records an event, and returns the time of the other one if that was
// before.
func (r *tailReader) pair(sent, now int64) (before int64, second bool) {
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

// newFeedReader subscribes to the feed of every partition, with plain NATS.
func newFeedReader(at workerConfig, names subjects.Names, partitions int) (reader, error) {
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
func newFollowReader(at workerConfig, prefix string, marks []uint64) (reader, error) {
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

// newStreamTail reads new messages of each stream with an ordered consumer.
func newStreamTail(at workerConfig, st *streams, push bool) (reader, error) {
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

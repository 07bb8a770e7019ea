package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// load is the writers, and the known revisions of the keys.
type load struct {
	options   *options
	clients   []*clientv3.Client
	revisions []atomic.Int64 // by key, 0 if it was never put
}

func newLoad(o *options, c *cluster) (*load, error) {
	l := &load{options: o, revisions: make([]atomic.Int64, o.Keys)}
	for i := range o.Conns {
		m := c.members[i%len(c.members)]
		cl, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + m.client}, DialTimeout: 10 * time.Second})
		if err != nil {
			l.close()
			return nil, fmt.Errorf("connect to etcd at %s: %w", m.client, err)
		}
		l.clients = append(l.clients, cl)
	}
	return l, nil
}

func (l *load) close() {
	for _, c := range l.clients {
		_ = c.Close()
	}
}

// count counts the transactions of writers in a round's window.
type count struct {
	done, refused, all uint64 // all: done in the whole round
	latency            *hdrhistogram.Histogram
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(time.Microsecond), int64(5*time.Minute), 3)
}

// round runs all writers for a round's time. begin and end are called at the
// ends of its window.
func (l *load) round(ctx context.Context, begin, end func()) (*count, error) {
	o := l.options
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	from := time.Now().Add(o.WarmUp)
	until := from.Add(o.Duration)
	counts := make([]count, o.Conns)
	locks := make([]sync.Mutex, o.Conns)
	var writers sync.WaitGroup
	for i := range o.Conns {
		counts[i].latency = newHistogram()
		for j := range o.InFlight {
			w := &writer{load: l, client: l.clients[i], from: from, until: until, count: &counts[i], mu: &locks[i]}
			w.rng = rand.New(rand.NewPCG(uint64(i), uint64(j)))
			writers.Go(func() {
				if err := w.run(ctx); err != nil {
					cancel(err)
				}
			})
		}
	}
	for _, at := range []struct {
		when time.Time
		do   func()
	}{{from, begin}, {until, end}} {
		select {
		case <-time.After(time.Until(at.when)):
			at.do()
		case <-ctx.Done():
		}
	}
	writers.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	all := &count{latency: newHistogram()}
	for i := range counts {
		all.done, all.refused, all.all = all.done+counts[i].done, all.refused+counts[i].refused, all.all+counts[i].all
		all.latency.Merge(counts[i].latency)
	}
	return all, nil
}

// writer has one transaction in flight at a time.
type writer struct {
	load        *load
	client      *clientv3.Client
	rng         *rand.Rand
	from, until time.Time
	mu          *sync.Mutex // guards count, which a connection's writers share
	count       *count
}

func (w *writer) run(ctx context.Context) error {
	o := w.load.options
	payload := make([]byte, o.Size)
	keys := make([]int, o.Locks)
	for time.Now().Before(w.until) {
		for i := range payload {
			payload[i] = byte(w.rng.Uint32())
		}
		w.pick(keys)
		sent := time.Now()
		for done := false; !done && time.Now().Before(w.until); {
			var err error
			if done, err = w.try(ctx, keys, string(payload)); err != nil {
				return err
			}
			w.note(done, sent)
		}
	}
	return nil
}

// pick fills keys with distinct random keys.
func (w *writer) pick(keys []int) {
	for i := range keys {
	again:
		keys[i] = w.rng.IntN(w.load.options.Keys)
		for j := range i {
			if keys[j] == keys[i] {
				goto again
			}
		}
	}
}

// try sends a transaction once, with the known revisions of its keys.
func (w *writer) try(ctx context.Context, keys []int, payload string) (committed bool, err error) {
	var compare []clientv3.Cmp
	var puts, gets []clientv3.Op
	for i, k := range keys {
		name := "k" + strconv.Itoa(k)
		compare = append(compare, clientv3.Compare(clientv3.ModRevision(name), "=", w.load.revisions[k].Load()))
		value := ""
		if i == 0 {
			value = payload
		}
		puts = append(puts, clientv3.OpPut(name, value))
		gets = append(gets, clientv3.OpGet(name, clientv3.WithKeysOnly()))
	}
	r, err := w.client.Txn(ctx).If(compare...).Then(puts...).Else(gets...).Commit()
	if err != nil {
		return false, fmt.Errorf("etcd: %w", err)
	}
	for i, k := range keys {
		switch {
		case r.Succeeded:
			w.load.saw(k, r.Header.Revision)
		case len(r.Responses[i].GetResponseRange().Kvs) > 0:
			w.load.saw(k, r.Responses[i].GetResponseRange().Kvs[0].ModRevision)
		}
	}
	return r.Succeeded, nil
}

// saw records a key's revision.
func (l *load) saw(key int, revision int64) {
	at := &l.revisions[key]
	for known := at.Load(); known < revision; known = at.Load() {
		if at.CompareAndSwap(known, revision) {
			return
		}
	}
}

// note counts an answer that has just arrived.
func (w *writer) note(done bool, sent time.Time) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	within := !now.Before(w.from) && now.Before(w.until)
	if done {
		w.count.all++
	}
	switch {
	case !within:
	case done:
		w.count.done++
		// The error is for what is out of range.
		_ = w.count.latency.RecordValue(min(int64(now.Sub(sent)), int64(5*time.Minute)))
	default:
		w.count.refused++
	}
}

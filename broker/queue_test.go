package broker

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/lockmgr"
)

// TestAQueueWaitsForWhatIsInFlight: a single message is taken at once. While
// messages are in flight, the queue waits until as many are queued, until those
// in flight are done, or until there is a whole batch.
func TestAQueueWaitsForWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 1000
		q := newQueue(8 << 20)
		q.open()
		put := func(n int) {
			for range n {
				if q.put(&natslink.Message{Payload: make([]byte, each-messageCost)}) != putQueued {
					t.Fatal("not queued")
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ready := make(chan bool)
		wait := func() { go func() { ready <- q.wait(ctx) }() }
		must := func(want bool, when string) {
			t.Helper()
			synctest.Wait()
			select {
			case <-ready:
				if !want {
					t.Errorf("%s: taken", when)
				}
			default:
				if want {
					t.Errorf("%s: not taken", when)
				}
			}
		}
		wait()
		must(false, "empty")
		put(1)
		must(true, "alone")
		take := func() {
			bytes := cost(q.take(batchCount))
			q.addInflight(bytes)
		}
		take()
		q.addInflight(2 * each)
		wait()
		put(2)
		must(false, "two wait, three are in flight")
		put(1)
		must(true, "three wait, three are in flight")
		take()
		wait()
		put(5)
		must(false, "five wait, six are in flight")
		q.addInflight(-each)
		must(true, "five wait, five are in flight")
		q.addInflight(10 << 20)
		wait()
		must(false, "much is in flight")
		put(batchBytes / each)
		must(true, "a whole batch waits")
		take()
		q.addInflight(-20 << 20) // more than was ever in flight
		wait()
		cancel()
		must(true, "the end")
	})
}

// TestAMessageThatComesBackMakesNoQueueFull: the log was searched for it, and
// what arrives behind it in the sequencer's queue does not wait as long.
func TestAMessageThatComesBackMakesNoQueueFull(t *testing.T) {
	c := checkerOfAnEmptyLog()
	now := time.Now()
	c.queue.put(&natslink.Message{Received: now.Add(-time.Hour)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		c.run(ctx)
		close(ended)
	}()
	if !c.back.wait(ctx) {
		t.Fatal("it does not come back")
	}
	cancel()
	<-ended
	if got := c.back.put(&natslink.Message{Received: now}); got != putQueued {
		t.Errorf("a message behind it: %d", got)
	}
}

// checkerOfAnEmptyLog returns a checker whose queues are open.
func checkerOfAnEmptyLog() *logChecker {
	c := &logChecker{
		batchSubject: "batch", queue: newQueue(1 << 20), back: newQueue(1 << 20), limits: fakeNATS{},
		certifier: newCertifier(lockmgr.Options{}, time.Now), reader: &reader{position: func() position { return position{} }},
	}
	c.queue.open()
	c.back.open()
	return c
}

// TestAQueueWhoseOldestMessageIsOldIsFull: a new message would wait as long.
func TestAQueueWhoseOldestMessageIsOldIsFull(t *testing.T) {
	q := newQueue(8 << 20)
	q.open()
	began := time.Now()
	for _, c := range []struct {
		after time.Duration
		want  putResult
	}{{0, putQueued}, {maxQueueWait, putQueued}, {maxQueueWait + 1, putFull}} {
		if got := q.put(&natslink.Message{Received: began.Add(c.after)}); got != c.want {
			t.Errorf("a message %v after the oldest: %d, want %d", c.after, got, c.want)
		}
	}
	q.take(batchCount)
	if got := q.put(&natslink.Message{Received: began.Add(time.Hour)}); got != putQueued {
		t.Errorf("the queue is empty: %d", got)
	}
}

package broker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// dataPath is a partition's data path in a synctest bubble: its messages and
// its group are fakes, its clock is the bubble's.
type dataPath struct {
	t       *testing.T
	p       *replica
	group   *fakeGroup
	began   time.Time
	replies *fakeConnection
	feed    *fakeConnection
	ended   error // with which the tenure ended itself

	rejected atomic.Pointer[error] // why nothing is stored now, nil if it is

	cancel  context.CancelCauseFunc
	running sync.WaitGroup
}

// newDataPath starts a tenure of term 1 of partition 0.
func newDataPath(t *testing.T) *dataPath {
	names := subjects.Names{Prefix: "cantus"}
	d := &dataPath{t: t, began: time.Now(), replies: &fakeConnection{}, feed: &fakeConnection{}}
	h := host{
		name: "n1", names: names, partitions: 1, log: slog.New(slog.DiscardHandler), now: time.Now, queueBytes: 8 << 20, state: testStateOptions,
		metrics: newMetrics(), stats: newServiceStats(),
		messaging: messaging{
			nats: fakeNATS{}, appends: d.replies, feeds: d.feed, outbox: outbox(posted{d.replies}), feedKey: make([]byte, 64),
			encodeAdvisory: func(names subjects.Names, event string, _ map[string]any) []byte {
				return natslink.AppendPub(nil, names.Advisory(event), []byte{})
			},
		},
		sharedLimits: sharedLimits{inflight: newInflightLimit(batchesInFlight)},
	}
	d.p = &replica{host: h, log: h.log, queue: newQueue(h.queueBytes), metrics: h.metrics.partition(0, h.stats)}
	d.p.state = newPartitionState(nil, h.state, h.now, func(err error) { t.Error(err) }, nil)
	d.p.wire()
	d.group = newFakeGroup(d.p.state)
	d.running.Go(d.group.run)
	ctx, cancel := context.WithCancelCause(t.Context())
	d.cancel = cancel
	c := d.p.tenureConfig(1, func(err error) {
		d.ended = err
		cancel(err)
	})
	c.countRefused = func(*subjects.Error, int) {}
	c.propose, c.confirmLeader, c.rejected = d.group.propose, func() bool { return true }, func() error {
		if err := d.rejected.Load(); err != nil {
			return *err
		}
		return nil
	}
	d.p.queue.open()
	newTenure(c).start(ctx, &d.running)
	return d
}

// stop ends the tenure and waits for its goroutines.
func (d *dataPath) stop() {
	d.cancel(nil)
	close(d.group.proposed)
	d.running.Wait()
}

// send delivers a message as the connection's reading goroutine does. headers
// are "Key", "value" pairs.
func (d *dataPath) send(reply, payload string, headers ...string) {
	var block []byte
	if len(headers) > 0 {
		block = subjects.AppendBlockStart(nil)
		for i := 0; i < len(headers); i += 2 {
			block = subjects.AppendField(block, headers[i], headers[i+1])
		}
		block = subjects.AppendBlockEnd(block)
	}
	d.p.onAppend(&natslink.Message{Subject: "cantus.append.0", Reply: reply, Header: block, Payload: []byte(payload), Received: time.Now()})
}

// want checks the replies since the last call, and how long after the beginning
// it is.
func (d *dataPath) want(after time.Duration, replies ...string) {
	d.t.Helper()
	synctest.Wait()
	if got := time.Since(d.began); got != after {
		d.t.Errorf("it is %v after the beginning, want %v", got, after)
	}
	got := d.replies.take()
	if len(got) != len(replies) {
		d.t.Fatalf("%d replies, want %d: %q", len(got), len(replies), got)
	}
	for i, want := range replies {
		if !strings.HasPrefix(got[i], want) {
			d.t.Errorf("reply %d\n got %s\nwant %s", i, got[i], want)
		}
	}
}

// fakeGroup commits what is proposed after a delay, in order, and applies it.
type fakeGroup struct {
	state    *partitionState
	proposed chan *fakeProposal
	delay    time.Duration
	index    uint64
	fail     error // of the proposals from now on
}

func newFakeGroup(r *partitionState) *fakeGroup {
	return &fakeGroup{state: r, proposed: make(chan *fakeProposal, 10), delay: 2 * time.Millisecond}
}

type fakeProposal struct {
	data   []byte
	done   chan struct{}
	result any
	err    error
}

func (p *fakeProposal) Wait() (any, error) {
	<-p.done
	return p.result, p.err
}

func (g *fakeGroup) propose(data []byte) proposal {
	p := &fakeProposal{data: data, done: make(chan struct{})}
	g.proposed <- p
	return p
}

func (g *fakeGroup) run() {
	for p := range g.proposed {
		time.Sleep(g.delay) // in the bubble's time
		if p.err = g.fail; p.err == nil {
			g.index++
			p.result = g.state.Apply([]raftstore.Committed{{Index: g.index, Term: 1, Data: bytes.Clone(p.data)}})[0]
		}
		close(p.done)
	}
}

// fakeConnection keeps what is published on it.
type fakeConnection struct {
	connection // subscribes to nothing
	mu         sync.Mutex
	sent       []byte
}

func (c *fakeConnection) Send(commands []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = append(c.sent, commands...)
	return nil
}

// take returns the messages that were published since the last call, each as
// "subject payload".
func (c *fakeConnection) take() (messages []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for rest := string(c.sent); rest != ""; {
		line, behind, _ := strings.Cut(rest, "\r\n")
		fields := strings.Fields(line)
		size, _ := strconv.Atoi(fields[len(fields)-1])
		headers := 0
		if fields[0] == "HPUB" {
			headers, _ = strconv.Atoi(fields[len(fields)-2])
		}
		messages = append(messages, fields[1]+" "+behind[headers:size])
		rest = behind[size+len("\r\n"):]
	}
	c.sent = nil
	return messages
}

type posted struct{ to *fakeConnection }

func (p posted) Enqueue(commands []byte) { _ = p.to.Send(commands) }

// fakeNATS has the default limits, and a subscriber of kind "tx".
type fakeNATS struct{}

func (fakeNATS) MaxPayload() int                     { return 1 << 20 }
func (fakeNATS) LimitsChanged() <-chan struct{}      { return nil }
func (fakeNATS) MayHaveInterest(subject string) bool { return subject == "cantus.feed.0.tx" }
func (fakeNATS) HasInterest(string) bool             { return false }

// TestTheDataPathInVirtualTime drives messages from the queue to the replies
// and the feed, without a NATS server, a group or a disk.
func TestTheDataPathInVirtualTime(t *testing.T) {
	const write, mark = subjects.HeaderWriteLock, subjects.HeaderHighWaterMark
	synctest.Test(t, func(t *testing.T) {
		d := newDataPath(t)
		defer d.stop()

		// The requests that arrive while it is in flight are sequenced once
		// they are as large: with the last one.
		first := strings.Repeat("first ", 1_000)
		d.send("r1", first, write, "a", mark, "0", subjects.HeaderMsgID, "m")
		synctest.Wait() // it is alone, and leaves at once
		d.send("r2", "second", write, "a", mark, "0")
		d.send("r4", "malformed", mark, "x")
		d.send("r5", "other", write, "b", mark, "0")
		d.send("r3", first, write, "a", mark, "0", subjects.HeaderMsgID, "m")
		d.want(0) // what depends on a batch in flight is not answered before it

		time.Sleep(2 * time.Millisecond)
		d.want(2*time.Millisecond, `r1 {"partition":0,"txid":1,"time":"2000-01-01T00:00:00Z"}`)
		if feed := d.feed.take(); len(feed) != 1 || feed[0] != "cantus.feed.0.tx "+first {
			t.Errorf("feed: %q", feed)
		}

		time.Sleep(2 * time.Millisecond)
		d.want(4*time.Millisecond,
			`r5 {"partition":0,"txid":2,"time":"2000-01-01T00:00:00.`,
			`r4 {"partition":0,"error":{"code":400,"reason":"bad_request"`,
			`r2 {"partition":0,"error":{"code":409,"reason":"conflict"`,
			`r3 {"partition":0,"txid":1,"time":"2000-01-01T00:00:00Z","duplicate":true}`)
	})
}

// TestNothingIsProposedOnceItIsRejected: nor what waited for its turn before.
func TestNothingIsProposedOnceItIsRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDataPath(t)
		defer d.stop()
		others := d.p.host.inflight
		for range batchesInFlight {
			if err := others.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		d.send("r1", "waits")
		d.want(0)
		full := error(subjects.Errorf(subjects.StorageFull, "full"))
		d.rejected.Store(&full)
		for range batchesInFlight {
			others.releaser()()
		}
		d.want(0, `r1 {"partition":0,"error":{"code":507,"reason":"storage_full"`)

		d.rejected.Store(nil)
		for n := range maxInflight + 1 { // the rejected batch left no slot taken
			d.send("r2", "again")
			synctest.Wait()
			time.Sleep(d.group.delay)
			d.want(time.Duration(n+1)*d.group.delay, `r2 {"partition":0,"txid":`)
		}
	})
}

// TestABatchWithoutAnOutcomeIsAnswered: what is in flight for longer than
// outcomeTime is answered as unknown, what depends on it as not done, and what
// comes after it as busy, until the outcome is there.
func TestABatchWithoutAnOutcomeIsAnswered(t *testing.T) {
	const write, mark = subjects.HeaderWriteLock, subjects.HeaderHighWaterMark
	synctest.Test(t, func(t *testing.T) {
		d := newDataPath(t)
		defer d.stop()
		d.group.delay = 2 * outcomeTime
		d.send("r1", strings.Repeat("first ", 1_000), write, "a", mark, "0")
		synctest.Wait()
		time.Sleep(time.Second)
		d.send("r2", strings.Repeat("second ", 1_000), write, "a", mark, "0") // refused because of the first
		synctest.Wait()
		d.send("r3", "gathers")
		d.want(time.Second)
		time.Sleep(outcomeTime - time.Second)
		d.want(outcomeTime,
			`r1 {"partition":0,"error":{"code":504,"reason":"unknown"`,
			`r3 {"partition":0,"error":{"code":429,"reason":"busy"`)
		time.Sleep(time.Second)
		d.want(outcomeTime+time.Second, `r2 {"partition":0,"error":{"code":503,"reason":"unavailable"`)
		d.send("r4", "small")
		d.want(outcomeTime+time.Second, `r4 {"partition":0,"error":{"code":429,"reason":"busy"`)
		time.Sleep(outcomeTime - time.Second)
		d.want(2 * outcomeTime) // the first has committed, and nothing is answered twice
		d.group.delay = time.Millisecond
		d.send("r5", "goes on")
		synctest.Wait()
		time.Sleep(time.Millisecond)
		d.want(2*outcomeTime+time.Millisecond, `r5 {"partition":0,"txid":2`)
		if d.ended != nil {
			t.Errorf("the tenure ended with %v", d.ended)
		}
	})
}

// TestATenureThatFailsAnswersEverything: the batch whose proposal fails, those
// behind it, and refusals that depend on them.
func TestATenureThatFailsAnswersEverything(t *testing.T) {
	const write, mark = subjects.HeaderWriteLock, subjects.HeaderHighWaterMark
	synctest.Test(t, func(t *testing.T) {
		d := newDataPath(t)
		defer d.stop()
		d.group.fail = raftstore.ErrNotLeader
		d.send("r1", strings.Repeat("first ", 1_000), write, "a", mark, "0")
		synctest.Wait()
		d.send("r2", "second", write, "a", mark, "0")
		d.send("r3", strings.Repeat("third ", 1_000), write, "b", mark, "0") // both are sequenced
		d.want(0)
		time.Sleep(10 * time.Millisecond)
		d.want(10*time.Millisecond,
			`r1 {"partition":0,"error":{"code":503,"reason":"unavailable"`,
			`r3 {"partition":0,"error":{"code":503,"reason":"unavailable"`,
			`r2 {"partition":0,"error":{"code":503,"reason":"unavailable"`)
		if !errors.Is(d.ended, raftstore.ErrNotLeader) {
			t.Errorf("the tenure ended with %v", d.ended)
		}
		d.send("r4", "late")
		synctest.Wait()
		d.p.refusals.rejectUnavailable(d.p.queue.close())
		d.want(10*time.Millisecond, `r4 {"partition":0,"error":{"code":503,"reason":"unavailable"`)
		d.p.state.certifier.rollback()
		if s := d.p.state.certifier.stats(); s.InFlight != 0 || s.Locks != 0 {
			t.Errorf("%+v", s)
		}
	})
}

//go:build linux

package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

var overloadFor = flag.Duration("overload-for", 0, "how long TestOverload overloads three nodes; 0 is a second, and a few clients")

// overloadSize says how much is asked of the nodes.
type overloadSize struct {
	lasts    time.Duration // the overload
	measures time.Duration // the sustainable rate
	writers  int           // connections that append
	polls    int           // reads that wait for more
	unread   int           // readers that never read
	keeps    uint64        // transactions of each partition that the judge looks at
}

const (
	overloadFactor  = 10 // of the sustainable rate
	overloadPayload = 512
	// The writers fill all partitions but the last one, where polls wait. Each
	// of its replicas answers them, so that none has too many.
	overloadPartitions = 3
	quietPartition     = overloadPartitions - 1
	quietInterval      = 5 * time.Second // between two transactions there
	overloadWindow     = 5 * time.Second // of message ids: a trim passes what is older
	overloadSample     = 100             // one of this many appends is recorded
	overloadWaiting    = 32              // appends that a closed loop has under way
	pollsOnConnection  = 100
)

// TestOverload measures the rate that three nodes sustain, and then asks them
// for ten times as much, while readers wait for more in thousands of reads and
// others ask for everything and never read. Nothing that was acknowledged may
// be lost, what is refused says why, and the nodes serve as before once it is
// over. It prints what they refused, their memory, elections, and how long it
// took until appends were acknowledged again.
func TestOverload(t *testing.T) {
	testkit.NotShort(t, "three processes are overloaded")
	size := overloadSize{lasts: time.Second, measures: 300 * time.Millisecond, writers: 40, polls: 100, unread: 4, keeps: 2_000}
	if *overloadFor > 0 {
		size = overloadSize{lasts: *overloadFor, measures: 10 * time.Second, writers: 2_000, polls: 10_000, unread: 500, keeps: 100_000}
	}
	c := newCluster(t, 3, "--partitions", fmt.Sprint(overloadPartitions), "--msg-id-window", overloadWindow.String())
	c.recorder = workload.NewRecorder(judge.Header{Partitions: overloadPartitions, Replicas: 3, MessageIDWindow: int64(overloadWindow)})
	c.startAll()
	c.awaitPlaced()
	o := &overload{cluster: c, t: t, size: size}
	o.run()
	c.awaitPlaced()
	c.judgeAlone(t, overloadPartitions)
}

// overload is a run of TestOverload.
type overload struct {
	*cluster
	t    *testing.T
	size overloadSize

	offered, acked, polled atomic.Int64
	refused                sync.Map // *atomic.Int64 by the client that asked and why not

	mu    sync.Mutex // guards lines
	lines []string
}

// count counts what did not succeed, by the client that asked and why not.
func (o *overload) count(who, why string) {
	key := who + ", not served: " + why
	n, ok := o.refused.Load(key)
	if !ok {
		n, _ = o.refused.LoadOrStore(key, new(atomic.Int64))
	}
	n.(*atomic.Int64).Add(1)
}

func (o *overload) run() {
	watcher := o.dial(o.nodes[0].name)
	rate := o.sustainable()
	usual := o.probe(watcher)
	before := o.terms(watcher)
	o.say("sustained: %.0f appends a second of %d bytes; an append alone takes %v", rate, overloadPayload, usual.slowest.Round(time.Millisecond))

	ctx, stop := context.WithCancel(o.t.Context())
	defer stop()
	var running sync.WaitGroup
	mix := startMix(o.cluster, quietPartition, rand.Uint64())
	running.Go(func() { o.appendQuietly(ctx, watcher) })
	flood := o.connectWriters(o.size.writers, false)
	o.startReaders(ctx, &running)
	running.Go(func() { o.watch(ctx) })
	o.write(ctx, flood, o.size.lasts, rate*overloadFactor)
	stop()
	ended := time.Now()
	running.Wait()
	mix.End()

	recovered := o.probe(watcher)
	o.say("recovery: the first append was acknowledged after %v, ten in a row to each partition after %v, the slowest in %v",
		recovered.first.Sub(ended).Round(time.Millisecond), recovered.all.Sub(ended).Round(time.Millisecond), recovered.slowest.Round(time.Millisecond))
	elections := 0
	for p, term := range o.terms(watcher) {
		elections += int(term - before[p])
	}
	o.say("elections: %d", elections)
	refused := map[string]int64{}
	o.refused.Range(func(key, n any) bool {
		refused[key.(string)] = n.(*atomic.Int64).Load()
		return true
	})
	for _, key := range slices.Sorted(maps.Keys(refused)) {
		o.say("%s: %d", key, refused[key])
	}
	o.say("long polls answered: %d", o.polled.Load())
	o.trimAll(watcher)
	o.probe(watcher) // a replica with what comes after a trim has trimmed
	o.t.Logf("overload:\n%s", strings.Join(o.lines, "\n"))
	if *overloadFor > 0 && elections > 0 {
		o.t.Errorf("%d elections under overload", elections)
	}
	if o.offered.Load() == 0 {
		o.t.Error("nothing was appended")
	}
}

func (o *overload) say(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines = append(o.lines, fmt.Sprintf(format, args...))
}

// terms returns the term of each partition: each election begins a new one.
func (o *overload) terms(c *workload.Client) (terms []uint64) {
	for p := range overloadPartitions {
		terms = append(terms, mustInfo(o.t, c, p).Term)
	}
	return terms
}

// sustainable returns how many appends a second are acknowledged, if each
// writer waits for the answers.
func (o *overload) sustainable() float64 {
	writers := o.connectWriters(min(o.size.writers, 64), true)
	began := time.Now()
	o.write(o.t.Context(), writers, o.size.measures, 0)
	n := o.acked.Swap(0)
	o.offered.Store(0)
	return float64(n) / time.Since(began).Seconds()
}

// connectWriters connects writers. If they are patient, they wait for answers.
func (o *overload) connectWriters(count int, patient bool) []*floodWriter {
	o.t.Helper()
	all := make([]*floodWriter, count)
	var dialing errgroup.Group
	dialing.SetLimit(50)
	for i := range all {
		dialing.Go(func() error {
			w, err := dialWire(o.t.Context(), o.nodes[i%len(o.nodes)], wireID())
			all[i] = &floodWriter{o: o, wireClient: w, partition: i % quietPartition, sampled: map[string]sampledAppend{}}
			if patient {
				all[i].window = make(chan struct{}, overloadWaiting)
			}
			return err
		})
	}
	if err := dialing.Wait(); err != nil {
		o.t.Fatal(err)
	}
	return all
}

func wireID() string { return nats.NewInbox()[len(nats.InboxPrefix):] }

// write has writers append for some time, at a rate unless they are patient.
func (o *overload) write(ctx context.Context, writers []*floodWriter, lasts time.Duration, rate float64) {
	ctx, end := context.WithTimeout(ctx, lasts)
	defer end()
	var running sync.WaitGroup
	defer running.Wait()
	for _, f := range writers {
		running.Go(func() { f.run(ctx, rate/float64(len(writers))) })
	}
}

// appendQuietly appends to the partition where polls wait, now and then.
func (o *overload) appendQuietly(ctx context.Context, c *workload.Client) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(quietInterval):
		}
		_, _ = c.AppendMsg(ctx, workload.NewAppend(quietPartition, "quiet "+wireID()))
	}
}

// floodWriter appends, whatever the answers.
type floodWriter struct {
	o *overload
	*wireClient
	partition int
	window    chan struct{} // nil if it waits for no answer
	seq       int

	mu      sync.Mutex // guards sampled
	sampled map[string]sampledAppend
}

// sampledAppend is an append that is recorded.
type sampledAppend struct {
	start int64
	msg   *nats.Msg
}

// floodTick is how often a writer sends what is due.
const floodTick = 20 * time.Millisecond

func (f *floodWriter) run(ctx context.Context, rate float64) {
	received := make(chan struct{})
	go func() {
		defer close(received)
		if err := f.receive(f.answered); ctx.Err() == nil {
			f.o.count("appends", fmt.Sprintf("connection ended: %v", err))
		}
	}()
	unblock := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Now()) })
	if f.window != nil {
		f.sendClosed(ctx)
	} else {
		f.sendOpen(ctx, rate)
	}
	unblock()
	if f.window != nil { // what is under way is answered
		for range cap(f.window) {
			select {
			case f.window <- struct{}{}:
			case <-received:
			case <-time.After(patience):
			}
		}
	}
	_ = f.Close()
	<-received
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sampled {
		f.o.recorder.Appended("flood-"+f.id, s.start, s.msg, workload.Reply{}, workload.ErrNoAnswer)
	}
}

// sendClosed sends the next append when one was answered.
func (f *floodWriter) sendClosed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f.window <- struct{}{}:
		}
		if f.write(f.appendNext(nil)) != nil {
			return
		}
	}
}

// sendOpen sends at a rate.
func (f *floodWriter) sendOpen(ctx context.Context, rate float64) {
	tick := time.NewTicker(floodTick)
	defer tick.Stop()
	due := rand.Float64()
	var out []byte
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		due = min(due+rate*now.Sub(last).Seconds(), max(rate, 1)) // what a late writer has missed by a second is lost
		last = now
		for out = out[:0]; due >= 1; due-- {
			out = f.appendNext(out)
		}
		if len(out) > 0 && f.write(out) != nil {
			return
		}
	}
}

// appendNext appends the command that sends the next transaction.
func (f *floodWriter) appendNext(out []byte) []byte {
	f.seq++
	f.o.offered.Add(1)
	token := strconv.Itoa(f.seq)
	m := workload.NewAppend(f.partition, fmt.Sprintf("%s-%s-%0*d", f.id, token, overloadPayload-len(f.id)-len(token)-2, 0))
	if f.seq%overloadSample == 0 {
		f.mu.Lock()
		f.sampled[token] = sampledAppend{f.o.recorder.Now(), m}
		f.mu.Unlock()
	}
	return f.appendPub(out, m.Subject, token, m.Data)
}

func (f *floodWriter) answered(m *wireMsg) {
	why := m.reason()
	if why == "" {
		f.o.acked.Add(1)
	} else {
		f.o.count("appends", why)
	}
	if f.window != nil {
		<-f.window
	}
	f.mu.Lock()
	s, sampled := f.sampled[m.token]
	delete(f.sampled, m.token)
	f.mu.Unlock()
	if !sampled {
		return
	}
	var r workload.Reply
	err := nats.ErrNoResponders
	if why != "no responders" {
		err = json.Unmarshal(m.payload, &r)
	}
	f.o.recorder.Appended("flood-"+f.id, s.start, s.msg, r, err)
}

// startReaders starts those who wait for more, and those who never read.
func (o *overload) startReaders(ctx context.Context, running *sync.WaitGroup) {
	for i := 0; i < o.size.polls; i += pollsOnConnection {
		running.Go(func() { o.keepPolling(ctx, i) })
	}
	for i := range o.size.unread {
		running.Go(func() {
			for ctx.Err() == nil {
				err := o.askAndNeverRead(ctx, i)
				if ctx.Err() == nil {
					o.count("readers that never read", fmt.Sprintf("disconnected: %v", shortly(err)))
				}
			}
		})
	}
}

// shortly returns an error without addresses.
func shortly(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err
}

// keepPolling has reads on one connection, all of which wait for more.
func (o *overload) keepPolling(ctx context.Context, i int) {
	w, err := dialWire(ctx, o.nodes[i/pollsOnConnection%len(o.nodes)], wireID())
	if err != nil {
		o.count("long polls", fmt.Sprintf("no connection: %v", shortly(err)))
		return
	}
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	ask := func(token, from string) {
		body := fmt.Appendf(nil, `{"from":%s,"wait":"60s"}`, from)
		_ = w.write(w.appendPub(nil, fmt.Sprintf("cantus.replica.read.%d", quietPartition), token, body))
	}
	for n := range min(pollsOnConnection, o.size.polls-i) {
		ask(strconv.Itoa(n), "1")
	}
	next := map[string]string{}
	err = w.receive(func(m *wireMsg) {
		why := m.reason()
		from := m.field("Cantus-Next")
		switch {
		case why != "":
			o.count("long polls", why)
		case from == "": // a transaction
			return
		default:
			o.polled.Add(1)
			next[m.token] = from
			ask(m.token, from)
			return
		}
		token, again := m.token, cmp.Or(next[m.token], "1")
		time.AfterFunc(time.Second+rand.N(4*time.Second), func() {
			if ctx.Err() == nil {
				ask(token, again)
			}
		})
	})
	if ctx.Err() == nil {
		o.count("long polls", fmt.Sprintf("connection ended: %v", shortly(err)))
	}
}

// askAndNeverRead asks for everything again and again, and reads no answer.
func (o *overload) askAndNeverRead(ctx context.Context, i int) error {
	w, err := dialWire(ctx, o.nodes[i%len(o.nodes)], wireID())
	if err != nil {
		select { // not at once again
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		return err
	}
	defer w.Close()
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	if i%2 == 0 {
		if err := w.write([]byte("SUB cantus.feed.> 2\r\n")); err != nil {
			return err
		}
	}
	for n := 0; ; n++ {
		body := []byte(`{"from":1,"max":65536,"max_bytes":8388608}`)
		if err := w.write(w.appendPub(nil, fmt.Sprintf("cantus.read.%d", n%quietPartition), strconv.Itoa(n), body)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// watch prints, about ten times, the rates and the nodes' memory.
func (o *overload) watch(ctx context.Context) {
	o.say("%8s %10s %10s %10s  %s", "after", "offered/s", "acked/s", "load", "memory of the nodes (peak so far)")
	every := o.size.lasts / 10
	began := time.Now()
	last := began
	for offered, acked := int64(0), int64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		nowOffered, nowAcked, now := o.offered.Load(), o.acked.Load(), time.Now()
		took := now.Sub(last).Seconds()
		memory := ""
		for _, n := range o.nodes {
			memory += fmt.Sprintf("  %s %d (%d) MiB", n.name, o.memory(n, "VmRSS"), o.memory(n, "VmHWM"))
		}
		load, _ := os.ReadFile("/proc/loadavg")
		first, _, _ := strings.Cut(string(load), " ")
		o.say("%8s %10.0f %10.0f %10s%s", time.Since(began).Round(100*time.Millisecond),
			float64(nowOffered-offered)/took, float64(nowAcked-acked)/took, first, memory)
		offered, acked, last = nowOffered, nowAcked, now
	}
}

// memory returns a figure of /proc/PID/status, in MiB.
func (o *overload) memory(n *node, figure string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.running().cmd.Process.Pid))
	if err != nil {
		o.t.Error(err)
		return 0
	}
	_, rest, _ := strings.Cut(string(b), figure+":")
	line, _, _ := strings.Cut(rest, "\n")
	kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(line), " kB"))
	if err != nil {
		o.t.Errorf("%s in %q: %v", figure, line, err)
	}
	return kib >> 10
}

// probed is how appends went, one after the other to each partition.
type probed struct {
	first, all time.Time
	slowest    time.Duration
}

// probeRun is how many appends in a row must be acknowledged.
const probeRun = 10

// probe appends until ten in a row to each partition were acknowledged at once.
func (o *overload) probe(c *workload.Client) (p probed) {
	o.t.Helper()
	for partition := range overloadPartitions {
		inRow := 0
		if err := o.until(o.t.Context(), fmt.Sprintf("serving partition %d", partition), func(ctx context.Context) string {
			for inRow < probeRun {
				began := time.Now()
				r, err := c.AppendMsg(ctx, workload.NewAppend(partition, "probe "+wireID()))
				if err != nil || r.Error != nil {
					inRow = 0
					return fmt.Sprint(r, err)
				}
				p.slowest = max(p.slowest, time.Since(began))
				if p.first.IsZero() {
					p.first = time.Now()
				}
				inRow++
			}
			return ""
		}); err != nil {
			o.t.Fatal(err)
		}
	}
	p.all = time.Now()
	return p
}

// largestBatch is how many transactions a batch has at most: a trim ends with
// one.
const largestBatch = 4096

// trimAll trims the partitions, so that the judge has not too much to read.
func (o *overload) trimAll(c *workload.Client) {
	for p := range overloadPartitions {
		mark := mustInfo(o.t, c, p).HighWaterMark
		o.say("partition %d: %d transactions", p, mark)
		if mark <= o.size.keeps {
			continue
		}
		if err := o.until(o.t.Context(), fmt.Sprintf("partition %d trimmed", p), func(ctx context.Context) string {
			if _, err := c.Trim(ctx, p, mark-o.size.keeps); err != nil {
				return err.Error()
			}
			if first := mustInfo(o.t, c, p).FirstTxid; mark-first > o.size.keeps+largestBatch {
				return fmt.Sprintf("it begins at %d of %d", first, mark)
			}
			return ""
		}); err != nil {
			o.t.Error(err)
		}
	}
}

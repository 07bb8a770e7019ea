package sim

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cantuslog/cantus/internal/simnet"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// Options configures a cluster. Seed and Dirs are required.
type Options struct {
	Seed uint64
	// Dirs has a directory for each node, for the files that are not on its
	// simulated disk.
	Dirs []string
	// CheckpointBytes and TailBytes are those of the nodes' stores. Default 32
	// and 8 KiB.
	CheckpointBytes int64
	TailBytes       int
	// Copies keeps a copy of what each process finds, for the fault Rollback.
	Copies bool
	// Trace, if not nil, receives the events of the run, and the nodes' logs.
	Trace func(line string)
}

// Cluster is a set of nodes. Start starts them, and Stop stops them.
type Cluster struct {
	Net   *simnet.Network
	Nodes []*Node

	opts    Options
	app     App
	names   []string
	began   time.Time
	cancel  context.CancelFunc
	running sync.WaitGroup // the supervisors, and what ends faults

	mu       sync.Mutex // guards the fields below
	events   []string
	failures []string
}

// New returns a cluster that does not run.
func New(opts Options, app App) *Cluster {
	if opts.CheckpointBytes == 0 {
		opts.CheckpointBytes = 32 << 10
	}
	if opts.TailBytes == 0 {
		opts.TailBytes = 8 << 10
	}
	c := &Cluster{
		Net:  simnet.New(opts.Seed, simnet.Latency{Min: 100 * time.Microsecond, Max: 3 * time.Millisecond}),
		opts: opts, app: app, names: Names(len(opts.Dirs)),
	}
	for i, name := range c.names {
		c.Nodes = append(c.Nodes, newNode(c, name, opts.Dirs[i], opts.Seed))
	}
	return c
}

// Names returns the names of n nodes.
func Names(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("n%d", i+1))
	}
	return all
}

// Start starts all nodes.
func (c *Cluster) Start(ctx context.Context) {
	ctx, c.cancel = context.WithCancel(ctx)
	c.began = time.Now()
	for _, n := range c.Nodes {
		c.running.Go(func() { n.run(ctx) })
	}
}

// Stop stops all nodes and waits for their goroutines.
func (c *Cluster) Stop() {
	c.cancel()
	c.running.Wait()
}

// Note adds an event to the trace of the run.
func (c *Cluster) Note(format string, args ...any) {
	line := fmt.Sprintf("%9s  ", c.since().Round(time.Microsecond)) + fmt.Sprintf(format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, line)
	if c.opts.Trace != nil {
		c.opts.Trace(line)
	}
}

// Fail records a failure of the run.
func (c *Cluster) Fail(format string, args ...any) {
	c.Note("FAILURE: "+format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, fmt.Sprintf(format, args...))
}

// Failures returns the failures so far.
func (c *Cluster) Failures() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.failures...)
}

// Events returns the events so far, one a line.
func (c *Cluster) Events() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.events, "\n")
}

func (c *Cluster) since() time.Duration { return time.Since(c.began) }

// logger logs to the trace.
func (c *Cluster) logger(node string) *slog.Logger {
	if c.opts.Trace == nil {
		return nil
	}
	return slog.New(slog.NewTextHandler(traceWriter{c}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", node)
}

// Logger returns the logger of a node's replica. It is nil without a trace.
func (n *Node) Logger() *slog.Logger { return n.cluster.logger(n.Name) }

type traceWriter struct{ c *Cluster }

func (w traceWriter) Write(p []byte) (int, error) {
	w.c.opts.Trace(fmt.Sprintf("%9s  %s", w.c.since().Round(time.Microsecond), strings.TrimSpace(string(p))))
	return len(p), nil
}

// Run injects the faults of a schedule, each at its time, and returns after the
// last. Faults that last end later.
func (c *Cluster) Run(ctx context.Context, s Schedule) {
	for _, f := range s {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(c.began.Add(f.At))):
		}
		c.inject(ctx, f)
	}
}

// Heal ends all faults. Nodes that are down start again.
func (c *Cluster) Heal() {
	c.Net.Heal()
	for _, n := range c.Nodes {
		n.Disk().slow(0)
		n.mu.Lock()
		n.downUntil = time.Now()
		n.mu.Unlock()
	}
	c.Note("all faults end")
}

func (c *Cluster) node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	if leader := c.app.Leader(); leader != nil {
		return leader
	}
	return c.Nodes[0]
}

// later arranges for something to happen at the end of a fault.
func (c *Cluster) later(ctx context.Context, d time.Duration, what func()) {
	c.running.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(d):
			what()
		}
	})
}

// inject injects one fault.
func (c *Cluster) inject(ctx context.Context, f Fault) {
	n := c.node(f.Node)
	to := c.node(f.To)
	c.Note("%s (%s)", f, n.Name)
	switch f.Kind {
	case PowerCut:
		n.end(true, f.For)
	case KillNode:
		n.end(false, f.For)
	case Blackout:
		for _, n := range c.Nodes {
			n.end(true, f.For)
		}
	case Block:
		c.Net.Block(n.Name, to.Name)
		c.later(ctx, f.For, func() { c.Net.Unblock(n.Name, to.Name) })
	case Partition:
		c.isolate(n, true)
		c.later(ctx, f.For, func() { c.isolate(n, false) })
	case Stall:
		c.isolate(n, true)
		n.Disk().slow(f.For)
		c.later(ctx, f.For, func() { c.isolate(n, false); n.Disk().slow(0) })
	case Clock:
		n.setClock(f.For - MaxSkew)
	case Freeze:
		c.freeze(ctx, n, f)
	case Lag:
		c.running.Go(func() { c.lag(ctx, n, f.For) })
	case Reset:
		c.Net.Reset(n.Name, to.Name)
	case SlowLink:
		c.Net.Delay(n.Name, to.Name, f.For/20)
		c.later(ctx, f.For, func() { c.Net.Delay(n.Name, to.Name, 0) })
	case SlowDisk:
		n.Disk().slow(f.For / 20)
		c.later(ctx, f.For, func() { n.Disk().slow(0) })
	case FailDisk, TornWrite:
		c.breakDisk(n, f.Kind)
	default:
		c.operate(ctx, n, f)
	}
}

// operate has the application carry out an operation.
func (c *Cluster) operate(ctx context.Context, n *Node, f Fault) {
	c.running.Go(func() {
		if err := c.app.Operate(ctx, n, f); err != nil {
			c.Note("%s: %v", f, err)
		}
	})
}

// unheard is for how long the others still hear a machine that freezes.
const unheard = 60 * time.Millisecond

// freeze is what a paused process or virtual machine is to the others: it ends
// its last messages, and what has arrived meanwhile is read when it goes on.
// Its timers can't be stopped, for all nodes share a clock. But raft's main
// goroutine can, by a write that waits for the disk: so a leader does not
// notice that its lease has ended before it goes on. The application has its
// leaders write for that.
func (c *Cluster) freeze(ctx context.Context, n *Node, f Fault) {
	n.Disk().hold(time.Now().Add(f.For))
	c.operate(ctx, n, f)
	for _, other := range c.Nodes {
		if other != n {
			c.Net.Block(other.Name, n.Name)
		}
	}
	c.later(ctx, min(unheard, f.For), func() { c.isolate(n, true) })
	c.later(ctx, f.For, func() { c.isolate(n, false) })
}

// lagStep is by how much messages are later than those that were sent as long
// before.
const lagStep = 50 * time.Millisecond

// lag is what a queue that fills up at a node's link does, and then a link that
// is cut in the other direction: while the others choose another leader, the
// node still hears how they followed it.
func (c *Cluster) lag(ctx context.Context, n *Node, most time.Duration) {
	each := func(do func(other string)) {
		for _, other := range c.Nodes {
			if other != n {
				do(other.Name)
			}
		}
	}
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	for late := lagStep; late < most; late += lagStep {
		each(func(other string) { c.Net.Delay(other, n.Name, late) })
		pause(lagStep)
	}
	each(func(other string) { c.Net.Block(n.Name, other) })
	pause(most)
	each(func(other string) {
		c.Net.Unblock(n.Name, other)
		c.Net.Delay(other, n.Name, 0)
	})
}

func (c *Cluster) isolate(n *Node, blocked bool) {
	for _, other := range c.Nodes {
		if other == n {
			continue
		}
		if blocked {
			c.Net.Block(n.Name, other.Name)
			c.Net.Block(other.Name, n.Name)
		} else {
			c.Net.Unblock(n.Name, other.Name)
			c.Net.Unblock(other.Name, n.Name)
		}
	}
}

// breakDisk makes an operation of the node's disk fail: with a torn write, the
// next one.
func (c *Cluster) breakDisk(n *Node, kind Kind) {
	disk := n.Disk()
	fault := journaltest.Fault{At: disk.Ops() + 2, Outcome: journaltest.Lost, Err: syscall.EIO}
	if kind == TornWrite {
		fault.At, fault.Outcome = disk.Ops()+1, journaltest.Torn
	}
	disk.Fail(fault)
}

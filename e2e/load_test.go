package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// load is writers that append one transaction after the other, repeating each
// until it is acknowledged, while something happens to their cluster.
type load struct {
	cluster    *cluster
	partitions int
	group      errgroup.Group
	stopping   chan struct{}

	mu    sync.Mutex
	acked []map[uint64]string // for each partition, payload by txid
	last  []time.Time         // of each partition's last acknowledgement
	gap   []time.Duration     // the longest between two of them
	until []time.Time         // when that ended
}

// startLoad starts a few writers for each partition, on different nodes. They
// are recorded.
func startLoad(c *cluster, partitions int) *load {
	c.record(partitions, 3, 30*time.Minute, 0)
	l := &load{
		cluster: c, partitions: partitions, stopping: make(chan struct{}),
		last: make([]time.Time, partitions), gap: make([]time.Duration, partitions), until: make([]time.Time, partitions),
	}
	for p := range partitions {
		l.acked = append(l.acked, map[uint64]string{})
		for i, client := range c.writers()[:4] {
			l.group.Go(func() error {
				err := l.write(c.tb.Context(), client, p, fmt.Sprintf("p%d-w%d", p, i))
				if err != nil {
					c.tb.Log(err) // whoever waits for more may give up before stop says it
				}
				return err
			})
		}
	}
	return l
}

func (l *load) write(ctx context.Context, client *workload.Client, partition int, writer string) error {
	for i := 0; ; i++ {
		select {
		case <-l.stopping:
			return nil
		default:
		}
		payload := writer + "-" + strconv.Itoa(i)
		r, err := l.cluster.keep(ctx, client, workload.NewAppend(partition, payload, "Nats-Msg-Id", payload, "Cantus-Append-Lock", writer))
		if err != nil {
			return fmt.Errorf("append %s: %w", payload, err)
		}
		if err := l.acknowledged(partition, payload, r); err != nil {
			return err
		}
	}
}

func (l *load) acknowledged(partition int, payload string, r workload.Reply) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, taken := l.acked[partition][r.Txid]; taken {
		return fmt.Errorf("partition %d: both %s and %s were acknowledged as txid %d", partition, other, payload, r.Txid)
	}
	l.acked[partition][r.Txid] = payload
	now := time.Now()
	if last := l.last[partition]; !last.IsZero() && now.Sub(last) > l.gap[partition] {
		l.gap[partition], l.until[partition] = now.Sub(last), now
	}
	l.last[partition] = now
	return nil
}

// stop ends the writers, after every outcome is known.
func (l *load) stop(t testing.TB) {
	t.Helper()
	close(l.stopping)
	if err := l.group.Wait(); err != nil {
		t.Fatal(err)
	}
	for p := range l.partitions {
		t.Logf("partition %d: %d appends acknowledged, none failed; the longest gap between two is %v, until %s",
			p, len(l.acked[p]), l.gap[p].Round(time.Millisecond), l.until[p].UTC().Format("15:04:05.000"))
	}
}

// check checks that each partition's log is exactly what was acknowledged, and
// the same on every node.
func (l *load) check(t *testing.T) {
	t.Helper()
	l.cluster.awaitPlaced()
	client := l.cluster.dial(l.cluster.nodes[0].name)
	logs := map[int][]*nats.Msg{}
	for p := range l.partitions {
		logs[p] = drain(t, client, p)
		l.checkLog(t, p, logs[p])
	}
	l.cluster.checkSame(t, logs)
}

// checkLog checks that a partition's log, from its first transaction on, is
// exactly what was acknowledged.
func (l *load) checkLog(t *testing.T, p int, log []*nats.Msg) {
	t.Helper()
	if len(log) != len(l.acked[p]) || len(log) == 0 {
		t.Errorf("partition %d: %d transactions, %d acknowledged", p, len(log), len(l.acked[p]))
	}
	for i, m := range log {
		if want := l.acked[p][uint64(i+1)]; string(m.Data) != want {
			other := slices.IndexFunc(log[i+1:], func(o *nats.Msg) bool { return bytes.Equal(o.Data, m.Data) })
			t.Fatalf("partition %d: txid %d is %s, acknowledged was %q; the same payload comes again %d transactions later (0: never)",
				p, i+1, m.Data, want, other+1)
		}
	}
}

// TestClusterRollingRestart restarts one node after the other under load, as
// for an upgrade, each when the one before is ready.
func TestClusterRollingRestart(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "3", "--msg-id-window", "30m")
	l := startLoad(c, 3)
	rounds := 1
	if testkit.Long() {
		rounds = 10
	}
	for range rounds {
		for _, n := range c.nodes {
			if err := errors.Join(n.stop(), n.start()); err != nil {
				t.Fatalf("node %s: %v", n.name, err)
			}
		}
	}
	l.stop(t)
	l.check(t)
}

// TestClusterReplaceEveryNode adds new nodes and removes the founders, one at a
// time and under load, and deletes the founders' directories.
func TestClusterReplaceEveryNode(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "2", "--msg-id-window", "30m")
	l := startLoad(c, 2)
	for i := range 3 {
		c.replace(t, c.nodes[0], fmt.Sprintf("n%d", i+4))
	}
	l.stop(t)
	l.check(t)
}

// replace replaces one node by a new one.
func (c *cluster) replace(t *testing.T, old *node, name string) {
	t.Helper()
	fresh := c.prepare(name)
	if err := fresh.launch(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes { // it is added by any of them
		c.awaitHeard(t, name, n)
	}
	c.operate(t, "add", name)
	if err := fresh.awaitReady(); err != nil {
		t.Fatal(err)
	}
	c.nodes = append(c.nodes, fresh)
	c.operate(t, "remove", old.name)
	select {
	case <-old.running().done:
	case <-time.After(patience):
		t.Fatalf("node %s was removed and is still running", old.name)
	}
	c.nodes = c.others(old)
	delete(c.routes, old.name)
	if err := os.RemoveAll(old.dir); err != nil {
		t.Fatal(err)
	}
}

// awaitHeard waits until a node reports that another one waits to be added.
func (c *cluster) awaitHeard(t *testing.T, name string, by *node) {
	t.Helper()
	client := c.dialOnly(by)
	defer client.Conn.Close()
	if err := c.until(t.Context(), name+" heard by "+by.name, func(ctx context.Context) string {
		s, err := statusOf(ctx, client)
		for _, n := range s.Nodes {
			if n.Name == name && n.State == "waiting" {
				return ""
			}
		}
		return fmt.Sprintf("%+v %v", s.Nodes, err)
	}); err != nil {
		t.Fatal(err)
	}
}

// operate carries out an operation with the program, and waits until it is
// done.
func (c *cluster) operate(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"cluster"}, args...)
	args = append(args, "--server", c.nodes[1].url, "--wait", patience.String())
	if code, stdout, stderr := cantus(t, args...); code != 0 {
		t.Fatalf("cantus %v: exit %d\n%s%s", args, code, stdout, stderr)
	}
}

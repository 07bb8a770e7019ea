package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
)

// inProcess is a node in the test's process, and a client of it.
type inProcess struct {
	t    *testing.T
	dir  string
	node *broker.Node
	*client.Client
}

func openInProcess(t *testing.T, o broker.Options) *inProcess {
	t.Helper()
	o.Partitions, o.ClientListen = 1, "127.0.0.1:0"
	dir := t.TempDir()
	n, err := broker.Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c, err := client.New(nc, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &inProcess{t, dir, n, c}
}

func (n *inProcess) append(from, to int) {
	n.t.Helper()
	for i := from; i <= to; i++ {
		if r, err := n.Append(n.t.Context(), &client.Request{Payload: []byte(fmt.Sprint(i))}); err != nil || r.Txid != uint64(i) {
			n.t.Fatalf("append %d: %+v, %v", i, r, err)
		}
	}
}

// follower applies transactions whose payloads are their txids.
type follower struct {
	*client.Follower
	mu      sync.Mutex
	applied uint64
	done    chan error
}

func (n *inProcess) follow() *follower {
	n.t.Helper()
	f := &follower{done: make(chan error, 1)}
	var err error
	// A silent feed is not asked about for long: what is late was missed.
	f.Follower, err = n.NewFollower(client.Positions{0: 0}, f.apply, client.FollowOptions{IdleTimeout: time.Hour})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.t.Context())
	n.t.Cleanup(cancel)
	go func() { f.done <- f.Run(ctx) }()
	return f
}

func (f *follower) apply(_ context.Context, tx *client.Transaction) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.applied++; tx.Txid != f.applied || string(tx.Payload) != fmt.Sprint(tx.Txid) {
		return fmt.Errorf("transaction %d is %q, behind %d", tx.Txid, tx.Payload, f.applied-1)
	}
	return nil
}

// wait waits until the follower has applied a transaction.
func (f *follower) wait(t *testing.T, txid uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.Wait(ctx, 0, txid); err != nil {
		t.Fatalf("up to %d: %v", txid, err)
	}
}

// command runs a command that must succeed.
func command(t *testing.T, args ...string) {
	t.Helper()
	var out, errOut bytes.Buffer
	p := &program{in: bytes.NewReader(nil), out: &out, errOut: &errOut}
	if status := p.run(t.Context(), args); status != 0 {
		t.Fatalf("%v: status %d: %s%s", args, status, &out, &errOut)
	}
}

// A follower begins at the first transaction, which is in the archive alone,
// and goes on in the log and the feed.
func TestAFollowerBeginsInTheArchive(t *testing.T) {
	to := t.TempDir()
	a, err := openArchive(t.Context(), to, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n := openInProcess(t, broker.Options{Archive: a, MaxMsgIDs: 1})
	url := n.node.ClientURL()
	n.append(1, 150)
	command(t, "backup", "--to", to, "--server", url, "--quiet")
	n.append(151, 300)
	command(t, "backup", "--to", to, "--server", url, "--quiet")
	n.append(301, 310)
	command(t, "trim", "0", "--before", "300", "--server", url)
	f := n.follow()
	f.wait(t, 310)
	n.append(311, 320)
	f.wait(t, 320)
}

// A follower of a mirror gets what the source appends, and goes on with what
// the mirror does once it is promoted. It then knows that this is another
// cluster.
func TestAFollowerOfAMirror(t *testing.T) {
	source, mirror := openInProcess(t, broker.Options{}), openInProcess(t, broker.Options{})
	from, to := source.node.ClientURL(), mirror.node.ClientURL()
	source.append(1, 20)
	command(t, "mirror", "--from", from, "--to", to, "--once", "--quiet")
	f := mirror.follow()
	f.wait(t, 20)
	var id string // known with the end of the read, after its transactions
	testkit.Until(t, "the follower knows the cluster", func() bool { id = f.Cluster(0); return id != "" })
	if err := source.CheckHistory(t.Context(), 0, 20, id); id == "" || err != nil {
		t.Fatalf("the follower's cluster is %q; at the source: %v", id, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		var out bytes.Buffer
		ended <- (&program{in: bytes.NewReader(nil), out: &out, errOut: &out}).run(ctx, []string{"mirror", "--from", from, "--to", to, "--quiet"})
	}()
	for i := range 10 {
		source.append(21+i, 21+i)
		f.wait(t, uint64(21+i)) // by the feed: nothing else comes within the idle time
	}
	stop()
	if status := <-ended; status != 0 {
		t.Errorf("an interrupted mirror ends with %d", status)
	}
	source.append(31, 31) // is not mirrored
	command(t, "mirror", "promote", "--server", to)
	mirror.append(31, 32)
	f.wait(t, 32)
	if f.Cluster(0) == id {
		t.Errorf("after the promotion the follower is still in cluster %s", id)
	}
	var ahead *client.HistoryError
	if err := mirror.CheckHistory(t.Context(), 0, 31, id); !errors.As(err, &ahead) || ahead.Common != 30 || ahead.Cluster != f.Cluster(0) {
		t.Errorf("a consumer that is ahead is told %v", err)
	}
	if err := mirror.CheckHistory(t.Context(), 0, 30, id); err != nil {
		t.Errorf("a consumer that is not ahead is told %v", err)
	}
}

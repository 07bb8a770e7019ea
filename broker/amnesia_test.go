package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// listener is a slog.Handler that keeps the errors.
type listener struct {
	mu   sync.Mutex
	said []string
}

func (l *listener) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }
func (l *listener) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *listener) WithGroup(string) slog.Handler                    { return l }
func (l *listener) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, r.Message)
	r.Attrs(func(a slog.Attr) bool { l.said = append(l.said, a.String()); return true })
	return nil
}

// heard reports whether an error with a text was logged.
func (l *listener) heard(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.said {
		if strings.Contains(s, text) {
			return true
		}
	}
	return false
}

// all returns what was logged.
func (l *listener) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.said)
}

// save copies a stopped node's directory, and returns a function that restores
// it.
func (c *nodes) save(name string) (restore func()) {
	c.t.Helper()
	saved := c.t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(c.dirs[name])); err != nil {
		c.t.Fatal(err)
	}
	return func() {
		c.t.Helper()
		if err := errors.Join(os.RemoveAll(c.dirs[name]), os.CopyFS(c.dirs[name], os.DirFS(saved))); err != nil {
			c.t.Fatal(err)
		}
	}
}

// begin starts a node that may never serve, and returns how its start ended.
func (c *nodes) begin(name string) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.tryStart(name) }()
	return ended
}

// fill appends count transactions through a node.
func (c *nodes) fill(by, what string, count int) {
	c.t.Helper()
	nc := c.conn(by)
	defer nc.Close()
	for i := range count {
		id := fmt.Sprintf("%s%d", what, i)
		keep(c.t, nc, 0, id, id)
	}
}

// amnesiac is a cluster whose node n3 runs on an older copy of its directory
// when it is next started. Before, n1 and n3 have acknowledged transactions
// that n2 does not have.
func amnesiac(t *testing.T, witnessed bool) (*nodes, map[string]*listener) {
	t.Helper()
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	logs := map[string]*listener{}
	c.change = func(name string, o *broker.Options) {
		if logs[name] == nil {
			logs[name] = &listener{}
		}
		o.Logger = slog.New(logs[name])
	}
	for _, name := range c.names {
		c.options(name) // makes its log
	}
	t.Cleanup(func() {
		for _, name := range c.names {
			if t.Failed() {
				t.Logf("the errors that %s has logged: %q", name, logs[name].all())
			}
		}
	})
	c.start(c.names...)
	c.awaitPlaced("n1")
	c.fill("n1", "both", 5)
	c.checkSame(0, c.names...)
	c.stop("n3")
	restore := c.save("n3")
	if !witnessed {
		c.stop("n2")
	}
	c.start("n3")
	for _, name := range []string{"n1", "n2"} {
		if n := c.node(name); n != nil {
			eventually(t, name+" knows n3's new generation", func() bool {
				return broker.Witnessed(n, c.node("n3")) == broker.Generation(c.node("n3"))
			})
		}
	}
	if witnessed {
		c.stop("n2")
	}
	c.fill("n1", "lost", 20)
	c.checkSame(0, "n1", "n3")
	c.stop("n1")
	c.stop("n3")
	restore()
	return c, logs
}

// The older copy would elect itself, or another node that lacks as much, and
// acknowledged transactions would be lost. It is recognized by what n2
// remembers.
func TestAnOlderCopyOfADirectoryTakesNoPart(t *testing.T) {
	testkit.MayViolate(t, invariant.DigestsEqual, invariant.CommittedKept) // a directory is put back
	testkit.NotShort(t, "nodes restart many times")
	c, logs := amnesiac(t, true)
	n2, n3 := c.begin("n2"), c.begin("n3")
	eventually(t, "n3 says that it runs on an older copy", func() bool {
		select {
		case err := <-n2:
			t.Fatalf("n2 and n3 serve without what n1 has: %v", err)
		default:
		}
		return logs["n3"].heard("older copy")
	})
	c.start("n1")
	if err := <-n2; err != nil {
		t.Fatal(err)
	}
	if err := <-n3; !errors.Is(err, broker.ErrOlderCopy) || !strings.Contains(err.Error(), "n1 says that") || !strings.Contains(err.Error(), "n2 says that") {
		t.Errorf("n3 ends with %v", err)
	}
	if got := c.checkSame(0, "n1", "n2"); len(got) != 25 {
		t.Errorf("of 25 transactions %d are there", len(got))
	}
	// The operator replaces it.
	c.operate("n1", subjects.AdminRequest{Node: "n3"}, "cluster", "remove")
	eventually(t, "n3 is no member", func() bool { return len(c.status("n1").Nodes) == 2 })
	c.dirs["n3"] = t.TempDir()
	change := c.change
	c.change = func(name string, o *broker.Options) {
		if change(name, o); name == "n3" {
			o.Bootstrap = nil
		}
	}
	n3 = c.begin("n3")
	c.operate("n1", subjects.AdminRequest{Node: "n3"}, "cluster", "add")
	if err := <-n3; err != nil {
		t.Fatal(err)
	}
	c.awaitPlaced("n1")
	c.fill("n3", "after", 3)
	if got := c.checkSame(0, c.names...); len(got) != 28 {
		t.Errorf("of 28 transactions %d are there", len(got))
	}
}

// Two older copies leave no majority. They report what they are, the right node
// serves replica reads, and leads again once one of the newer directories is
// back.
func TestTwoOlderCopiesLeaveNoMajority(t *testing.T) {
	testkit.MayViolate(t, invariant.DigestsEqual, invariant.CommittedKept) // a directory is put back
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	c.start(c.names...)
	c.awaitPlaced("n1")
	older := map[string]func(){}
	for _, name := range []string{"n2", "n3"} {
		c.stop(name)
		older[name] = c.save(name)
		c.start(name)
		eventually(t, "n1 knows the new generation of "+name, func() bool {
			return broker.Witnessed(c.node("n1"), c.node(name)) == broker.Generation(c.node(name))
		})
	}
	c.awaitPlaced("n1")
	c.fill("n1", "lost", 5)
	c.checkSame(0, c.names...)
	for _, name := range c.names {
		c.stop(name)
	}
	newer := c.save("n3")
	older["n2"]()
	older["n3"]()

	listen := ports.Free(t)
	c.change = func(name string, o *broker.Options) {
		if name == "n1" {
			o.ClientListen = listen
		}
	}
	_, n1, stop1 := c.again("n1")
	log2, n2, stop2 := c.again("n2")
	log3, n3, stop3 := c.again("n3")
	eventually(t, "both older copies know what they are", func() bool {
		const says = "the data directory is an older copy of itself"
		return log2.count(says) > 0 && log3.count(says) > 0
	})
	checkSaved(t, listen, 5)
	for _, stop := range []func(){stop1, stop2, stop3} {
		stop()
	}
	for _, ended := range []<-chan error{n1, n2, n3} {
		if err := <-ended; err == nil {
			t.Error("a node serves without a majority")
		}
	}
	newer()
	c.change = nil
	c.start("n1", "n3")
	if got := c.checkSame(0, "n1", "n3"); len(got) != 5 {
		t.Errorf("of 5 transactions %d are there", len(got))
	}
}

// checkSaved copies partition 0 of a node that follows no leader to a new
// cluster, as the guide describes, and checks that each transaction is
// unchanged.
func checkSaved(t *testing.T, address string, count int) {
	t.Helper()
	nc, err := nats.Connect("nats://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var from answers
	eventually(t, "the replica answers with all that it has", func() bool {
		sub, err := nc.SubscribeSync(nc.NewInbox())
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.PublishRequest("cantus.replica.read.0", sub.Subject, []byte(`{"from":1}`)); err != nil {
			t.Fatal(err)
		}
		// The older copies stop serving theirs: a request to one may have no
		// responder.
		from, err = receive(t, sub)
		return err == nil && len(from.transactions) == count
	})
	_, fresh := one(t, broker.Options{Partitions: 1})
	for i, m := range from.transactions {
		copied := message("cantus.append.0", string(m.Data), subjects.HeaderExpectedLast, fmt.Sprint(i))
		for key, values := range m.Header {
			switch key {
			case subjects.HeaderTxid, subjects.HeaderPartition, subjects.HeaderTime, subjects.HeaderPrevious, subjects.HeaderMsgID:
			case subjects.HeaderStoredMsgID:
				copied.Header[subjects.HeaderMsgID] = values
			default:
				copied.Header[key] = values
			}
		}
		answer, err := fresh.RequestMsg(copied, patience)
		if err != nil || !strings.Contains(string(answer.Data), fmt.Sprintf(`"txid":%d,`, i+1)) {
			t.Fatalf("transaction %d: %v, %s", i+1, err, answer.Data)
		}
	}
	to := collect(t, fresh, "cantus.read.0", `{"from":1}`)
	if len(from.transactions) != count || len(to.transactions) != count {
		t.Fatalf("of %d transactions %d are read and %d copied", count, len(from.transactions), len(to.transactions))
	}
	for i, m := range to.transactions {
		was := from.transactions[i]
		was.Header.Del(subjects.HeaderTime)
		m.Header.Del(subjects.HeaderTime)
		if string(m.Data) != string(was.Data) || !reflect.DeepEqual(m.Header, was.Header) {
			t.Errorf("transaction %d is %v %q, and was %v %q", i+1, m.Header, m.Data, was.Header, was.Data)
		}
	}
}

// An older copy can't begin generations alone until no node knows those that it
// shows: a start that meets no other node begins none.
func TestAStartThatMeetsNobodyBeginsNoGeneration(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	before := broker.Generation(c.node("n3"))
	for _, name := range c.names {
		c.stop(name)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	opts := c.options("n3")
	opts.ClientListen = taken.Addr().String()
	for range 3 {
		if n, err := broker.Open(t.Context(), c.dirs["n3"], opts); err == nil {
			_ = n.Close()
			t.Fatal("a node starts on a port that is taken")
		}
	}
	s, err := wal.Open(c.dirs["n3"], wal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.Generations()
	if err != nil || before == 0 || len(all) == 0 || all[len(all)-1].Number != before {
		t.Errorf("%d generations after %d, %v", len(all), before, err)
	}
}

var errLed = errors.New("it has led")

// n2 was away when n3 was started last, and can't know. With the older copy it
// makes a majority that lacks entries of n1. When n1 comes back it discards
// nothing, and reports that. By its terms n1's log may be the newer one: then
// n1 leads, and n2 reports that its log is another one.
func TestWhatAnOlderCopyHasLostIsNotGivenUp(t *testing.T) {
	testkit.MayViolate(t, invariant.DigestsEqual, invariant.CommittedKept) // a directory is put back
	testkit.NotShort(t, "nodes restart many times")
	c, logs := amnesiac(t, false)
	c.start("n2", "n3")
	c.fill("n2", "other", 3)
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	n1 := make(chan error, 1)
	go func() {
		for {
			n, err := broker.Open(ctx, c.dirs["n1"], c.options("n1"))
			if err == nil && broker.Leads(n, 0) {
				<-ctx.Done()
				err = errors.Join(errLed, n.Close())
			}
			if err == nil || ctx.Err() != nil {
				n1 <- err
				return
			}
		}
	}()
	heard := func(name string, texts ...string) bool { return slices.ContainsFunc(texts, logs[name].heard) }
	eventually(t, "n1 keeps what it has, and n3 says what it is", func() bool {
		keeps := heard("n1", "committed entries would be removed", "differ from those of", "differs from that of", "had applied those up to") ||
			heard("n2", "committed entries would be removed", "differs from that of n1", "damage was found")
		if len(n1) > 0 && !keeps {
			t.Fatalf("n1 ended: %v", <-n1)
		}
		return keeps && logs["n3"].heard("older copy")
	})
	for _, name := range []string{"n2", "n3"} {
		eventually(t, name+" is not ready", func() bool { return !c.node(name).Ready() })
	}
	giveUp()
	if err := <-n1; err == nil {
		t.Error("n1 serves")
	}
	err := wal.Verify(c.dirs["n1"], func(r wal.PartitionReport) {
		if r.Err != nil || r.Transactions < 25 {
			t.Errorf("n1 holds %d transactions of 25: %v", r.Transactions, r.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

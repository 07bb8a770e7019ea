package broker_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// An operation that an operator asked for logs no warnings.
func TestAHandOverIsNoWarning(t *testing.T) {
	c := newNodes(t, 4, broker.Options{Partitions: 2, Replicas: 3})
	log := &buffer{}
	c.change = func(name string, o *broker.Options) {
		o.Logger = slog.New(slog.NewTextHandler(log, nil)).With("node", name)
	}
	c.start(c.names...)
	c.awaitPlaced("n4")
	s := c.status("n4")
	p, from, to := 0, c.leader(0, "n4"), ""
	for _, name := range s.Partitions[0].Placement {
		if name != from {
			to = name
		}
	}
	c.operate("n4", subjects.AdminRequest{Partition: &p, To: to}, "cluster", "transfer")
	eventually(t, to+" leads", func() bool { return c.leader(0, "n4") == to })

	var facts string
	eventually(t, "the facts have a leader", func() bool {
		facts = c.status("n4").MetaLeader
		return facts != ""
	})
	c.operate("n4", subjects.AdminRequest{Node: facts}, "cluster", "remove")
	<-c.node(facts).Done()
	leader := c.leader(1, "n4")
	c.stop(leader)
	for _, want := range []string{ // whoever led partition 0 by then
		`level=INFO msg="leading ended" node=n\d partition=0 because="leadership is transferred to ` + to,
		`level=INFO msg="leading the facts ended" node=` + facts,
		`level=INFO msg="leading ended" node=` + leader + ` partition=1 because="the node stops`,
	} {
		if !log.matches(want) {
			t.Errorf("not logged: %s", want)
		}
	}
	// A leader that an election deposes on a busy machine does warn.
	if log.matches(`level=WARN msg="leading.* because="(leadership is transferred|the node stops)`) {
		t.Error("a leadership transfer is a warning")
	}
	if t.Failed() {
		t.Log(log.b.String())
	}
}

// A transfer that fails loses no request, wherever it comes from: the leader is
// subscribed all the time.
func TestAFailedTransferLosesNothing(t *testing.T) {
	// On a busy machine another election would lose requests by itself.
	c := openNodes(t, 3, broker.Options{Partitions: 1, ElectionTimeout: 3 * time.Second})
	c.awaitPlaced("n1")
	w := startWriters(t, c, "n2")
	for range 30 {
		before := w.done.Load()
		eventually(t, "appends", func() bool { return w.done.Load() > before+20 })
		broker.FailToTransfer(c.node("n1"), 0)
	}
	close(w.stop)
	w.running.Wait()
	if len(w.silent) > 0 {
		t.Errorf("without an answer: %q", w.silent)
	}
}

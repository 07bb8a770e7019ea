package broker_test

import (
	"log/slog"
	"testing"

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
	for _, want := range []string{
		"partition=0 because=\"leadership is transferred to " + to, // whoever led by then
		"level=INFO msg=\"leading the facts ended\" node=" + facts,
		"level=INFO msg=\"leading ended\" node=" + leader + " partition=1 because=\"the node stops",
	} {
		if log.count(want) == 0 {
			t.Errorf("not logged: %s", want)
		}
	}
	if n := log.count("level=WARN msg=\"leading"); n > 0 {
		t.Errorf("%d leadership transfers are warnings", n)
	}
	if t.Failed() {
		t.Log(log.b.String())
	}
}

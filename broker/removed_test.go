package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// remove removes a node from the cluster, and closes it once it has stopped.
func (c *nodes) remove(name string) {
	c.t.Helper()
	const warning = "replicas of a partition are left then"
	if done := c.operate("n1", subjects.AdminRequest{Node: name}, "cluster", "remove").Done; !strings.Contains(done, warning) {
		c.t.Errorf("the removal of %s says %q, which does not tell that there are fewer replicas", name, done)
	}
	n := c.node(name)
	<-n.Done()
	if err := n.Err(); !errors.Is(err, broker.ErrRemoved) {
		c.t.Fatalf("%s ended with %v", name, err)
	}
	_ = n.Close()
	c.mu.Lock()
	delete(c.open, name)
	c.mu.Unlock()
	c.awaitPlaced("n1")
}

// again opens a node in the background, with a log of its own. The channel
// receives the result of Open; stop ends the wait for it.
func (c *nodes) again(name string) (log *buffer, opened <-chan error, stop func()) {
	log = &buffer{}
	o := c.options(name)
	handlers := []slog.Handler{slog.NewTextHandler(log, nil)}
	if o.Logger != nil { // see options
		handlers = append(handlers, o.Logger.Handler())
	}
	o.Logger = slog.New(slog.NewMultiHandler(handlers...))
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() {
		n, err := broker.Open(ctx, c.dirs[name], o)
		if err == nil {
			err = n.Close()
		}
		done <- err
	}()
	return log, done, cancel
}

// A removed node that is started again can't know that it was removed if the
// nodes that it would ask are gone. It must not answer for the cluster.
func TestARemovedNodeWhoseClusterIsGoneAnswersNothing(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 2})
	c.awaitPlaced("n1")
	c.remove("n3")
	c.remove("n2")

	log, opened, stop := c.again("n3")
	defer stop()
	eventually(t, "n3 says why it does not serve", func() bool {
		return log.count("this node was removed, or its cluster is gone: n1 says so, n2 does not answer; if it was removed, stop it and delete "+c.dirs["n3"]) > 0
	})
	nc := c.conn("n1")
	for range 40 { // the server chooses among those that answer
		var i subjects.ClusterInfo
		if m := ask(t, nc, subjects.Names{}.Info(), ""); json.Unmarshal(m.Data, &i) != nil || len(i.Nodes) != 1 {
			t.Fatalf("info: %s", m.Data)
		}
		var s subjects.ClusterStatus
		if m := ask(t, nc, subjects.Names{}.Admin("status"), ""); json.Unmarshal(m.Data, &s) != nil || s.AnsweredBy != "n1" {
			t.Fatalf("status: %s", m.Data)
		}
	}
	if n := log.count("fetching the log") + log.count("the replica is not here yet"); n > 4 {
		t.Errorf("%d lines about two partitions", n)
	}
	stop()
	if err := <-opened; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "this node was removed, or its cluster is gone") {
		t.Errorf("n3 ended with %v", err)
	}
}

// One of the voters that a removed node knows is gone for good. The node asks
// the current voters.
func TestARemovedNodeAsksThoseThatVoteNow(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 2})
	c.awaitPlaced("n1")
	c.remove("n3")
	c.remove("n2")
	c.prepare("n4")
	joined := make(chan error)
	go func() { joined <- c.tryStart("n4") }()
	c.addWhenThere("n4", false)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	eventually(t, "n4 votes", func() bool {
		s := c.status("n1")
		return placed(s) && slices.Contains(s.Partitions[0].Placement, "n4")
	})
	c.stop("n1")

	log, opened, stop := c.again("n3")
	defer stop()
	eventually(t, "n3 suspects its removal", func() bool { return log.count("may have been removed") > 0 || log.count("log fetched") > 1 })
	c.start("n1")
	select {
	case err := <-opened:
		if !errors.Is(err, broker.ErrRemoved) {
			t.Errorf("n3 ended with %v", err)
		}
	case <-time.After(patience):
		t.Errorf("n3 goes on:\n%s", log.b.String())
	}
}

// A node that joined knows, after a restart too, which facts are too old to say
// that it was removed. All voters may have such facts for a moment, if all
// nodes lose their power.
func TestANodeRemembersTheFactsItJoinedWith(t *testing.T) {
	c := openNodes(t, 1, broker.Options{Partitions: 1})
	before := c.status("n1").Facts
	c.prepare("n2")
	joined := c.begin("n2")
	c.addWhenThere("n2", true)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	founder, err1 := wal.ReadIdentity(c.dirs["n1"])
	joiner, err2 := wal.ReadIdentity(c.dirs["n2"])
	if err := errors.Join(err1, err2); err != nil || founder.JoinedAt != 0 || joiner.JoinedAt <= before {
		t.Fatalf("n1 joined at %d, n2 at %d, the facts were at %d; %v", founder.JoinedAt, joiner.JoinedAt, before, err)
	}
	c.stop("n2")
	c.start("n2")
	if at := broker.JoinedAt(c.node("n2")); at != joiner.JoinedAt {
		t.Errorf("after a restart it takes facts from %d on, not %d", at, joiner.JoinedAt)
	}
}

// Replicas that can't move elsewhere stay on a node that is drained, and the
// answer says so.
func TestADrainedNodeThatKeepsItsReplicas(t *testing.T) {
	_, nc := openNode(t, t.TempDir(), broker.Options{Name: "n1", Partitions: 4})
	wantBody(t, ask(t, nc, subjects.Names{}.Admin("cluster", "drain"), `{"node":"n1"}`), `{"done":"node n1 is draining: 4 replicas with nowhere else to go","facts":1}`)
}

// The only replica of a partition is not deleted to be fetched again: a retry
// would not help, and the answer does not ask for one.
func TestTheOnlyReplicaIsNotRebuilt(t *testing.T) {
	_, nc := openNode(t, t.TempDir(), broker.Options{Name: "n1", Partitions: 1})
	keep(t, nc, 0, "led", "x")
	m := ask(t, nc, subjects.Names{}.Admin("node", "n1", "rebuild"), `{"partition":0}`)
	if e := wantRefusal(t, m, subjects.BadRequest); !strings.Contains(e.Message, "n1 has the only replica") {
		t.Errorf("refused with %q", e.Message)
	}
}

// A node that is drained completely is not done before it holds nothing.
func TestADrainedNodeIsSaidToBeDrainedWhenItIs(t *testing.T) {
	c := openNodes(t, 4, broker.Options{Partitions: 2, Replicas: 3})
	c.awaitPlaced("n1")
	held := 0
	for _, p := range c.status("n1").Partitions {
		if slices.Contains(p.Placement, "n4") {
			held++
		}
	}
	drain := subjects.Names{}.Admin("cluster", "drain")
	nc := c.conn("n1")
	got := string(ask(t, nc, drain, `{"node":"n4"}`).Data)
	said := 0 // a partition whose leader is not heard at the moment counts, too
	if _, after, ok := strings.Cut(got, "node n4 is draining: "); ok {
		said, _ = strconv.Atoi(strings.Fields(after)[0])
	}
	if held == 0 || said < held || said > 2 || !strings.Contains(got, "to be moved to other nodes") {
		t.Errorf("n4 holds %d replicas, and a drain is answered with %s", held, got)
	}
	eventually(t, "n4 is drained", func() bool {
		m, err := nc.Request(drain, []byte(`{"node":"n4"}`), time.Second)
		return err == nil && strings.HasPrefix(string(m.Data), `{"done":"node n4 is drained: it holds no voting replicas",`)
	})
	eventually(t, "n1 sees n4 without a vote", func() bool {
		for _, p := range c.status("n1").Partitions {
			if slices.ContainsFunc(p.Replicas, func(r subjects.ReplicaStatus) bool { return r.Voter && r.Name == "n4" }) {
				return false
			}
		}
		return true
	})
}

func TestWhoDeniesAMembershipIsSaidInASentence(t *testing.T) {
	for want, by := range map[string][]string{
		"": nil, "n1 says so": {"n1"}, "n1 and n2 say so": {"n1", "n2"}, "n1, n2 and n3 say so": {"n1", "n2", "n3"},
	} {
		if got := broker.Denied(by...); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

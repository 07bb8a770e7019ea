package broker_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// mustNotStart opens a node with options of its own and expects an error.
func (c *nodes) mustNotStart(name string, change func(*broker.Options), want error, text string) {
	c.t.Helper()
	o := c.options(name)
	change(&o)
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	n, err := broker.Open(ctx, c.dirs[name], o)
	if err == nil {
		_ = n.Close()
		c.t.Fatalf("%s was opened", name)
	}
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		c.t.Fatalf("open %s: %v; wanted %v with %q", name, err, want, text)
	}
}

func TestAFounderThatDiffersIsRefusedAndSaysHow(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*broker.Options)
		text   string
	}{
		"partitions": {func(o *broker.Options) { o.Partitions = 3 }, "has 2 partitions, this node 3"},
		"replicas":   {func(o *broker.Options) { o.Replicas = 1 }, "has 3 replicas, this node 1"},
		"founders":   {func(o *broker.Options) { o.Bootstrap = []string{"n1", "n3"} }, "has the founders n1,n2,n3, this node n1,n3"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newNodes(t, 3, broker.Options{})
			started := make(chan error, 2)
			for _, n := range []string{"n1", "n2"} {
				go func() { started <- c.tryStart(n) }()
			}
			c.mustNotStart("n3", test.change, broker.ErrIdentity, test.text)
			c.start("n3") // corrected; the others have waited
			for range 2 {
				if err := <-started; err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestBootstrapIsLookedAtOnce(t *testing.T) {
	c := openNodes(t, 3, broker.Options{})
	c.stop("n3")
	c.mustNotStart("n3", func(o *broker.Options) { o.Bootstrap = []string{"n2", "n3"} },
		broker.ErrIdentity, "was founded by n1,n2,n3, not by n2,n3")
	c.start("n3")
}

func TestAFounderThatLostItsDirectoryDoesNotFoundAgain(t *testing.T) {
	c := openNodes(t, 3, broker.Options{})
	c.stop("n3")
	c.dirs["n3"] = t.TempDir()
	c.mustNotStart("n3", func(*broker.Options) {}, broker.ErrIdentity, "remove that node and add this one")
}

func TestADirectoryOfAnotherClusterIsRefused(t *testing.T) {
	c := openNodes(t, 3, broker.Options{})
	dir := t.TempDir()
	other, err := broker.Open(t.Context(), dir, broker.Options{Name: "n4", Partitions: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	c.prepare("n4")
	c.dirs["n4"] = dir
	c.mustNotStart("n4", func(*broker.Options) {}, broker.ErrIdentity, "data directory belongs to one of that name with id")
	keep(t, c.conn("n1"), 0, "undisturbed", "x")
}

func TestANameThatIsTakenIsRefused(t *testing.T) {
	c := openNodes(t, 3, broker.Options{})
	c.prepare("impostor")
	o := c.options("impostor")
	o.Name = "n2"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Each member that may answer first gives its own reason.
	if _, err := broker.Open(ctx, c.dirs["impostor"], o); !errors.Is(err, broker.ErrNameTaken) && !errors.Is(err, broker.ErrIdentity) {
		t.Fatalf("the impostor: %v", err)
	}
	keep(t, c.conn("n2"), 0, "undisturbed", "x")
}

func TestAnotherProtocolIsRefused(t *testing.T) {
	c := openNodes(t, 3, broker.Options{})
	c.prepare("n4")
	c.mustNotStart("n4", broker.SpeakProtocol(99), broker.ErrProtocol, "protocol 3 of nodes, this one")
	c.stop("n3")
	c.mustNotStart("n3", broker.SpeakProtocol(99), broker.ErrProtocol, "protocol 3 of nodes, this one")
	keep(t, c.conn("n1"), 0, "undisturbed", "x")
	c.start("n3")
}

func TestOptionsThatMakeNoCluster(t *testing.T) {
	for name, test := range map[string]struct {
		opts broker.Options
		text string
	}{
		"founders without an address":           {broker.Options{Bootstrap: []string{"n1", "n2"}}, "give a cluster address (--cluster) and routes (--routes)"},
		"founders without this node":            {broker.Options{ClusterListen: "127.0.0.1:0", Bootstrap: []string{"n2", "n3"}}, `not this node, "n1"`},
		"a founder twice":                       {broker.Options{ClusterListen: "127.0.0.1:0", Bootstrap: []string{"n1", "n1"}}, `names "n1" twice`},
		"a founder that is no name":             {broker.Options{ClusterListen: "127.0.0.1:0", Bootstrap: []string{"n1", "a.b"}}, "bootstrap"},
		"two replicas":                          {broker.Options{Replicas: 2}, "1, 3 or 5"},
		"a standby alone":                       {broker.Options{Standby: true}, "a standby follows other nodes"},
		"a standby that founds":                 {broker.Options{ClusterListen: "127.0.0.1:0", Standby: true, Bootstrap: []string{"n1"}}, "does not found"},
		"routes without an address":             {broker.Options{Routes: []string{"127.0.0.1:1"}}, "cluster address of the node's own"},
		"an election timeout that is too short": {broker.Options{ElectionTimeout: time.Millisecond}, "--election-timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := broker.Open(t.Context(), t.TempDir(), test.opts)
			if !errors.Is(err, broker.ErrOptions) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, wanted %q", err, test.text)
			}
		})
	}
}

func TestGarbageOnTheReplicationPortDisturbsNobody(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	for _, garbage := range []string{"", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\xff", 100_000), "CTRP\x01\xff\xff"} {
		conn, err := net.Dial("tcp", c.node("n1").RaftAddr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(garbage))
		_ = conn.Close()
	}
	keep(t, c.conn("n2"), 0, "undisturbed", "x")
	c.checkSame(0, c.names...)
}

func TestRemovingWhatWouldCostTheMajorityIsRefused(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	c.stop("n3")
	nc := c.conn("n1")
	eventually(t, "n3 is known to be away", func() bool {
		for _, n := range c.status("n1").Nodes {
			if n.Name == "n3" {
				return !n.Alive
			}
		}
		return false
	})
	m := askLeader(t, nc, subjects.Names{}.Admin("cluster", "remove"), `{"node":"n2"}`)
	if e := wantRefusal(t, m, subjects.Unavailable); !strings.Contains(e.Message, "would have 1 of 2 voters and no majority") {
		t.Errorf("refused with %q", e.Message)
	}
	c.operate("n1", subjects.AdminRequest{Node: "n3"}, "cluster", "remove")
	eventually(t, "the dead node is gone", func() bool { return len(c.status("n1").Nodes) == 2 })
	c.awaitPlaced("n1")
	keep(t, nc, 0, "goes on", "x")
	c.checkSame(0, "n1", "n2")
}

func TestOperationsThatMakeNoSense(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	nc := c.conn("n1")
	leader := ""
	eventually(t, "the preferred node leads", func() bool {
		s := c.status("n1")
		leader = s.Partitions[0].Leader
		return placed(s)
	})
	for name, test := range map[string]struct{ subject, body, text string }{
		"add nobody":             {"cluster.add", `{}`, "node is missing"},
		"add an absent node":     {"cluster.add", `{"node":"n9"}`, "has announced itself"},
		"add a member":           {"cluster.add", `{"node":"n2"}`, "is a member already"},
		"remove an unknown node": {"cluster.remove", `{"node":"n9"}`, "is not a member"},
		"an unknown field":       {"cluster.drain", `{"nod":"n1"}`, "nod"},
		"broken JSON":            {"cluster.drain", `{`, "body"},
		"transfer to nobody":     {"cluster.transfer", `{"partition":0}`, "to is missing"},
		"transfer nothing":       {"cluster.transfer", `{"to":"n1"}`, "partition is missing"},
		"transfer what is none":  {"cluster.transfer", `{"partition":7,"to":"n1"}`, "there is no partition 7"},
		"move to where it is":    {"cluster.move", `{"partition":0,"node":"n1","to":"n2"}`, "is on \"n2\" already"},
		"promote an ordinary":    {"cluster.promote", `{"node":"n1"}`, "not a standby"},
		"rebuild what is none":   {"node.n1.rebuild", `{"partition":7}`, "has no replica of partition 7"},
		"rebuild the leader":     {"node." + leader + ".rebuild", `{"partition":0}`, `transfer its leadership first, as "cantus cluster transfer 0 --to NODE" does`},
		"trim by nothing":        {"trim.0", `{}`, "exactly one of"},
		"trim by two":            {"trim.0", `{"before":1,"bytes":5}`, "exactly one of"},
		"trim by what is no age": {"trim.0", `{"age":"old"}`, "is not a time"},
		"trim by an odd age":     {"trim.0", `{"age":"+1h"}`, "is not a time"},
		"trim by a fraction":     {"trim.0", `{"before":1.5}`, `field "before" is the number 1.5: it takes a whole number from 0 on`},
		"trim by a list":         {"trim.0", `{"age":["1h"]}`, `field "age" is an array: it takes a string`},
		"trim by no age":         {"trim.0", `{"age":"0s"}`, "is not a time"},
	} {
		t.Run(name, func(t *testing.T) {
			m := askLeader(t, nc, "cantus.admin."+test.subject, test.body)
			if e := wantRefusal(t, m, subjects.BadRequest); !strings.Contains(e.Message, test.text) {
				t.Errorf("refused with %q, wanted %q", e.Message, test.text)
			}
		})
	}
	var m *nats.Msg
	eventually(t, "a majority confirms the leader", func() bool {
		m = ask(t, nc, "cantus.admin.trim.0", `{"before":2}`)
		return !strings.Contains(string(m.Data), `"unavailable"`)
	})
	wantRefusal(t, m, subjects.Ahead)
}

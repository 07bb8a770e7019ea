package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

const helloSubject = "cantus.admin.hello"

// nodeConn is a connection without the permissions that clients of a node have,
// such as one to another NATS server of the same cluster.
func (c *nodes) nodeConn(name string) *nats.Conn {
	c.t.Helper()
	nc, err := broker.NodeConn(c.node(name))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// lie publishes a hello as a stranger can: in the form of the first protocol,
// which had no signatures, and as an envelope with a signature that is none.
func lie(t *testing.T, nc *nats.Conn, hello map[string]any) {
	t.Helper()
	body, err := json.Marshal(hello)
	if err != nil {
		t.Fatal(err)
	}
	signed := fmt.Appendf(nil, "CANTUS2 %v %v %v %v 9 %064x\n%s", hello["cluster_id"], hello["name"], hello["node_id"], hello["instance"], 7, body)
	for _, b := range [][]byte{body, signed} {
		if err := nc.Publish(helloSubject, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// helloAs is a hello of a node, as whoever has listened can make it.
func helloAs(s subjects.ClusterStatus, name, raft string, more map[string]any) map[string]any {
	h := map[string]any{
		"name": name, "node_id": "d-" + name, "instance": "i-" + name, "started": time.Now().Add(time.Hour), "protocol": 2,
		"cluster": s.Cluster, "cluster_id": s.ID, "raft": raft, "ready": true, "facts": 1 << 40, "members": []string{"n1", "n2", "n3"},
	}
	for key, v := range more {
		h[key] = v
	}
	return h
}

// heardBy returns when a node has heard everything that was published before.
func (c *nodes) heardBy(names ...string) {
	c.t.Helper()
	for _, name := range names {
		before := broker.Distrusted(c.node(name))
		if err := c.nodeConn(name).Publish(helloSubject, []byte("is this heard?")); err != nil {
			c.t.Fatal(err)
		}
		eventually(c.t, name+" has heard it", func() bool { return broker.Distrusted(c.node(name)) > before })
	}
}

// undisturbed makes sure that all nodes serve on.
func (c *nodes) undisturbed() {
	c.t.Helper()
	c.heardBy(c.names...)
	for _, name := range c.names {
		if err := c.node(name).Err(); err != nil {
			c.t.Fatalf("%s has ended: %v", name, err)
		}
	}
	keep(c.t, c.nodeConn("n1"), 0, "undisturbed", fmt.Sprint("undisturbed ", time.Now()))
	c.settle("n1")
}

// One message of a stranger, "n1, n2 and n3 are no members", ended all three.
func TestAStrangerThatSaysThatNobodyIsAMember(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.settle("n1")
	for _, first := range []int{1, 2} { // of the first protocol, too
		lie(t, c.nodeConn("n1"), helloAs(c.status("n1"), "n9", "127.0.0.1:1", map[string]any{"members": []string{"n9"}, "protocol": first}))
	}
	c.undisturbed()
}

// Six invented nodes with another log fenced every replica, for good.
func TestInventedNodesThatHaveAnotherLog(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.settle("n1")
	nc := c.nodeConn("n1")
	var digests []map[string]any
	for i := range 4 {
		txid := keep(t, nc, 0, "x", fmt.Sprint(i))
		digests = append(digests, map[string]any{"Txid": txid, "Digest": make([]int, 32)})
	}
	slices.Reverse(digests)
	for i := range 6 {
		lie(t, nc, helloAs(c.status("n1"), fmt.Sprint("x", i), "127.0.0.1:1", map[string]any{
			"protocol": 1 + i%2,
			"groups":   []map[string]any{{"partition": 0, "state": "leader", "term": 1 << 40, "digests": digests, "applied": 9}},
		}))
	}
	c.undisturbed()
	for _, r := range c.status("n1").Partitions[0].Replicas {
		if r.Fenced != "" {
			t.Errorf("%s is fenced: %s", r.Name, r.Fenced)
		}
	}
}

// Even what proves itself is no measure of a replica unless it votes on the
// partition.
func TestOnlyVotersSayThatAReplicaIsWrong(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.settle("n1")
	for i := range 4 {
		keep(t, c.conn("n1"), 0, "x", fmt.Sprint(i))
	}
	n := c.node("n1")
	for i := range 6 {
		var h map[string]any
		if err := json.Unmarshal(broker.HelloOf(c.node("n2")), &h); err != nil { // a directory that has shown its generations
			t.Fatal(err)
		}
		h["name"] = fmt.Sprint("x", i)
		group := h["groups"].([]any)[0].(map[string]any)
		points, _ := group["digests"].([]any)
		if len(points) == 0 {
			t.Fatal("n2 tells no digests")
		}
		for _, p := range points {
			p.(map[string]any)["Digest"] = make([]int, 32)
		}
		b, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		broker.Hear(n, b)
	}
	for _, r := range c.status("n1").Partitions[0].Replicas {
		if r.Fenced != "" {
			t.Errorf("%s is fenced: %s", r.Name, r.Fenced)
		}
	}
	if !n.Ready() {
		t.Error("n1 is not ready")
	}
}

// Hellos in the nodes' names with another replication address kept a cluster
// down.
func TestAStrangerThatSpeaksInTheNodesNames(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.settle("n1")
	s := c.status("n1")
	nc := c.nodeConn("n1")
	stop := make(chan struct{})
	lying := make(chan struct{})
	go func() {
		defer close(lying)
		for i := 0; ; i++ {
			for _, name := range c.names {
				for protocol := 1; protocol <= 2; protocol++ {
					lie(t, nc, helloAs(s, name, "127.0.0.1:1", map[string]any{"instance": fmt.Sprint("i", i), "protocol": protocol}))
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // the pace of the lies
			}
		}
	}()
	for _, name := range []string{"n2", "n3"} { // each finds the others again
		c.stop(name)
		c.start(name)
	}
	c.undisturbed()
	for _, n := range c.status("n1").Nodes {
		if want := c.node(n.Name).RaftAddr(); n.Raft != want {
			t.Errorf("%s is taken to be at %s, is at %s", n.Name, n.Raft, want)
		}
	}
	close(stop)
	<-lying
}

// 20,000 invented names were remembered for ever.
func TestInventedNamesAreNotRemembered(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	nc := c.nodeConn("n1")
	s := c.status("n1")
	for i := range 20_000 {
		h := helloAs(s, fmt.Sprint("x", i), "127.0.0.1:1", nil)
		body, err := json.Marshal(h)
		if i%2 == 0 { // of a node that waits to be added
			h["cluster_id"] = ""
			body, err = json.Marshal(h)
			body = append(fmt.Appendf(nil, "CANTUS2 - %v %v %v 9 -\n", h["name"], h["node_id"], h["instance"]), body...)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Publish(helloSubject, body); err != nil {
			t.Fatal(err)
		}
	}
	c.undisturbed()
	for _, name := range c.names {
		if n := broker.Remembered(c.node(name)); n > 64+2 {
			t.Errorf("%s remembers %d nodes", name, n)
		}
	}
}

// What a member once said, said again by somebody else, is worth nothing.
func TestReplayedHellos(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.settle("n1")
	nc := c.nodeConn("n1")
	sub, err := nc.SubscribeSync(helloSubject)
	if err != nil {
		t.Fatal(err)
	}
	var old [][]byte
	for len(old) < 6 {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(m.Data), `"name":"n3"`) {
			old = append(old, m.Data)
		}
	}
	_ = sub.Unsubscribe()
	replay := func() {
		for _, b := range old {
			if err := nc.Publish(helloSubject, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	alive := func() bool {
		for _, n := range c.status("n1").Nodes {
			if n.Name == "n3" {
				return n.Alive
			}
		}
		return false
	}
	c.stop("n3")
	eventually(t, "n3 is away, whatever is replayed", func() bool { replay(); return !alive() })
	for range 50 {
		replay()
		if alive() {
			t.Fatal("a replayed hello brings n3 back")
		}
	}
	c.start("n3")
	replay()
	c.undisturbed()
	for _, n := range c.status("n1").Nodes {
		if want := c.node(n.Name).RaftAddr(); n.Raft != want {
			t.Errorf("%s is taken to be at %s, is at %s", n.Name, n.Raft, want)
		}
	}
}

// Not even a member ends another by its word.
func TestOneMemberThatDeniesAnother(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.settle("n1")
	var h map[string]any
	if err := json.Unmarshal(broker.HelloOf(c.node("n1")), &h); err != nil {
		t.Fatal(err)
	}
	h["members"], h["facts"] = []string{"n1"}, 1<<40
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	broker.Hear(c.node("n2"), b)
	if !broker.InDoubt(c.node("n2")) {
		t.Error("n2 has not heard it")
	}
	eventually(t, "the others say that it is a member", func() bool { return !broker.InDoubt(c.node("n2")) })
	c.undisturbed()
}

// A member that was removed still has the secret. Its word counts for nothing,
// and it gets nothing.
func TestARemovedMemberWithTheOldSecret(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.settle("n1")
	key, s := broker.Derive(c.node("n3"), "replication"), c.status("n1")
	c.operate("n1", subjects.AdminRequest{Node: "n3"}, "cluster", "remove")
	removed := c.node("n3")
	<-removed.Done()
	if err := removed.Err(); !errors.Is(err, broker.ErrRemoved) {
		t.Fatalf("n3 ended with %v", err)
	}
	_ = removed.Close()
	c.names = []string{"n1", "n2"}
	c.settle("n1")

	id, err := wal.ReadIdentity(c.dirs["n3"])
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	network, err := raftstore.NewNetwork(raftstore.NetworkOptions{
		Node: "n3", ID: id.NodeID, Cluster: s.ID, Key: key[:], Listener: listener,
		Resolve: func(string) (string, error) { return c.node("n1").RaftAddr(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	store, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n3", Partitions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := raftstore.Fetch(t.Context(), network, 0, "n1", store.Log(0)); err == nil || !strings.Contains(err.Error(), "n3 is no member") {
		t.Errorf("it fetches the log: %v", err)
	}

	o := c.options("n3")
	o.Bootstrap = nil
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n, err := broker.Open(ctx, c.dirs["n3"], o); !errors.Is(err, broker.ErrRemoved) {
		t.Errorf("it is opened again: %v, %v", n, err)
	}
	c.undisturbed()
}

// A stranger must not be able to keep a node from starting by its name.
func TestAStrangerWithTheNameOfANodeThatStarts(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	old := map[string]any{"name": "n3", "node_id": "x", "instance": "x", "started": time.Unix(0, 0), "cluster": "cantus", "raft": "127.0.0.1:1", "ready": true}
	c.stop("n3")
	nc, stop := c.nodeConn("n1"), make(chan struct{})
	lying, id := make(chan struct{}), c.status("n1").ID
	go func() {
		defer close(lying)
		for protocol := 1; ; protocol = 3 - protocol {
			old["protocol"] = protocol
			old["cluster_id"] = id
			lie(t, nc, old)
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond): // the pace of the lies
			}
		}
	}()
	c.start("n3")
	close(stop)
	<-lying
	c.undisturbed()
}

// With a token nobody founds or joins who does not have it, and nodes that have it
// do.
func TestAClusterWithAToken(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1, ClusterSecret: token})
	c.start(c.names...)
	for _, name := range c.names {
		if s, err := wal.ReadSecret(c.dirs[name]); err != nil || !s.Token {
			t.Errorf("%s has %v, %v", name, s.Token, err)
		}
	}
	c.opts.ClusterSecret = "" // it is kept
	c.stop("n3")
	c.start("n3")
	c.prepare("n4")
	joined := make(chan error)
	c.change = func(name string, o *broker.Options) {
		if name == "n4" {
			o.ClusterSecret = token
		}
	}
	go func() { joined <- c.tryStart("n4") }()
	c.addWhenThere("n4", false)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	c.checkSame(0, c.names...)
}

// A node that is added without a token shows a key, and gets the secret sealed for
// it alone.
func TestANodeThatIsAddedGetsTheSecret(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.prepare("n4")
	joined := make(chan error)
	go func() { joined <- c.tryStart("n4") }()
	key := ""
	eventually(t, "n4 waits and shows its key", func() bool {
		for _, n := range c.status("n1").Nodes {
			if n.Name == "n4" && n.State == "waiting" {
				key = n.Key
			}
		}
		return key != ""
	})
	m := ask(t, c.nodeConn("n1"), subjects.Names{}.Admin("cluster", "add"), `{"node":"n4","key":"00000000000000000000000000000000"}`)
	if e := wantRefusal(t, m, subjects.BadRequest); !strings.Contains(e.Message, "with the key 0000") {
		t.Errorf("another key is refused with %q", e.Message)
	}
	c.operate("n1", subjects.AdminRequest{Node: "n4", Key: key, Standby: true}, "cluster", "add")
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	if broker.Derive(c.node("n4"), "x") != broker.Derive(c.node("n1"), "x") {
		t.Error("n4 has another secret")
	}
	if _, err := os.Stat(c.dirs["n4"] + "/founding.key"); err == nil {
		t.Error("the key that it showed is still there")
	}
	c.checkSame(0, "n1", "n4")
}

package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

const announcementSubject = "cantus.admin.hello"

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

// announcementAs returns an announcement of a node, as anyone who listens could
// make it.
func announcementAs(s subjects.ClusterStatus, name, raft string, more map[string]any) map[string]any {
	h := map[string]any{
		"name": name, "node_id": "d-" + name, "instance": "i-" + name, "started": time.Now().Add(time.Hour), "protocol": 3,
		"cluster": s.Cluster, "cluster_id": s.ID, "raft": raft, "ready": true, "facts": 1 << 40, "members": []string{"n1", "n2", "n3"},
	}
	for key, v := range more {
		h[key] = v
	}
	return h
}

// heardBy returns when nodes have heard everything that was published on a
// connection before. A node remembers a newcomer that it hears.
func (c *nodes) heardBy(nc *nats.Conn, names ...string) {
	c.t.Helper()
	c.asked++
	newcomer := fmt.Sprint("newcomer", c.asked)
	body, err := json.Marshal(map[string]any{
		"name": newcomer, "node_id": "x", "instance": newcomer, "protocol": 3, "cluster": c.status(names[0]).Cluster,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := nc.Publish(announcementSubject, fmt.Appendf(nil, "CANTUS3 - %s x %s 1 -\n%s", newcomer, newcomer, body)); err != nil {
		c.t.Fatal(err)
	}
	for _, name := range names {
		eventually(c.t, name+" has heard it", func() bool { return broker.Remembers(c.node(name), newcomer) })
	}
}

// undisturbed checks that all nodes, having heard what was published on a
// connection, still serve and know the others' addresses.
func (c *nodes) undisturbed(nc *nats.Conn) {
	c.t.Helper()
	c.heardBy(nc, c.names...)
	for _, name := range c.names {
		if err := c.node(name).Err(); err != nil {
			c.t.Fatalf("%s has ended: %v", name, err)
		}
		for _, n := range c.status(name).Nodes {
			if slices.Contains(c.names, n.Name) && n.Raft != c.node(n.Name).RaftAddr() {
				c.t.Errorf("%s takes %s to be at %s, it is at %s", name, n.Name, n.Raft, c.node(n.Name).RaftAddr())
			}
		}
	}
	keep(c.t, c.nodeConn("n1"), 0, "undisturbed", fmt.Sprint("undisturbed ", time.Now()))
	c.awaitPlaced("n1")
}

// logged has the nodes log to a buffer.
func (c *nodes) logged() *buffer {
	log := &buffer{}
	c.change = func(name string, o *broker.Options) {
		o.Logger = slog.New(slog.NewTextHandler(log, nil)).With("node", name)
	}
	return log
}

// checkNoSuspicion checks that no node considers itself removed.
func (c *nodes) checkNoSuspicion(log *buffer) {
	c.t.Helper()
	for _, name := range c.names {
		if log.count(`this node may have been removed: the voters on the facts are asked" node=`+name) > 0 {
			c.t.Errorf("%s believes that it is no member", name)
		}
	}
}

// One message of an intruder, "n1, n2 and n3 are no members", ended all three
// nodes.
func TestAnIntruderThatSaysThatNobodyIsAMember(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	log := c.logged()
	c.start(c.names...)
	c.awaitPlaced("n1")
	s := c.newIntruder("n1")
	s.overhear(anything, c.names...)
	for _, name := range c.names {
		s.lie(name, map[string]any{"members": []string{"n9"}, "facts": 1 << 40})
	}
	c.undisturbed(s.nc)
	c.checkNoSuspicion(log)
}

// Forged announcements of another log fenced every replica for good.
func TestAnIntruderThatTellsOfAnotherLog(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	for i := range 4 {
		keep(t, c.conn("n1"), 0, "x", fmt.Sprint(i))
	}
	s := c.newIntruder("n1")
	digests := func(body map[string]any) []any {
		groups, _ := body["groups"].([]any)
		if len(groups) == 0 {
			return nil
		}
		points, _ := groups[0].(map[string]any)["digests"].([]any)
		return points
	}
	s.overhear(func(body map[string]any) bool { return len(digests(body)) > 0 }, c.names...)
	for _, name := range c.names {
		for _, point := range digests(s.said[name].body) {
			point.(map[string]any)["Digest"] = make([]int, 32)
		}
		s.lie(name, nil)
	}
	c.undisturbed(s.nc)
	for _, name := range c.names {
		if why := broker.Fenced(c.node(name), 0); why != "" {
			t.Errorf("%s is fenced: %s", name, why)
		}
	}
}

// The progress of a replica without a vote does not count, even if its
// announcement is signed.
func TestOnlyVotersSayThatAReplicaIsWrong(t *testing.T) {
	testkit.MayViolate(t, invariant.DigestsEqual) // a member lies
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	for i := range 4 {
		keep(t, c.conn("n1"), 0, "x", fmt.Sprint(i))
	}
	c.checkSame(0, c.names...)
	n := c.node("n1")
	for i := range 6 {
		var h map[string]any
		if err := json.Unmarshal(broker.AnnouncementOf(c.node("n2")), &h); err != nil { // a directory that has shown its generations
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

// Forged announcements in the nodes' names, with another replication address,
// kept a cluster down.
func TestAnIntruderThatSpeaksInTheNodesNames(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	s := c.newIntruder("n1")
	s.overhear(anything, c.names...)
	lying := make(chan struct{})
	go func() {
		defer close(lying)
		for s.sub.IsValid() { // whatever a node says, it says at once that it is elsewhere
			if name := s.listen(); name != "" {
				s.lie(name, map[string]any{"raft": "127.0.0.1:1"})
			}
		}
	}()
	for _, name := range []string{"n2", "n3"} { // each finds the others again
		c.stop(name)
		c.start(name)
	}
	c.undisturbed(s.nc)
	_ = s.sub.Unsubscribe()
	<-lying
}

// 20,000 invented names were remembered forever.
func TestInventedNamesAreNotRemembered(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	nc := c.nodeConn("n1")
	s := c.status("n1")
	for i := range 4_000 {
		h := announcementAs(s, fmt.Sprint("x", i), "127.0.0.1:1", nil)
		body, err := json.Marshal(h)
		if i%2 == 0 { // of a node that waits to be added
			h["cluster_id"] = ""
			body, err = json.Marshal(h)
			body = append(fmt.Appendf(nil, "CANTUS3 - %v %v %v 9 -\n", h["name"], h["node_id"], h["instance"]), body...)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Publish(announcementSubject, body); err != nil {
			t.Fatal(err)
		}
	}
	c.undisturbed(nc)
	for _, name := range c.names {
		if n := broker.Remembered(c.node(name)); n > 64+2 {
			t.Errorf("%s remembers %d nodes", name, n)
		}
	}
}

// An old announcement of a member that is replayed has no effect: neither on a
// node that heard it, nor on one that has started since.
func TestReplayedAnnouncements(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	nc := c.nodeConn("n2")
	sub, err := nc.SubscribeSync(announcementSubject)
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
			if err := nc.Publish(announcementSubject, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	alive := func(by string) bool {
		for _, n := range c.status(by).Nodes {
			if n.Name == "n3" {
				return n.Alive
			}
		}
		return false
	}
	c.stop("n3")
	eventually(t, "n3 is away, whatever is replayed", func() bool { replay(); return !alive("n2") })
	c.stop("n1")
	c.start("n1")
	for range 3 {
		replay()
		c.heardBy(nc, "n1", "n2")
		for _, name := range []string{"n1", "n2"} {
			if alive(name) {
				t.Fatalf("a replayed announcement brings n3 back to %s", name)
			}
		}
	}
	c.start("n3")
	replay()
	c.undisturbed(nc)
}

// Not even a member's announcement ends another member.
func TestOneMemberThatDeniesAnother(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	var h map[string]any
	if err := json.Unmarshal(broker.AnnouncementOf(c.node("n1")), &h); err != nil {
		t.Fatal(err)
	}
	h["members"], h["facts"] = []string{"n1"}, 1<<40
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	broker.Hear(c.node("n2"), b)
	if !broker.SuspectsRemoval(c.node("n2")) {
		t.Error("n2 has not heard it")
	}
	eventually(t, "the others say that it is a member", func() bool { return !broker.SuspectsRemoval(c.node("n2")) })
	c.undisturbed(c.nodeConn("n1"))
}

// A member that was removed still has the secret. Its announcements count for
// nothing, and it gets nothing.
func TestARemovedMemberWithTheOldSecret(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	log := c.logged()
	c.start(c.names...)
	c.awaitPlaced("n1")
	key, s := broker.Derive(c.node("n3"), "replication"), c.status("n1")
	speaker, signs := c.newIntruder("n1"), broker.Derive(c.node("n3"), "messages")
	speaker.key = signs[:]
	speaker.overhear(anything, "n1", "n2", "n3")
	c.operate("n1", subjects.AdminRequest{Node: "n3"}, "cluster", "remove")
	removed := c.node("n3")
	<-removed.Done()
	if err := removed.Err(); !errors.Is(err, broker.ErrRemoved) {
		t.Fatalf("n3 ended with %v", err)
	}
	_ = removed.Close()
	c.names = []string{"n1", "n2"}
	c.awaitPlaced("n1")

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
	// Until n1 has caught up with the leader of the facts, which n3 may have
	// been, it accepts any node that has the secret.
	eventually(t, "n1 knows its members", func() bool { return broker.FactsCurrent(c.node("n1")) })
	if err := raftstore.Fetch(t.Context(), network, 0, "n1", store.Log(0)); err == nil || !strings.Contains(err.Error(), "n3 is not a member") {
		t.Errorf("it fetches the log: %v", err)
	}

	o := c.options("n3")
	o.Bootstrap = nil
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n, err := broker.Open(ctx, c.dirs["n3"], o); !errors.Is(err, broker.ErrRemoved) {
		t.Errorf("it is opened again: %v, %v", n, err)
	}

	denies := map[string]any{"members": []string{"n9"}, "facts": 1 << 40}
	speaker.lie("n3", denies)
	denies["node_id"] = id.NodeID
	speaker.lie("n1", denies)
	speaker.lie("n2", denies)
	c.undisturbed(speaker.nc)
	c.checkNoSuspicion(log)
}

// An intruder must not be able to keep a node from starting by its name.
func TestAnIntruderWithTheNameOfANodeThatStarts(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	s := c.newIntruder("n1")
	s.overhear(anything, c.names...)
	c.stop("n3")
	lying := make(chan struct{})
	go func() {
		defer close(lying)
		for s.sub.IsValid() {
			if s.listen() == "" {
				continue
			}
			for i, started := range []time.Time{time.Unix(0, 0), time.Now().Add(time.Hour)} { // the first, and the last to come
				s.lie("n3", map[string]any{"instance": fmt.Sprint("i", i), "started": started, "raft": "127.0.0.1:1"})
			}
		}
	}()
	c.start("n3")
	c.undisturbed(s.nc)
	_ = s.sub.Unsubscribe()
	<-lying
}

// In a cluster with a token, only nodes that have it found the cluster or join
// it.
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

// A node that is added without a token shows a key, and gets the secret wrapped
// for that key.
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
	m := askLeader(t, c.nodeConn("n1"), subjects.Names{}.Admin("cluster", "add"), `{"node":"n4","key":"00000000000000000000000000000000"}`)
	if e := wantRefusal(t, m, subjects.BadRequest); !strings.Contains(e.Message, "has the key "+key+", not 0000") {
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

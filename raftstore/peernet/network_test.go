package peernet_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cantuslog/cantus/internal/testcert"
	"github.com/cantuslog/cantus/raftstore/peernet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// theGroup is the only group of the nodes in tests.
const theGroup = 7

var theKey = bytes.Repeat([]byte("k"), 32)

// cluster is a set of nodes in this process, connected over the loopback
// interface.
type cluster struct {
	t     *testing.T
	nodes map[string]*node

	mu        sync.Mutex
	addresses map[string]string
}

// node is a node that echoes the bytes that it receives for theGroup.
type node struct {
	c       *cluster
	name    string
	network *peernet.Network
}

// newCluster opens nodes. change changes their options; it may be nil.
func newCluster(t *testing.T, change func(*peernet.Options), names ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, nodes: map[string]*node{}, addresses: map[string]string{}}
	for _, name := range names {
		n := &node{c: c, name: name}
		c.nodes[name] = n
		n.open(change)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.close()
		}
	})
	return c
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (c *cluster) resolve(node string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.addresses[node]; ok {
		return a, nil
	}
	return "", fmt.Errorf("node %s is not known", node)
}

func (c *cluster) setAddress(node, address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addresses[node] = address
}

func (n *node) open(change func(*peernet.Options)) {
	t := n.c.t
	t.Helper()
	opts := peernet.Options{Node: n.name, Cluster: "c", Key: theKey, Listener: listen(t), Resolve: n.c.resolve}
	if change != nil {
		change(&opts)
	}
	var err error
	if n.network, err = peernet.New(opts); err != nil {
		t.Fatal(err)
	}
	n.network.Handle(peernet.Fetch, peernet.Handler{
		Accept: func(group uint32) error {
			if group != theGroup {
				return peernet.NoGroupError(group)
			}
			return nil
		},
		Serve: func(c *peernet.Conn) {
			defer c.Close()
			_, _ = io.Copy(c, c)
		},
	})
	n.network.Serve()
	n.c.setAddress(n.name, n.network.Addr().String())
}

func (n *node) close() {
	n.c.t.Helper()
	for range 2 {
		if err := n.network.Close(); err != nil {
			n.c.t.Errorf("close network of %s: %v", n.name, err)
		}
	}
}

// reopen closes the node's network and opens it again with changed options.
func (n *node) reopen(change func(*peernet.Options)) {
	n.close()
	n.open(change)
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// exchange connects to a node and has it echo a message. Dialing alone is not
// enough: the listener may refuse a TLS dialer after the dialer's part of the
// handshake.
func (n *node) exchange(to string, group uint32) error {
	c, err := n.network.Dial(timeout(n.c.t), to, peernet.Fetch, group)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	sent, received := []byte("hello"), make([]byte, 5)
	if _, err := c.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, received); err != nil {
		return err
	}
	if !bytes.Equal(sent, received) {
		n.c.t.Errorf("sent %q, received %q", sent, received)
	}
	return nil
}

// check fails the test unless err contains want, or is nil if want is "".
func check(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// However many connections stay silent, members can connect.
func TestSilentConnectionsDoNotExcludeMembers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, "n1", "n2")
	for range 300 {
		conn, err := net.Dial("tcp", c.nodes["n1"].network.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	check(t, c.nodes["n2"].exchange("n1", theGroup), "")
}

func TestASilentConnectionIsClosed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, "n1")
	conn, err := net.Dial("tcp", c.nodes["n1"].network.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write([]byte("CANTUS")); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) || len(answer) > 0 {
		t.Fatalf("got %q, %v", answer, err)
	}
}

// A peer that has the key but is not a member is refused, and learns the
// reason.
func TestANonMemberWithTheKeyIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, "n1", "n2")
	c.nodes["n1"].reopen(func(o *peernet.Options) {
		o.Member = func(node, id string) error {
			if node == "n2" && id == "d2" {
				return nil
			}
			return fmt.Errorf("%s (%s) is not a member", node, id)
		}
	})
	n2 := c.nodes["n2"]
	n2.reopen(func(o *peernet.Options) { o.ID = "d1" })
	err := n2.exchange("n1", theGroup)
	check(t, err, "n2 (d1) is not a member")
	if !errors.Is(err, peernet.ErrRefused) {
		t.Errorf("got %v, want it to wrap ErrRefused", err)
	}
	n2.reopen(func(o *peernet.Options) { o.ID = "d2" })
	check(t, n2.exchange("n1", theGroup), "")
}

// Payloads are checked in both directions, and both ends learn of a refusal.
func TestPayload(t *testing.T) {
	t.Parallel()
	for what, x := range map[string]struct{ refuses, want string }{
		"none refuses":         {"", ""},
		"the dialer refuses":   {"n2", "n1 sends "},
		"the listener refuses": {"n1", "n2 sends "},
	} {
		checked := make(chan string, 10)
		next := func() string { // both ends have checked the payload once exchange returns
			select {
			case payload := <-checked:
				return payload
			default:
				return "nothing"
			}
		}
		c := newCluster(t, func(o *peernet.Options) {
			name := o.Node
			o.Payload = func(peer string) []byte { return []byte("to " + peer + " from " + name) }
			o.CheckPayload = func(peer string, payload []byte) error {
				checked <- string(payload)
				if name == x.refuses {
					return fmt.Errorf("%s sends %s", peer, payload)
				}
				return nil
			}
		}, "n1", "n2")
		check(t, c.nodes["n2"].exchange("n1", theGroup), x.want)
		if got := next(); got != "to n1 from n2" {
			t.Errorf("%s: the listener received %q", what, got)
		}
		if x.refuses != "n1" {
			if got := next(); got != "to n2 from n1" {
				t.Errorf("%s: the dialer received %q", what, got)
			}
		}
	}
	c := newCluster(t, func(o *peernet.Options) {
		if o.Node == "n2" {
			o.Payload = func(string) []byte { return make([]byte, 4097) }
		}
	}, "n1", "n2")
	check(t, c.nodes["n2"].exchange("n1", theGroup), "payload has 4097 bytes")
}

// The dialer's error contains the reason.
func TestDialErrors(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, "n1", "n2")
	n2 := c.nodes["n2"]
	check(t, n2.exchange("n1", 3), "no replica of group 3 here")
	check(t, n2.exchange(strings.Repeat("n", 300), 3), "the node's name has 300 bytes")
	c.setAddress("n5", c.nodes["n1"].network.Addr().String())
	check(t, n2.exchange("n5", theGroup), "I am n1, not n5")
	_, err := n2.network.Dial(timeout(t), "n1", peernet.Raft, theGroup)
	check(t, err, "purpose 1 is not served here")
	n2.close()
	err = n2.exchange("n1", theGroup)
	if !errors.Is(err, peernet.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	n2.reopen(func(o *peernet.Options) { o.Cluster = "d" })
	check(t, n2.exchange("n1", theGroup), "it may be of another cluster")
	n2.reopen(func(o *peernet.Options) { o.Key = bytes.Repeat([]byte("x"), 32) })
	check(t, n2.exchange("n1", theGroup), "or have another cluster secret")

	other := listen(t)
	defer other.Close()
	go func() {
		conn, err := other.Accept()
		if err == nil {
			_, _ = io.CopyN(io.Discard, conn, 10)
			_, _ = fmt.Fprint(conn, "220 mail.example.com ESMTP, a greeting that is longer than the nonce and the answer that the dialer reads\r\n")
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}()
	c.setAddress("n6", other.Addr().String())
	check(t, n2.exchange("n6", theGroup), "not a replication port")
}

// Handshake needs no group and leaves no connection.
func TestHandshakeLeavesNoConnection(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, "n1", "n2")
	check(t, c.nodes["n2"].network.Handshake(timeout(t), "n1"), "")
	check(t, c.nodes["n2"].network.Handshake(timeout(t), "n9"), "node n9 is not known")
}

// A read that waits for the peer fails when either network is closed or
// reconnects. The owner still has to close the connection.
func TestCloseAndReconnectBreakConnections(t *testing.T) {
	t.Parallel()
	for what, end := range map[string]func(c *cluster){
		"the listener closes":     func(c *cluster) { c.nodes["n1"].close() },
		"the dialer closes":       func(c *cluster) { c.nodes["n2"].close() },
		"the listener reconnects": func(c *cluster) { c.nodes["n1"].network.Reconnect() },
		"the dialer reconnects":   func(c *cluster) { c.nodes["n2"].network.Reconnect() },
	} {
		c := newCluster(t, nil, "n1", "n2")
		conn, err := c.nodes["n2"].network.Dial(timeout(t), "n1", peernet.Fetch, theGroup)
		if err != nil {
			t.Fatal(err)
		}
		closed := false
		conn.OnClose(func() { closed = true })
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // it is served
			t.Fatal(err)
		}
		go end(c)
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is not broken: %v", what, err)
		}
		if closed {
			t.Errorf("%s: OnClose was called before the owner closed the connection", what)
		}
		if _ = conn.Close(); !closed {
			t.Errorf("%s: the owner closed the connection, and OnClose was not called", what)
		}
	}
}

func TestPortClosed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, "n1", "n2")
	n2 := c.nodes["n2"].network
	if n2.PortClosed(timeout(t), "n1") {
		t.Error("true for an open port")
	}
	if n2.PortClosed(timeout(t), "n9") {
		t.Error("true for a node without an address")
	}
	c.nodes["n1"].close()
	if !n2.PortClosed(timeout(t), "n1") {
		t.Error("false for a closed port")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n2.PortClosed(ended, "n1") {
		t.Error("true after the context ended")
	}
}

func TestPeersWithoutTheRightCertificateAreRefused(t *testing.T) {
	t.Parallel()
	a, b := testcert.NewAuthority(t), testcert.NewAuthority(t)
	shared := func(ca testcert.Authority) *tls.Config {
		c := ca.Config("replication")
		c.ServerName = "replication"
		return c
	}
	type configs map[string]*tls.Config
	exchange := func(t *testing.T, c configs) error {
		nodes := newCluster(t, func(o *peernet.Options) { o.TLS = c[o.Node] }, "n1", "n2").nodes
		return nodes["n2"].exchange("n1", theGroup)
	}
	for what, c := range map[string]configs{
		"another authority":     {"n1": a.Config("n1"), "n2": b.Config("n2")},
		"plain dialer":          {"n1": a.Config("n1"), "n2": nil},
		"plain listener":        {"n1": nil, "n2": a.Config("n2")},
		"another node's":        {"n1": a.Config("n1"), "n2": a.Config("n3")},
		"the listener's":        {"n1": a.Config("n3"), "n2": a.Config("n2")},
		"not the one for all":   {"n1": shared(a), "n2": a.Config("n2")},
		"none that is verified": {"n1": a.Config("n1"), "n2": {RootCAs: a.Config("n2").RootCAs, Certificates: []tls.Certificate{{}}}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			err := exchange(t, c)
			if err == nil {
				t.Fatal("the connection was accepted")
			}
			t.Log(err)
		})
	}
	t.Run("one for all", func(t *testing.T) {
		t.Parallel()
		check(t, exchange(t, configs{"n1": shared(a), "n2": shared(a)}), "")
	})
	t.Run("one for each", func(t *testing.T) {
		t.Parallel()
		check(t, exchange(t, configs{"n1": a.Config("n1"), "n2": a.Config("n2")}), "")
	})
}

func TestInvalidOptions(t *testing.T) {
	t.Parallel()
	a := testcert.NewAuthority(t)
	for want, change := range map[string]func(*peernet.Options){
		"node's name":     func(o *peernet.Options) { o.Node = "" },
		"cluster's id":    func(o *peernet.Options) { o.Cluster = strings.Repeat("x", 256) },
		"cluster's key":   func(o *peernet.Options) { o.Key = o.Key[:31] },
		"directory's id":  func(o *peernet.Options) { o.ID = strings.Repeat("x", 256) },
		"resolves nodes":  func(o *peernet.Options) { o.Resolve = nil },
		"the minimum is":  func(o *peernet.Options) { o.CatchUpRate = 1000 },
		"no authority":    func(o *peernet.Options) { o.TLS = &tls.Config{} },
		"no certificate":  func(o *peernet.Options) { o.TLS = &tls.Config{RootCAs: a.Config("n1").RootCAs} },
		"":                func(*peernet.Options) {},
		"have a listener": func(o *peernet.Options) { _ = o.Listener.Close(); o.Listener = nil },
	} {
		listener := listen(t)
		opts := peernet.Options{
			Node: "n1", Cluster: "c", Key: theKey, Listener: listener, Resolve: func(string) (string, error) { return "", nil },
		}
		change(&opts)
		n, err := peernet.New(opts)
		check(t, err, want)
		if err == nil {
			_ = n.Close()
		}
		if _, err := listener.Accept(); err == nil {
			t.Errorf("%q: the listener is still open", want)
		}
	}
}

package raftstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/raftstore/peernet"
)

// heartbeatPeer is a node that receives heartbeats. The test sends its replies.
type heartbeatPeer struct {
	t       *testing.T
	network *peernet.Network
	conns   chan *peernet.Conn
	batcher *heartbeatBatcher // of another node, sends to this one
}

func newHeartbeatPeer(t *testing.T) *heartbeatPeer {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	p := &heartbeatPeer{t: t, conns: make(chan *peernet.Conn, 10)}
	var err error
	p.network, err = peernet.New(peernet.Options{
		Node: "n2", Cluster: "c", Key: testKey, Listener: listen(),
		Resolve: func(string) (string, error) { return "", errors.New("this node dials no other") },
	})
	if err != nil {
		t.Fatal(err)
	}
	p.network.Handle(peernet.Heartbeats, peernet.Handler{Serve: func(c *peernet.Conn) { p.conns <- c }})
	p.network.Serve()
	n, err := NewNetwork(NetworkOptions{
		Node: "n1", Cluster: "c", Key: testKey, Listener: listen(),
		Resolve: func(string) (string, error) { return p.network.Addr().String(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	p.batcher = n.heartbeatsTo("n2")
	t.Cleanup(func() {
		if err := errors.Join(p.network.Close(), n.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// accept returns the next connection to the peer.
func (p *heartbeatPeer) accept() *peernet.Conn {
	p.t.Helper()
	c := within(p.t, "a connection", p.conns)
	p.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if c.Peer() != "n1" || c.Group() != 0 {
		p.t.Fatalf("a connection from %s for group %d", c.Peer(), c.Group())
	}
	return c
}

// sent is the outcome of a heartbeat.
type sent struct {
	group  uint32
	answer raft.AppendEntriesResponse
	err    error
}

// send sends a heartbeat of each group within delay, or when the batcher is
// flushed. The term of a group is 10 times its number.
func (p *heartbeatPeer) send(delay, patience time.Duration, groups ...uint32) <-chan sent {
	outcomes := make(chan sent, len(groups))
	var all sync.WaitGroup
	for _, g := range groups {
		h := p.batcher.enqueue(g, 10*uint64(g), delay, nil)
		all.Go(func() {
			a, err := p.batcher.await(context.Background(), h, patience, patience, never)
			outcomes <- sent{g, a, err}
		})
	}
	p.t.Cleanup(all.Wait)
	return outcomes
}

func reply(t *testing.T, c *peernet.Conn, records ...[]byte) {
	t.Helper()
	out := binary.BigEndian.AppendUint32(nil, uint32(len(records)))
	if _, err := c.Write(append(out, slices.Concat(records...)...)); err != nil {
		t.Fatal(err)
	}
}

func TestHeartbeatsShareAMessage(t *testing.T) {
	t.Parallel()
	p := newHeartbeatPeer(t)
	outcomes := p.send(time.Hour, time.Hour, 1, 2, 3)
	p.batcher.flushNow()
	c := p.accept()
	records, err := readRecords(c, heartbeatSize)
	if err != nil || len(records) != 3*heartbeatSize {
		t.Fatalf("%d bytes, %v, want 3 heartbeats in one message", len(records), err)
	}
	// The replies come in reverse order. There is no group 1, and group 2
	// rejects the term.
	all := slices.Collect(slices.Chunk(records, heartbeatSize))
	slices.Reverse(all)
	for _, r := range all {
		group, term := binary.BigEndian.Uint32(r[4:]), binary.BigEndian.Uint64(r[8:])
		if term != 10*uint64(group) {
			t.Errorf("the term of group %d is %d", group, term)
		}
		a := append(slices.Clone(r[:4]), []byte{0, heartbeatNoGroup, heartbeatRejected, heartbeatAccepted}[group])
		a = binary.BigEndian.AppendUint64(a, term+1)
		reply(t, c, binary.BigEndian.AppendUint64(a, 99))
	}
	for range 3 {
		o := <-outcomes
		if o.group == 1 {
			if !errors.As(o.err, new(peernet.NoGroupError)) {
				t.Errorf("a group that the peer does not have: %v", o.err)
			}
			continue
		}
		want := raft.AppendEntriesResponse{Term: 10*uint64(o.group) + 1, LastLog: 99, Success: o.group == 3}
		if o.err != nil || !reflect.DeepEqual(o.answer, want) {
			t.Errorf("group %d: %+v, %v, want %+v", o.group, o.answer, o.err, want)
		}
	}
	// The next heartbeat uses the same connection.
	next := p.send(0, time.Hour, 4)
	records, err = readRecords(c, heartbeatSize)
	if err != nil || len(records) != heartbeatSize {
		t.Fatalf("%d bytes, %v, want another message", len(records), err)
	}
	_ = c.Close()
	if o := <-next; o.err == nil {
		t.Error("a heartbeat succeeded although its connection broke")
	}
}

func TestTheConnectionToASilentPeerIsDropped(t *testing.T) {
	t.Parallel()
	p := newHeartbeatPeer(t)
	long := p.send(time.Hour, time.Hour, 1)
	p.batcher.flushNow()
	c := p.accept()
	if _, err := readRecords(c, heartbeatSize); err != nil {
		t.Fatal(err)
	}
	short := p.send(0, 10*time.Millisecond, 2)
	if o := <-short; !errors.Is(o.err, errNoHeartbeatReply) {
		t.Errorf("the heartbeat that timed out: %v", o.err)
	}
	if o := <-long; !errors.Is(o.err, errNoHeartbeatReply) {
		t.Errorf("the other heartbeat on the connection: %v", o.err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection is not closed: %v", err)
	}
	// The next heartbeat gets another connection.
	again := p.send(0, time.Hour, 3)
	r, err := readRecords(p.accept(), heartbeatSize)
	if err != nil || binary.BigEndian.Uint32(r[4:]) != 3 {
		t.Errorf("%x, %v", r, err)
	}
	p.batcher.dropIfSilent(time.Now().Add(time.Hour))
	if o := <-again; o.err == nil {
		t.Error("a heartbeat succeeded although its connection was dropped")
	}
}

func TestHeartbeatsToANodeThatIsDown(t *testing.T) {
	t.Parallel()
	p := newHeartbeatPeer(t)
	_ = p.network.Close()
	for range 2 {
		if o := <-p.send(0, time.Hour, 1); o.err == nil {
			t.Error("a heartbeat to a node that is down succeeded")
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.batcher.await(ctx, p.batcher.enqueue(1, 1, time.Hour, nil), time.Hour, time.Hour, never); !errors.Is(err, context.Canceled) {
		t.Errorf("await with a canceled context: %v", err)
	}
}

func FuzzHeartbeatRecords(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := readRecords(bytes.NewReader(b), heartbeatSize)
		if err == nil && (len(records) == 0 || len(records)%heartbeatSize != 0 || len(records) > maxHeartbeatBatch*heartbeatSize) {
			t.Errorf("%d bytes of records", len(records))
		}
	})
}

// testKey is the key of the clusters in tests.
var testKey = make([]byte, 32)

func never() bool { return false }

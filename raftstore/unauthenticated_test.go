package raftstore_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

// dialer is a dialer's end of a connection during the handshake. It is written
// from the description of the protocol in package peernet, not with its code.
type dialer struct {
	conn net.Conn
	key  []byte
	hash hash.Hash // of the transcript
}

// approach opens a connection to a node and exchanges nonces.
func approach(t *testing.T, n *node, key []byte, cluster string) *dialer {
	t.Helper()
	conn, err := net.Dial("tcp", n.network.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	s := &dialer{conn, key, sha256.New()}
	for _, b := range []string{cluster, ""} {
		s.hash.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		s.hash.Write([]byte(b))
	}
	nonce := make([]byte, 32)
	if _, err := conn.Write(opening()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, nonce); err != nil {
		t.Fatal(err)
	}
	s.hash.Write(opening())
	s.hash.Write(nonce)
	return s
}

func opening() []byte {
	return sealed(append([]byte("CANTUSRP\x00\x02\x00\x24"), make([]byte, 32)...))
}

// send sends a message with its proof.
func (s *dialer) send(step string, body []byte) {
	b := append(binary.BigEndian.AppendUint16(nil, uint16(len(body))), body...)
	s.hash.Write(b)
	proof := s.proof(step)
	s.hash.Write(proof)
	_, _ = s.conn.Write(append(b, proof...))
}

func (s *dialer) proof(step string) []byte {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(step))
	mac.Write(s.hash.Sum(nil))
	return mac.Sum(nil)
}

// rest returns the bytes that the node sends until it closes the connection.
func (s *dialer) rest(t *testing.T) string {
	t.Helper()
	b, err := io.ReadAll(s.conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the node does not close the connection")
	}
	return string(b)
}

// answer returns the body of the node's answer. It checks the proof.
func (s *dialer) answer(t *testing.T) string {
	t.Helper()
	b := make([]byte, 2)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, int(binary.BigEndian.Uint16(b))+32)...)
	if _, err := io.ReadFull(s.conn, b[2:]); err != nil {
		t.Fatal(err)
	}
	body, proof := b[:len(b)-32], b[len(b)-32:]
	s.hash.Write(body)
	if !bytes.Equal(proof, s.proof("listener answers")) {
		t.Error("the answer's proof is wrong")
	}
	s.hash.Write(proof)
	return string(body[2:])
}

// greeting returns the body of a greeting.
func greeting(kind byte, group uint32, from, id, to string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind}, group)
	for _, s := range []string{from, id, to} {
		b = append(append(b, byte(len(s))), s...)
	}
	return b
}

// sealed appends a checksum.
func sealed(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func frame(payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	return append(b, payload...)
}

// exchange sends bytes to a node and returns the bytes that the node sends
// until it closes the connection.
func exchange(t *testing.T, n *node, b []byte) string {
	t.Helper()
	conn, err := net.Dial("tcp", n.network.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = conn.Write(b) // it fails if the node closes the connection early
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%.40q: the node does not close the connection", b)
	}
	return string(answer)
}

func TestUnauthenticatedPeersHaveNoEffect(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	c.heartbeat = time.Second
	n := c.others(leader)[0]
	random := rand.New(rand.NewPCG(1, 2))
	garbage := make([]byte, 1<<16)
	for i := range garbage {
		garbage[i] = byte(random.Uint32())
	}
	good := opening()
	for what, b := range map[string][]byte{
		"random bytes":     garbage,
		"another protocol": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a wrong version":  []byte("CANTUSRP\x00\x01\x00\x24"),
		"a flipped bit":    append(bytes.Clone(good[:20]), append([]byte{good[20] ^ 4}, good[21:]...)...),
		"an oversized one": append(bytes.Clone(good[:10]), 0xff, 0xff, 0, 0),
	} {
		if got := exchange(t, n, b); got != "" {
			t.Errorf("%s: got %q", what, got)
		}
	}
	// A peer without a proof gets a nonce and nothing else.
	if got := exchange(t, n, append(bytes.Clone(good), garbage...)); len(got) > 32 {
		t.Errorf("got %q", got)
	}
	for what, s := range map[string]*dialer{
		"another key":     approach(t, n, bytes.Repeat([]byte("x"), 32), "c"),
		"another cluster": approach(t, n, theKey, "d"),
	} {
		s.send("dialer greets", greeting(1, theGroup, "n9", "", n.name))
		if got := s.rest(t); got != "" {
			t.Errorf("%s: got %q", what, got)
		}
	}
	refused := func(what, want string, g []byte) {
		t.Helper()
		s := approach(t, n, theKey, "c")
		s.send("dialer greets", g)
		if got := s.answer(t); got != "\x01"+want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	refused("a wrong node", "I am "+n.name+", not n0", greeting(1, theGroup, "n9", "", "n0"))
	refused("a wrong group", "no replica of group 9 here", greeting(1, 9, "n9", "", n.name))
	refused("an unknown kind", "malformed greeting: kind 5 is not known", greeting(5, theGroup, "n9", "", n.name))
	for what, x := range map[string]struct {
		kind byte
		b    []byte
	}{
		"an oversized frame": {1, []byte{0x40, 0, 0, 0, 1, 2, 3, 4}},
		"a bad frame":        {1, []byte{0, 0, 0, 1, 1, 2, 3, 4, 5}},
		"an unknown rpc":     {1, frame([]byte{99, 1, 2, 3})},
		"no msgpack":         {1, frame(append([]byte{0}, bytes.Repeat([]byte{0xc1}, 1000)...))},
		"no fetch":           {2, frame([]byte("q\x00\x00\x00\x00"))},
		"no heartbeats":      {3, frame([]byte{0, 0, 0, 0})},
		"huge heartbeats":    {3, frame([]byte{0xff, 0, 0, 0})},
		"a huge fetch":       {2, frame([]byte("a\xff\x00\x00\x00"))},
	} {
		s := approach(t, n, theKey, "c")
		s.send("dialer greets", greeting(x.kind, theGroup, "n9", "", n.name))
		if got := s.answer(t); got != "\x00" {
			t.Errorf("%s: got %q", what, got)
		}
		s.send("dialer agrees", []byte{0})
		_, _ = s.conn.Write(x.b)
		s.rest(t)
	}
	// Connections that send nothing, or only part of an opening, block no
	// others.
	for i := range 20 {
		conn, err := net.Dial("tcp", n.network.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(good[:i]); err != nil {
			t.Fatal(err)
		}
	}
	c.put("still here")
	applied(t, []string{"still here"}, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
}

func TestAGroupIsOpenOnceOnANetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	n1 := c.nodes["n1"]
	n1.open("n1")
	opts := n1.options("n1")
	opts.Log = n1.store.Log(6)
	if _, err := raftstore.Open(opts); err == nil || !strings.Contains(err.Error(), "already open on this network") {
		t.Errorf("got %v", err)
	}
	opts.ID, opts.Node = 6, "n2"
	if _, err := raftstore.Open(opts); err == nil || !strings.Contains(err.Error(), "can't be on the network of n1") {
		t.Errorf("got %v", err)
	}
	n1.closeNetwork()
	opts.Node = "n1"
	if _, err := raftstore.Open(opts); !errors.Is(err, raftstore.ErrClosed) {
		t.Errorf("got %v", err)
	}
	n1.closeGroup()
}

// voteRequest returns a RequestVote as raft's transport encodes it: the type of
// the request, and a map in msgpack.
func voteRequest(kind byte, from string, term uint64) []byte {
	text := func(b []byte, s string) []byte { return append(append(b, 0xa0|byte(len(s))), s...) }
	number := func(b []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(append(b, 0xcf), n) }
	b := text([]byte{kind, 0x87}, "ProtocolVersion")
	b = append(b, 3)
	for _, field := range []string{"ID", "Addr", "Candidate"} {
		b = text(text(b, field), from)
	}
	b = number(text(b, "Term"), term)
	b = number(text(b, "LastLogIndex"), 1<<40)
	return number(text(b, "LastLogTerm"), term)
}

// A group that adopted the largest term could never elect a leader again, since
// there is no term after it. Not even a member can make it do so.
func TestAnImplausibleTermHasNoEffect(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	const most = 1<<64 - 1
	for _, n := range c.nodes {
		for _, kind := range []byte{1, 4} { // a vote and a pre-vote
			s := approach(t, n, theKey, "c")
			s.send("dialer greets", greeting(1, theGroup, "n2", "", n.name))
			s.answer(t)
			s.send("dialer agrees", []byte{0})
			if _, err := s.conn.Write(frame(voteRequest(kind, "n2", most))); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 100)
			if _, err := io.ReadFull(s.conn, answer[:60]); err != nil || !strings.Contains(string(answer), "the term is further ahead") {
				t.Errorf("the reply to request %d is %q, %v", kind, answer, err)
			}
		}
		s := approach(t, n, theKey, "c")
		s.send("dialer greets", greeting(3, 0, "n2", "", n.name))
		s.answer(t)
		s.send("dialer agrees", []byte{0})
		heartbeat := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 1, 0, 0, 0, 9}, theGroup)
		if _, err := s.conn.Write(frame(binary.BigEndian.AppendUint64(heartbeat, most))); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s.conn, make([]byte, 8+4+21)); err != nil {
			t.Fatal(err)
		}
		if term := n.group.Term(); term > 1<<32 {
			t.Fatalf("%s is in term %d", n.name, term)
		}
	}
	c.put("still here")
	applied(t, []string{"still here"}, leader)
}

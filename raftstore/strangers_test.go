package raftstore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
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

// hello is a preamble as package doc has it.
func hello(version uint16, kind byte, group uint32, cluster, from, to string) []byte {
	var rest []byte
	rest = append(rest, kind)
	rest = binary.BigEndian.AppendUint32(rest, group)
	for _, s := range []string{cluster, from, to} {
		rest = append(append(rest, byte(len(s))), s...)
	}
	b := binary.BigEndian.AppendUint16([]byte("CANTUSRP"), version)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)+4))
	b = append(b, rest...)
	return sealed(b)
}

func sealed(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// frame is a frame as package doc has it.
func frame(payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	return append(b, payload...)
}

// ask sends bytes to a node and gives all that it says until it hangs up.
func ask(t *testing.T, n *node, b []byte) string {
	t.Helper()
	conn, err := net.Dial("tcp", n.network.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = conn.Write(b) // it may hang up in the middle
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%.40q: it does not hang up", b)
	}
	return string(answer)
}

func TestStrangersDisturbNobody(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	c.heartbeat = time.Second
	n := c.others(leader)[0]
	good := hello(1, 1, theGroup, "c", "n9", n.name)
	random := rand.New(rand.NewPCG(1, 2))
	garbage := make([]byte, 1<<16)
	for i := range garbage {
		garbage[i] = byte(random.Uint32())
	}
	for what, x := range map[string]struct {
		b    []byte
		want string
	}{
		"random bytes":       {garbage, ""},
		"another protocol":   {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), ""},
		"a wrong cluster":    {hello(1, 1, theGroup, "d", "n9", n.name), "this is cluster c, not d"},
		"a wrong version":    {hello(2, 1, theGroup, "c", "n9", n.name), "protocol 2 is not known, 1 is"},
		"a wrong node":       {hello(1, 1, theGroup, "c", "n9", "n0"), "I am " + n.name + ", not n0"},
		"a wrong group":      {hello(1, 1, 9, "c", "n9", n.name), "no replica of group 9 here"},
		"an unknown kind":    {hello(1, 4, theGroup, "c", "n9", n.name), ""},
		"a flipped bit":      {append(bytes.Clone(good[:20]), append([]byte{good[20] ^ 4}, good[21:]...)...), ""},
		"an oversized one":   {append(bytes.Clone(good[:10]), 0xff, 0xff, 0, 0), ""},
		"an oversized frame": {append(bytes.Clone(good), 0x40, 0, 0, 0, 1, 2, 3, 4), "\x00"},
		"a bad frame":        {append(bytes.Clone(good), 0, 0, 0, 1, 1, 2, 3, 4, 5), "\x00"},
		"an unknown rpc":     {append(bytes.Clone(good), frame([]byte{99, 1, 2, 3})...), "\x00"},
		"no msgpack":         {append(bytes.Clone(good), frame(append([]byte{0}, bytes.Repeat([]byte{0xc1}, 1000)...))...), "\x00"},
		"no fetch":           {append(hello(1, 2, theGroup, "c", "n9", n.name), frame([]byte("q\x00\x00\x00\x00"))...), "\x00"},
		"no heartbeats":      {append(hello(1, 3, 0, "c", "n9", n.name), frame([]byte{0, 0, 0, 0})...), "\x00"},
		"huge heartbeats":    {append(hello(1, 3, 0, "c", "n9", n.name), frame([]byte{0xff, 0, 0, 0})...), "\x00"},
		"a huge fetch":       {append(hello(1, 2, theGroup, "c", "n9", n.name), frame([]byte("a\xff\x00\x00\x00"))...), "\x00"},
	} {
		got := ask(t, n, x.b)
		if !strings.Contains(got, x.want) || x.want == "" && got != "" {
			t.Errorf("%s: it says %q, want %q", what, got, x.want)
		}
	}
	// Those that say nothing, or not all of it, hold up nobody.
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

func TestAStrangerThatSaysNothingIsHungUpOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	if got := ask(t, c.nodes["n1"], []byte("CANTUS")); got != "" {
		t.Fatalf("it says %q", got)
	}
}

// The dialer's error says what differs.
func TestDialErrors(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.open("n1")
	fetch := func(group uint32, from string) error {
		return raftstore.Fetch(timeout(t), n2.network, group, from, n2.store.Log(group))
	}
	check := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	check(fetch(3, "n1"), "no replica of group 3 here")
	check(fetch(3, strings.Repeat("n", 300)), "its name has 300 bytes")
	c.mu.Lock()
	c.addresses["n5"] = c.nodes["n1"].network.Addr().String()
	c.mu.Unlock()
	check(fetch(theGroup, "n5"), "I am n1, not n5")
	n2.closeNetwork()
	check(fetch(theGroup, "n1"), "closed")
	n2.opts.Cluster = "d"
	n2.openNetwork()
	check(fetch(theGroup, "n1"), "this is cluster c, not d")

	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		conn, err := other.Accept()
		if err == nil {
			_, _ = io.CopyN(io.Discard, conn, 10)
			_, _ = fmt.Fprint(conn, "220 mail.example.com ESMTP\r\n")
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}()
	c.mu.Lock()
	c.addresses["n6"] = other.Addr().String()
	c.mu.Unlock()
	check(fetch(theGroup, "n6"), "no replication port")
}

func TestAGroupIsOpenOnceOnANetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	n1 := c.nodes["n1"]
	n1.open("n1")
	opts := n1.options("n1")
	opts.Log = n1.store.Log(6)
	if _, err := raftstore.Open(opts); err == nil || !strings.Contains(err.Error(), "open on this network already") {
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

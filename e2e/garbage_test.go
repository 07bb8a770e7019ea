package e2e_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// preamble is what a node says first on another's replication port.
func preamble(kind byte, group uint32, cluster, from, to string) []byte {
	body := binary.BigEndian.AppendUint32([]byte{kind}, group)
	for _, s := range []string{cluster, from, to} {
		body = append(append(body, byte(len(s))), s...)
	}
	b := append([]byte("CANTUSRP"), 0, 1)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)+4))
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func replicationFrame(b []byte) []byte {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	return append(binary.BigEndian.AppendUint32(head, checksum(b)), b...)
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// TestClusterHearsGarbage says all sorts of nonsense to the replication port
// of a leader. Each connection is ended, with a reason where there is somebody
// to tell it to, and the cluster goes on.
func TestClusterHearsGarbage(t *testing.T) {
	c := startCluster(t, 3, steady...)
	status, err := c.dial("n1").status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leader := c.node(status.Partitions[0].Leader)
	var address string
	for _, n := range status.Nodes {
		if n.Name == leader.name {
			address = n.Raft
		}
	}
	good := preamble(1, 0, status.ID, "n9", leader.name)
	fetch := preamble(2, 0, status.ID, "n9", leader.name)
	welcome := "\x00\x00\x00"
	undisturbed(t, c, func(t *testing.T) {
		for name, g := range map[string]struct {
			said   []byte
			answer string // how it begins, "" if there is none
			words  string // in it
		}{
			"random bytes":               {append([]byte("GET / HTTP/1.1\r\n"), noise(4096)...), "", ""},
			"noise":                      {append([]byte{0xff}, noise(1<<20)...), "", ""},
			"another protocol":           {append([]byte("CANTUSRP"), 0, 2, 0, 0), "\x01", "protocol 2 is not known, 1 is"},
			"too long a preamble":        {append([]byte("CANTUSRP"), 0, 1, 0xff, 0xff), "", ""},
			"flipped preamble":           {flipped(good, 20), "", ""},
			"names cut short":            {shortPreamble(), "", ""},
			"another cluster":            {preamble(1, 0, "0123456789abcdef", "n9", leader.name), "\x01", "this is cluster " + status.ID},
			"another node":               {preamble(1, 0, status.ID, "n9", "n8"), "\x01", "I am " + leader.name + ", not n8"},
			"unknown kind":               {preamble(9, 0, status.ID, "n9", leader.name), "", ""},
			"unknown group":              {preamble(1, 77, status.ID, "n9", leader.name), "\x01", "no replica of group 77"},
			"good, then noise":           {append(bytes.Clone(good), noise(1<<16)...), welcome, ""},
			"good, then a huge frame":    {append(bytes.Clone(good), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3), welcome, ""},
			"good, then too large":       {append(bytes.Clone(good), replicationFrame(make([]byte, 256<<10+1))...), welcome, ""},
			"good, then a broken sum":    {append(bytes.Clone(good), flipped(replicationFrame([]byte("hello")), 4)...), welcome, ""},
			"good, then a wrong request": {append(bytes.Clone(good), replicationFrame(noise(1000))...), welcome, ""},
			// A request for votes and entries whose lists claim to be huge.
			"good, then a huge list":   {append(bytes.Clone(good), replicationFrame([]byte("\x00\x81\xa7Entries\xdd\xff\xff\xff\xff"))...), welcome, ""},
			"good, then a huge string": {append(bytes.Clone(good), replicationFrame([]byte("\x00\x81\xa6Leader\xc6\xff\xff\xff\xff"))...), welcome, ""},
			"fetch of noise":           {append(bytes.Clone(fetch), replicationFrame(noise(1000))...), welcome, ""},
			"fetch without an end":     {append(bytes.Clone(fetch), bytes.Repeat(replicationFrame(bytes.Repeat([]byte("x"), 1<<16)), 64)...), welcome, ""},
		} {
			t.Run(name, func(t *testing.T) { checkSaid(t, address, g.said, g.answer, g.words) })
		}
		// Many that say nothing at all don't keep others away.
		for range 200 {
			idle, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
		}
		checkSaid(t, address, preamble(1, 0, status.ID, "n9", "n8"), "\x01", "not n8")
		c.awaitLog(t, leader, "connection refused")
		if most := leader.running().peak(t); most > 1<<30 {
			t.Errorf("the node took %d bytes", most)
		}
	})
}

// shortPreamble is sealed as it should be and says less than it must.
func shortPreamble() []byte {
	b := append([]byte("CANTUSRP"), 0, 1, 0, 13, 1, 0, 0, 0, 0, 200, 'x', 'y', 'z', 0)
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

// checkSaid says something to a replication port and wants to be answered so
// and hung up on.
func checkSaid(t *testing.T, address string, said []byte, answer, words string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(said) // it may hang up before it has heard it all
	_ = conn.(*net.TCPConn).CloseWrite()
	heard, err := io.ReadAll(conn)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatalf("not hung up on after %v", patience)
	}
	if err == nil && (!strings.HasPrefix(string(heard), answer) || !strings.Contains(string(heard), words)) {
		t.Errorf("it was answered %q, want %q and %q", heard, answer, words)
	}
}

package e2e_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"testing"
	"time"
)

// opening is a node's first message on another's replication port.
func opening() []byte {
	b := append([]byte("CANTUSRP\x00\x02\x00\x24"), noise(32)...)
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

// greeting is its second message, with an invalid proof.
func greeting(kind byte, from, to string) []byte {
	body := []byte{kind, 0, 0, 0, 0}
	for _, s := range []string{from, "id", to} {
		body = append(append(body, byte(len(s))), s...)
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(len(body)))
	return append(append(b, body...), noise(32)...)
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

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

// TestClusterHearsGarbage sends malformed messages to the replication port of a
// leader, and those of a node that has no secret. Nothing is revealed, each
// connection is closed, and the cluster continues.
func TestClusterHearsGarbage(t *testing.T) {
	c := startCluster(t, 3, steady...)
	status, err := statusOf(t.Context(), c.dial("n1"))
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
	good := opening()
	const nonce = 32
	undisturbed(t, c, func(t *testing.T) {
		for name, g := range map[string]struct {
			said []byte
			most int // bytes of an answer
		}{
			"random bytes":            {append([]byte("GET / HTTP/1.1\r\n"), noise(4096)...), 0},
			"noise":                   {append([]byte{0xff}, noise(1<<20)...), 0},
			"another protocol":        {append([]byte("CANTUSRP"), 0, 1, 0, 0), 0},
			"too long an opening":     {append([]byte("CANTUSRP"), 0, 2, 0xff, 0xff), 0},
			"flipped opening":         {flipped(good, 20), 0},
			"an opening":              {good, nonce},
			"then noise":              {append(bytes.Clone(good), noise(1<<16)...), nonce},
			"then a huge length":      {append(bytes.Clone(good), 0xff, 0xff, 1, 2, 3), nonce},
			"a greeting as a member":  {append(bytes.Clone(good), greeting(1, "n1", leader.name)...), nonce},
			"a fetch as a member":     {append(bytes.Clone(good), greeting(2, "n1", leader.name)...), nonce},
			"heartbeats as a member":  {append(bytes.Clone(good), greeting(3, "n1", leader.name)...), nonce},
			"a greeting to another":   {append(bytes.Clone(good), greeting(1, "n1", "n8")...), nonce},
			"a greeting of a strange": {append(bytes.Clone(good), greeting(9, "n1", leader.name)...), nonce},
		} {
			t.Run(name, func(t *testing.T) { checkSaid(t, address, g.said, g.most) })
		}
		// Many idle connections don't keep nodes away.
		for range 200 {
			idle, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
		}
		checkSaid(t, address, good, nonce)
		c.awaitLog(t, leader, "inbound connection rejected")
		if most := leader.running().peak(t); most > 1<<30 {
			t.Errorf("the node took %d bytes", most)
		}
	})
}

// checkSaid sends said to a replication port, which must close the connection
// and reveal nothing of the cluster. It may answer with most bytes.
func checkSaid(t *testing.T, address string, said []byte, most int) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(said) // it may close the connection before it has read everything
	_ = conn.(*net.TCPConn).CloseWrite()
	heard, err := io.ReadAll(conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Fatalf("the connection is still open after %v", patience)
	}
	if len(heard) > most {
		t.Errorf("it was answered %q, want at most %d bytes", heard, most)
	}
}

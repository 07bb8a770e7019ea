package broker_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// rawClient speaks the NATS protocol by hand: it can send what no client
// library would.
type rawClient struct {
	conn net.Conn
	r    *bufio.Reader
}

func dialRaw(t *testing.T, url string) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &rawClient{conn, bufio.NewReader(conn)}
	c.line(t) // INFO
	c.send(t, "CONNECT {\"headers\":true,\"verbose\":false,\"pedantic\":false}\r\nSUB answer 1\r\n")
	return c
}

func (c *rawClient) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		t.Fatal(err)
	}
}

func (c *rawClient) line(t *testing.T) string {
	t.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(line, "\r\n")
}

// request publishes a message with the header block as it is.
func (c *rawClient) request(t *testing.T, subject, block, payload string) {
	t.Helper()
	c.send(t, fmt.Sprintf("HPUB %s answer %d %d\r\n%s%s\r\n", subject, len(block), len(block)+len(payload), block, payload))
}

// reply returns the next answer, headers included.
func (c *rawClient) reply(t *testing.T) string {
	t.Helper()
	for {
		line := c.line(t)
		switch {
		case strings.HasPrefix(line, "MSG "), strings.HasPrefix(line, "HMSG "):
			fields := strings.Fields(line)
			n, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				t.Fatal(err)
			}
			body := make([]byte, n+2)
			if _, err := io.ReadFull(c.r, body); err != nil {
				t.Fatal(err)
			}
			return string(body[:n])
		case strings.HasPrefix(line, "-ERR"):
			t.Fatalf("the server said %s", line)
		}
	}
}

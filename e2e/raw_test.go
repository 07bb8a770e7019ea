package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// raw speaks the NATS protocol by hand, to send what no client library sends.
type raw struct {
	tb    testing.TB
	conn  net.Conn
	in    *bufio.Reader
	inbox string
	sent  int
}

func dialRaw(tb testing.TB, url string) *raw {
	tb.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	r := &raw{tb: tb, conn: conn, in: bufio.NewReader(conn), inbox: nats.NewInbox()}
	if line := r.line(); !strings.HasPrefix(line, "INFO ") {
		tb.Fatalf("the server begins with %q", line)
	}
	r.send("CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB " + r.inbox + ".* 1\r\n")
	return r
}

// request publishes a header block and a payload exactly as they are and
// returns the one answer. A nil block is a message without headers.
func (r *raw) request(subject string, block, payload []byte) *nats.Msg {
	r.tb.Helper()
	r.sent++
	reply := fmt.Sprintf("%s.%d", r.inbox, r.sent)
	r.publish(subject, reply, block, payload)
	for {
		m := r.next()
		if m.Subject == reply {
			return m
		}
	}
}

// publish sends one message; reply may be empty.
func (r *raw) publish(subject, reply string, block, payload []byte) {
	r.tb.Helper()
	if block == nil {
		r.send(fmt.Sprintf("PUB %s %s %d\r\n%s\r\n", subject, reply, len(payload), payload))
		return
	}
	r.send(fmt.Sprintf("HPUB %s %s %d %d\r\n%s%s\r\n", subject, reply, len(block), len(block)+len(payload), block, payload))
}

// next returns the next message.
func (r *raw) next() *nats.Msg {
	r.tb.Helper()
	for {
		line := r.line()
		switch op, rest, _ := strings.Cut(line, " "); op {
		case "PING":
			r.send("PONG\r\n")
		case "MSG", "HMSG":
			return r.message(op, strings.Fields(rest))
		case "PONG", "+OK", "INFO":
		default:
			r.tb.Fatalf("the server says %q", line)
		}
	}
}

func (r *raw) message(op string, fields []string) *nats.Msg {
	r.tb.Helper()
	number := func(i int) int {
		n, err := strconv.Atoi(fields[len(fields)-i])
		if err != nil {
			r.tb.Fatalf("%s %v: %v", op, fields, err)
		}
		return n
	}
	total, head := number(1), 0
	if op == "HMSG" {
		head = number(2)
	}
	body := make([]byte, total+2)
	if _, err := io.ReadFull(r.in, body); err != nil {
		r.tb.Fatal(err)
	}
	m := nats.NewMsg(fields[0])
	if head > 0 {
		header, err := nats.DecodeHeadersMsg(body[:head])
		if err != nil {
			r.tb.Fatalf("header block %q: %v", body[:head], err)
		}
		m.Header = header
	}
	m.Data = body[head:total]
	return m
}

func (r *raw) send(s string) {
	r.tb.Helper()
	if _, err := io.WriteString(r.conn, s); err != nil {
		r.tb.Fatal(err)
	}
}

func (r *raw) line() string {
	r.tb.Helper()
	if err := r.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		r.tb.Fatal(err)
	}
	line, err := r.in.ReadString('\n')
	if err != nil {
		r.tb.Fatal(err)
	}
	return strings.TrimRight(line, "\r\n")
}

// block frames header lines as NATS does.
func block(lines ...string) []byte {
	return []byte("NATS/1.0\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n")
}

package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// wireClient is a connection that speaks NATS's protocol by itself: thousands
// of them cost a test little, and one may never read. Its reply subjects are
// its own: see reply.
type wireClient struct {
	net.Conn
	in *bufio.Reader
	id string

	writing sync.Mutex // held while something is written
}

// dialWire connects to a node.
func dialWire(ctx context.Context, n *node, id string) (*wireClient, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(n.url, "nats://"))
	if err != nil {
		return nil, err
	}
	w := &wireClient{Conn: conn, in: bufio.NewReaderSize(conn, 16<<10), id: id}
	hello := `CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1,"lang":"test"}` + "\r\n"
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := w.write(fmt.Append(nil, hello, "SUB ", w.reply("*"), " 1\r\nPING\r\n")); err != nil {
		_ = conn.Close()
		return nil, err
	}
	for {
		switch line, err := w.in.ReadString('\n'); {
		case err != nil:
			_ = conn.Close()
			return nil, fmt.Errorf("connect: %w", err)
		case strings.HasPrefix(line, "PONG"):
			return w, conn.SetDeadline(time.Time{})
		}
	}
}

// reply returns a subject whose messages arrive here.
func (w *wireClient) reply(token string) string { return "_WIRE." + w.id + "." + token }

func (w *wireClient) write(b []byte) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	_, err := w.Write(b)
	return err
}

// appendPub appends a command that publishes a message.
func (w *wireClient) appendPub(b []byte, subject, token string, payload []byte) []byte {
	b = fmt.Appendf(b, "PUB %s %s %d\r\n", subject, w.reply(token), len(payload))
	return append(append(b, payload...), "\r\n"...)
}

// wireMsg is a message that has arrived. What it holds is valid until the next.
type wireMsg struct {
	token   string // of the reply subject
	header  []byte
	payload []byte
}

// reason returns why a request was refused, "" if it was not.
func (m *wireMsg) reason() string {
	if bytes.HasPrefix(m.header, []byte("NATS/1.0 503")) {
		return "no responders"
	}
	if !bytes.Contains(m.header, []byte("Nats-Service-Error-Code")) {
		return ""
	}
	_, rest, _ := bytes.Cut(m.payload, []byte(`"reason":"`))
	reason, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(reason)
}

// field returns a field of the header, "" if there is none.
func (m *wireMsg) field(name string) string {
	_, rest, found := bytes.Cut(m.header, []byte("\r\n"+name+": "))
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	if !found {
		return ""
	}
	return string(value)
}

// receive calls take for each message, until the connection ends.
func (w *wireClient) receive(take func(*wireMsg)) error {
	var body []byte
	for {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		words := bytes.Fields(line)
		if len(words) == 0 {
			continue
		}
		kind := string(words[0])
		switch {
		case kind == "PING":
			if err := w.write([]byte("PONG\r\n")); err != nil {
				return err
			}
			continue
		case kind == "-ERR":
			return fmt.Errorf("the server says %s", bytes.TrimSpace(line[len("-ERR"):]))
		case kind != "MSG" && kind != "HMSG" || len(words) < 4:
			continue
		}
		m := wireMsg{token: string(words[1][len(w.reply("")):])}
		size, headers := number(words[len(words)-1]), 0
		if kind == "HMSG" {
			headers = number(words[len(words)-2])
		}
		if cap(body) < size+2 {
			body = make([]byte, size+2)
		}
		if _, err := io.ReadFull(w.in, body[:size+2]); err != nil {
			return err
		}
		m.header, m.payload = body[:headers], body[headers:size]
		take(&m)
	}
}

func number(digits []byte) int {
	n, err := strconv.Atoi(string(digits))
	if err != nil {
		return 0
	}
	return n
}

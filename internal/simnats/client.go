package simnats

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// client is a connection of a client.
type client struct {
	server *Server
	id     uint64
	conn   net.Conn
	out    *outbox

	// Server.mu guards the fields below.
	subs         map[string]*subscription // by sid
	noResponders bool
}

// read handles the client's commands until the connection ends.
func (c *client) read() {
	info, err := json.Marshal(map[string]any{
		"server_id": c.server.opts.Name, "server_name": c.server.opts.Name, "version": "2.15.3", "proto": 1, "headers": true,
		"max_payload": MaxPayload, "client_id": c.id, "cluster": "sim",
	})
	if err != nil {
		panic(err) // numbers and strings
	}
	c.out.add(fmt.Appendf(nil, "INFO %s\r\n", info))
	r := bufio.NewReader(c.conn)
	for err == nil {
		err = c.command(r)
	}
	c.out.close()
	_ = c.conn.Close()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	delete(c.server.clients, c.id)
	for _, sub := range c.subs {
		c.server.changed(sub, true)
	}
}

// command handles one command.
func (c *client) command(r *bufio.Reader) error {
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	args := strings.Fields(rest)
	switch strings.ToUpper(verb) {
	case "CONNECT":
		var o struct {
			Headers      bool `json:"headers"`
			NoResponders bool `json:"no_responders"`
		}
		if err := json.Unmarshal([]byte(rest), &o); err != nil {
			return err
		}
		c.server.mu.Lock()
		c.noResponders = o.Headers && o.NoResponders
		c.server.mu.Unlock()
	case "PING":
		c.out.add([]byte("PONG\r\n"))
	case "PONG":
	case "SUB":
		return c.subscribe(args)
	case "UNSUB":
		return c.unsubscribe(args)
	case "PUB", "HPUB":
		return c.publish(r, verb == "HPUB", args)
	default:
		return fmt.Errorf("simnats: command %q is not known", verb)
	}
	return nil
}

func (c *client) subscribe(args []string) error {
	sub := &subscription{client: c}
	switch len(args) {
	case 2:
		sub.subject, sub.sid = args[0], args[1]
	case 3:
		sub.subject, sub.queue, sub.sid = args[0], args[1], args[2]
	default:
		return fmt.Errorf("simnats: SUB with %d arguments", len(args))
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.subs[sub.sid] = sub
	c.server.changed(sub, false)
	return nil
}

func (c *client) unsubscribe(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("simnats: UNSUB without an id")
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	sub := c.subs[args[0]]
	if sub == nil {
		return nil
	}
	if len(args) > 1 {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		sub.left = n
		return nil
	}
	sub.end()
	return nil
}

// end ends a subscription. Server.mu is held.
func (s *subscription) end() {
	delete(s.client.subs, s.sid)
	s.client.server.changed(s, true)
}

func (c *client) publish(r *bufio.Reader, headers bool, args []string) error {
	sizes := 1
	if headers {
		sizes = 2
	}
	if len(args) < 1+sizes || len(args) > 2+sizes {
		return fmt.Errorf("simnats: PUB with %d arguments", len(args))
	}
	m := message{Subject: args[0]}
	if len(args) == 2+sizes {
		m.Reply = args[1]
	}
	var n [2]int // of the header block, and of all
	for i, text := range args[len(args)-sizes:] {
		size, err := strconv.Atoi(text)
		if err != nil || size < 0 || size > MaxPayload {
			return fmt.Errorf("simnats: a size of %q", text)
		}
		n[2-sizes+i] = size
	}
	body := make([]byte, n[1]+2)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if n[0] > n[1] {
		return fmt.Errorf("simnats: a header block of %d bytes in %d", n[0], n[1])
	}
	m.Header, m.Payload = body[:n[0]], body[n[0]:n[1]]
	if !c.server.publish(m) && m.Reply != "" {
		c.noResponder(m.Reply)
	}
	return nil
}

// noResponder tells the client that nobody is there to answer its request.
func (c *client) noResponder(reply string) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if !c.noResponders {
		return
	}
	for _, sub := range c.subs {
		if matches(sub.subject, reply) {
			sub.deliver(message{Subject: reply, Header: []byte("NATS/1.0 503\r\n\r\n")})
			return
		}
	}
}

// deliver sends a message to the subscription. Server.mu is held.
func (s *subscription) deliver(m message) {
	reply := ""
	if m.Reply != "" {
		reply = m.Reply + " "
	}
	var b []byte
	if len(m.Header) > 0 {
		b = fmt.Appendf(nil, "HMSG %s %s %s%d %d\r\n", m.Subject, s.sid, reply, len(m.Header), len(m.Header)+len(m.Payload))
	} else {
		b = fmt.Appendf(nil, "MSG %s %s %s%d\r\n", m.Subject, s.sid, reply, len(m.Payload))
	}
	b = append(append(append(b, m.Header...), m.Payload...), "\r\n"...)
	s.client.out.add(b)
	if s.left > 0 {
		if s.left--; s.left == 0 {
			s.end()
		}
	}
}

// outbox is what waits to be written to a connection.
type outbox struct {
	mu     sync.Mutex // guards the fields below
	data   []byte
	closed bool
	wake   chan struct{} // capacity 1
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

func (o *outbox) add(b []byte) {
	o.mu.Lock()
	o.data = append(o.data, b...)
	o.mu.Unlock()
	o.poke()
}

func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.poke()
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// write writes what is added until the outbox is closed or a write fails.
func (o *outbox) write(to io.Writer) {
	for range o.wake {
		o.mu.Lock()
		data, closed := o.data, o.closed
		o.data = nil
		o.mu.Unlock()
		if closed {
			return
		}
		if _, err := to.Write(data); err != nil {
			return
		}
	}
}

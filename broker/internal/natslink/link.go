package natslink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Link is one of the node's own connections to its NATS server.
//
// Its reading goroutine (run) handles all that the server sends, calls the
// handlers, and dials again when the connection breaks. It must never wait for
// a write: the server may read from the link only after the link has read from
// it. So it sends a PONG, and renews the subscriptions of a new connection, on
// separate goroutines. A second permanent goroutine (runAudits) compares the
// subscriptions with the server's. Both end in Close.
//
// writing may be held for as long as the server does not read. handling and mu
// are held only briefly: handling guards the subscriptions, mu the connection.
// A goroutine that needs several locks takes them in the order writing,
// handling, mu.
type Link struct {
	opts   Options
	log    *slog.Logger
	warned time.Time // when a forbidden reply was last logged; owned by the reading goroutine

	// handling guards handlers and nextID. It is not held while a handler runs.
	handling sync.RWMutex
	handlers map[int]subscription
	nextID   int

	audits audits
	// maxPayload is the server's limit for a message of this connection, in
	// bytes; 0 until the server has sent it.
	maxPayload atomic.Int64
	maxReply   atomic.Int64 // see Options.MaxReply

	// writing is held during a write, which blocks while the server does not
	// read. Closing the connection unblocks the write, and needs only mu.
	writing sync.Mutex

	// mu guards the fields below.
	mu       sync.Mutex
	conn     net.Conn     // for writing
	dialed   net.Conn     // the newest connection, even if its handshake is not done
	pings    []chan error // waiting for the server's PONGs, in order
	closed   bool
	lost     bool   // the connection broke, and there is no new one yet
	clientID uint64 // the server's number for the connection

	closing chan struct{} // closed by Close
	done    chan struct{} // closed when run has returned
}

type subscription struct {
	subject, queue string
	handle         func(*Message)
	ending         bool // unsubscribed; messages that the server has already sent are still handled
}

// Message is a received message. Its slices share one buffer, which belongs
// to the handler.
type Message struct {
	Subject  string
	Reply    string
	Header   []byte // the header block, nil if there is none
	Payload  []byte
	Received time.Time
	// Note and Requeued are the receiver's own.
	Note any
	// Requeued is when the message was put in its queue again, if it was.
	Requeued time.Time
}

// Options configure a link.
type Options struct {
	Name string // of the connection, in logs and at the server
	Dial func() (net.Conn, error)
	// User returns the connection's credentials. It is called for each new
	// connection.
	User func() User
	// Subscriptions returns the ids of the subscriptions that the server has
	// for a client. If it is nil, subscriptions are not audited.
	Subscriptions func(clientID uint64) (map[int]bool, error)
	// MaxReply is the maximum length, in bytes, of a reply subject to which the
	// node can reply. Messages with a longer one are dropped. 0 means no limit.
	MaxReply int64
	// Forbidden reports whether the node must not reply to a subject. Messages
	// with such a reply subject are dropped. It may be nil.
	Forbidden func(reply string) bool
}

var (
	// ErrClosed is returned by the methods of a closed link.
	ErrClosed = errors.New("broker: connection to the NATS server is closed")
	errLost   = errors.New("broker: connection to the NATS server was lost")
)

// Open connects to the server. It returns when the server has accepted the
// connection.
func Open(o Options, log *slog.Logger) (*Link, error) {
	l := &Link{
		opts: o, log: log, audits: newAudits(),
		handlers: map[int]subscription{}, closing: make(chan struct{}), done: make(chan struct{}),
	}
	l.maxReply.Store(o.MaxReply)
	r, err := l.connect()
	if err != nil {
		return nil, fmt.Errorf("connect %s to the NATS server: %w", o.Name, err)
	}
	l.audits.running.Go(l.runAudits)
	go l.run(r)
	return l, nil
}

// Name returns the connection's name.
func (l *Link) Name() string { return l.opts.Name }

// MaxPayload returns the server's limit for a message of this connection, in
// bytes; 0 until the server has sent it.
func (l *Link) MaxPayload() int64 { return l.maxPayload.Load() }

// SetLimits sets new limits after a reload of the server, which does not
// announce them. payloadBefore and payload are the old and the new max_payload;
// the new one has no effect if the connection's account has a limit of its own.
// maxReply is as in [Options].
func (l *Link) SetLimits(payloadBefore, payload, maxReply int64) {
	l.maxReply.Store(maxReply)
	l.maxPayload.CompareAndSwap(payloadBefore, payload)
}

// Pause blocks all writes to the link until resume is called.
func (l *Link) Pause() (resume func()) {
	l.writing.Lock()
	return l.writing.Unlock
}

// connect dials and completes the handshake.
func (l *Link) connect() (*bufio.Reader, error) {
	conn, err := l.opts.Dial()
	if err != nil {
		return nil, err
	}
	if !l.track(conn, &l.dialed) {
		return nil, errors.Join(ErrClosed, conn.Close())
	}
	r := bufio.NewReaderSize(conn, 128<<10)
	if err := l.handshake(conn, r); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if !l.track(conn, &l.conn) {
		return nil, ErrClosed
	}
	l.mu.Lock()
	l.lost = false
	l.mu.Unlock()
	return r, nil
}

// track sets a field to conn, so that Close closes conn. It returns false if
// the link is closed.
func (l *Link) track(conn net.Conn, field *net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		*field = conn
	}
	return !l.closed
}

// handshakeTimeout bounds the handshake: a server that is stopping may never
// answer.
const handshakeTimeout = 10 * time.Second

func (l *Link) handshake(conn net.Conn, r *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	info, ok := l.info(line)
	if !ok {
		return fmt.Errorf("the server sent %q, not INFO", bytes.TrimSpace(line))
	}
	command, err := l.opts.User().connect(l.opts.Name, info.Nonce)
	if err != nil {
		return err
	}
	command = append(command, "PING\r\n"...)
	// The connection is a pipe without a buffer: reading must not wait for the
	// write.
	sent := make(chan error, 1)
	go func() { _, err := conn.Write(command); sent <- err }()
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case err != nil:
			return err
		case bytes.HasPrefix(line, []byte("PONG")):
			return errors.Join(<-sent, conn.SetDeadline(time.Time{}))
		case bytes.HasPrefix(line, []byte("-ERR")):
			return fmt.Errorf("the server sent %q", bytes.TrimSpace(line))
		}
	}
}

// serverInfo is the part of the server's INFO that the link uses.
type serverInfo struct {
	Nonce      string `json:"nonce"`
	ClientID   uint64 `json:"client_id"`
	MaxPayload int64  `json:"max_payload"`
}

// info parses an INFO line and stores the limit and the connection's number.
// The server sends another INFO when it knows the account, which may have a
// lower limit.
func (l *Link) info(line []byte) (info serverInfo, ok bool) {
	body, ok := bytes.CutPrefix(line, []byte("INFO "))
	if !ok || json.Unmarshal(body, &info) != nil {
		return info, false
	}
	if info.MaxPayload > 0 {
		l.maxPayload.Store(info.MaxPayload)
	}
	if info.ClientID > 0 {
		l.mu.Lock()
		l.clientID = info.ClientID
		l.mu.Unlock()
	}
	return info, true
}

// run reads from the connection, and from those that replace it, until Close.
func (l *Link) run(r *bufio.Reader) {
	defer close(l.done)
	for {
		err := l.read(r)
		l.disconnect()
		select {
		case <-l.closing:
			return
		default:
		}
		l.log.Warn("connection to the NATS server lost, dialing again", "link", l.opts.Name, "err", err)
		if r, err = l.reconnect(); err != nil {
			return
		}
	}
}

// disconnect closes a connection that the link no longer reads, so that the
// server removes its subscriptions. It fails the pings that wait for a PONG.
func (l *Link) disconnect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	_ = l.conn.Close()
	for _, p := range l.pings {
		p <- errLost
	}
	l.pings = nil
}

// reconnect dials until it succeeds or the link is closed.
func (l *Link) reconnect() (*bufio.Reader, error) {
	for {
		r, err := l.connect()
		if err == nil {
			go l.renew() // the reading goroutine must not wait for a write
			return r, nil
		}
		select {
		case <-l.closing:
			return nil, err
		case <-time.After(100 * time.Millisecond): // the server may be starting, stopping or overloaded
		}
	}
}

// renew requests all subscriptions on a new connection. It holds writing
// throughout, so that an UNSUB follows the SUB that it ends.
func (l *Link) renew() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.handling.RLock()
	var out []byte
	for id, s := range l.handlers {
		if !s.ending {
			out = appendSub(out, s.subject, s.queue, id)
		}
	}
	l.handling.RUnlock()
	if err := l.write(out); err != nil {
		l.log.Debug("subscriptions not renewed", "link", l.opts.Name, "err", err)
	}
}

// read handles the server's commands until the connection breaks.
func (l *Link) read(r *bufio.Reader) error {
	var received time.Time // when the contents of r arrived
	for {
		empty := r.Buffered() == 0
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if empty {
			received = time.Now()
		}
		switch {
		case bytes.HasPrefix(line, []byte("MSG ")):
			err = l.receive(r, line[4:], false, received)
		case bytes.HasPrefix(line, []byte("HMSG ")):
			err = l.receive(r, line[5:], true, received)
		case bytes.HasPrefix(line, []byte("PING")):
			go func() { _ = l.Send([]byte("PONG\r\n")) }()
		case bytes.HasPrefix(line, []byte("PONG")):
			l.pong()
		case bytes.HasPrefix(line, []byte("-ERR")):
			l.onError(strings.Trim(string(bytes.TrimSpace(line[len("-ERR"):])), "'"))
		case bytes.HasPrefix(line, []byte("INFO ")):
			l.info(line)
		}
		if err != nil {
			return err
		}
	}
}

// receive reads a message and calls its handler. line is the control line
// without its verb: "subject sid [reply] [header bytes] total bytes".
func (l *Link) receive(r *bufio.Reader, line []byte, headers bool, received time.Time) error {
	c, ok := parseControl(line, headers)
	if !ok {
		return fmt.Errorf("malformed control line %q", line)
	}
	l.handling.RLock()
	s, ok := l.handlers[c.id]
	l.handling.RUnlock()
	// One buffer holds the whole message, since the next read overwrites line.
	buffer := make([]byte, len(c.reply)+c.total)
	n := copy(buffer, c.reply)
	m := &Message{Subject: s.subject, Reply: unsafeString(buffer[:n]), Received: received}
	if ok && m.Subject != string(c.subject) { // the subscription has a wildcard
		m.Subject = string(c.subject)
	}
	body := buffer[n:]
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if _, err := r.Discard(2); err != nil {
		return err
	}
	if headers {
		m.Header = body[:c.header:c.header]
	}
	m.Payload = body[c.header:]
	if limit := l.maxReply.Load(); limit > 0 && int64(n) > limit {
		l.log.Warn("request dropped: its reply subject is too long to be answered", "link", l.opts.Name, "subject", m.Subject, "bytes", n, "most", limit)
		return nil
	}
	switch {
	case !ok:
	case l.opts.Forbidden != nil && m.Reply != "" && l.opts.Forbidden(m.Reply):
		if received.Sub(l.warned) > time.Second {
			l.warned = received
			l.log.Warn("a request was ignored: its reply subject is the node's own or the NATS server's",
				"subject", abbreviate([]byte(m.Subject)), "reply", abbreviate(buffer[:n]))
		}
	default:
		s.handle(m)
	}
	return nil
}

// Subscribe subscribes to a subject. handle is called for each message, on the
// link's only reading goroutine: it must not block. If queue is not "", its
// members share the messages. The id is for [Link.Confirm] and
// [Link.Unsubscribe].
func (l *Link) Subscribe(subject, queue string, handle func(*Message)) (id int, err error) {
	// writing is held throughout, so that an audit never sees a subscription
	// that is in handlers and not requested yet.
	l.writing.Lock()
	defer l.writing.Unlock()
	l.handling.Lock()
	l.nextID++
	id = l.nextID
	l.handlers[id] = subscription{subject: subject, queue: queue, handle: handle}
	l.handling.Unlock()
	return id, l.write(appendSub(nil, subject, queue, id))
}

// Unsubscribe ends subscriptions. When it returns nil, all messages that the
// server sent to them have been handled. After an error, messages that have not
// been handled are dropped.
func (l *Link) Unsubscribe(ctx context.Context, ids ...int) error {
	var out []byte
	l.handling.Lock()
	for _, id := range ids {
		s := l.handlers[id]
		s.ending = true
		l.handlers[id] = s
		out = fmt.Appendf(out, "UNSUB %d\r\n", id)
	}
	l.handling.Unlock()
	err := l.Send(out)
	if err == nil {
		err = l.Flush(ctx)
	}
	l.handling.Lock()
	defer l.handling.Unlock()
	for _, id := range ids {
		delete(l.handlers, id)
		delete(l.audits.refused, id)
	}
	return err
}

// Flush returns nil when the server has processed all commands sent before the
// call, and all messages that it had sent by then have been handled. It returns
// an error if the connection breaks in the meantime.
func (l *Link) Flush(ctx context.Context) error {
	pong := make(chan error, 1)
	if err := l.ping(pong); err != nil {
		return err
	}
	select {
	case err := <-pong:
		return err
	case <-l.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ping sends a PING. pong receives nil when the server's PONG arrives, or an
// error if the connection breaks.
func (l *Link) ping(pong chan error) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	l.pings = append(l.pings, pong)
	l.mu.Unlock()
	err := l.write([]byte("PING\r\n"))
	if err != nil {
		l.mu.Lock()
		l.pings = slices.DeleteFunc(l.pings, func(c chan error) bool { return c == pong })
		l.mu.Unlock()
	}
	return err
}

func (l *Link) pong() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pings) > 0 {
		l.pings[0] <- nil
		l.pings = l.pings[1:]
	}
}

// Send writes complete protocol commands. It blocks while the server does not
// read.
func (l *Link) Send(commands []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.write(commands)
}

// write is Send for callers that hold writing.
func (l *Link) write(commands []byte) error {
	if len(commands) == 0 {
		return nil
	}
	l.mu.Lock()
	conn, closed := l.conn, l.closed
	l.mu.Unlock()
	if closed {
		return ErrClosed
	}
	_, err := conn.Write(l.withinLimits(commands))
	return err
}

// Close closes the link and waits for its goroutines. It is idempotent.
func (l *Link) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.closing)
		_ = l.dialed.Close()
		_ = l.conn.Close()
	}
	l.mu.Unlock()
	<-l.done
	l.audits.running.Wait()
}

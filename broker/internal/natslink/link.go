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

// Link is the node's own connection to its NATS server.
type Link struct {
	opts   Options
	log    *slog.Logger
	warned time.Time // when a forbidden reply was last logged; owned by the reader

	// handling guards handlers; it is never held while one runs.
	handling sync.RWMutex
	handlers map[int]subscription
	nextID   int

	audits audits
	// maxPayload is the server's limit for a message of this connection, in
	// bytes; 0 until the server has sent it.
	maxPayload atomic.Int64
	maxReply   atomic.Int64 // see Options.MaxReply

	// writing is held while writing, which blocks while the server does not
	// read. Closing the connection ends that, and needs only mu.
	writing sync.Mutex

	// mu guards what follows.
	mu       sync.Mutex
	conn     net.Conn     // for writing
	dialed   net.Conn     // the newest, also during its handshake
	pings    []chan error // they wait for the server's PONGs, in order
	closed   bool
	lost     bool   // the connection ended, and there is no new one yet
	clientID uint64 // the server's number for the connection

	closing chan struct{} // closed by close
	done    chan struct{} // closed when run has returned
}

type subscription struct {
	subject, queue string
	handle         func(*Message)
	ending         bool // unsubscribed; messages under way are still handled
}

// Message is a received message. Its slices share one buffer, which belongs
// to the handler.
type Message struct {
	Subject  string
	Reply    string
	Header   []byte // a header block, nil if there was none
	Payload  []byte
	Received time.Time
}

// Options configure a link.
type Options struct {
	Name string // of the connection, in logs and at the server
	Dial func() (net.Conn, error)
	// User returns what the connection proves itself with. It is called for
	// each new connection.
	User func() User
	// Subscriptions returns the ids of a client's subscriptions at the server.
	// If it is nil, subscriptions are not audited.
	Subscriptions func(clientID uint64) (map[int]bool, error)
	// MaxReply is the longest reply subject, in bytes, of a message that can be
	// answered. Messages with a longer one are dropped; 0 accepts any.
	MaxReply int64
	// Forbidden reports whether the node must not answer to a subject.
	// Messages that ask for that are not handled. It may be nil.
	Forbidden func(reply string) bool
}

var (
	// ErrClosed is returned by calls on a closed link.
	ErrClosed = errors.New("broker: connection to the NATS server is closed")
	errLost   = errors.New("broker: connection to the NATS server was lost")
)

// Open connects and returns once the server has accepted the connection.
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

// Name is the connection's name.
func (l *Link) Name() string { return l.opts.Name }

// MaxPayload is the server's limit for a message of this connection, in bytes;
// 0 until the server has sent it.
func (l *Link) MaxPayload() int64 { return l.maxPayload.Load() }

// SetLimits tells the link that the server's max_payload has changed from one
// value to another, and what [Options.MaxReply] is now. The server announces no
// change: a connection whose account has no limit of its own has the new one.
func (l *Link) SetLimits(payloadBefore, payload, maxReply int64) {
	l.maxReply.Store(maxReply)
	l.maxPayload.CompareAndSwap(payloadBefore, payload)
}

// Pause holds back what is sent over the link until resume is called.
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

// track stores conn where Close finds it. It returns false if the link is closed.
func (l *Link) track(conn net.Conn, as *net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		*as = conn
	}
	return !l.closed
}

// handshakeTimeout bounds the handshake: a server that stops may never answer.
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
		return fmt.Errorf("the server began with %q", bytes.TrimSpace(line))
	}
	command, err := l.opts.User().connect(l.opts.Name, info.Nonce)
	if err != nil {
		return err
	}
	command = append(command, "PING\r\n"...)
	// The pipe has no buffer: write beside reading.
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
			return fmt.Errorf("the server said %q", bytes.TrimSpace(line))
		}
	}
}

// serverInfo is what the server says of itself and of the connection.
type serverInfo struct {
	Nonce      string `json:"nonce"`
	ClientID   uint64 `json:"client_id"`
	MaxPayload int64  `json:"max_payload"`
}

// info parses an INFO line and stores what it says. The server sends another one
// when it knows the account, which may have lower limits.
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

// run reads until Close, over as many connections as it takes.
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

// disconnect ends a connection that is not read any more, so that the server does
// not take it for a subscriber, and nobody waits for an answer on it.
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
			go l.renew() // reading must go on meanwhile
			return r, nil
		}
		select {
		case <-l.closing:
			return nil, err
		case <-time.After(100 * time.Millisecond): // the server is starting, stopping or overloaded
		}
	}
}

// renew subscribes again, on a new connection. It holds writing throughout, so
// that an UNSUB is sent after it.
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

// read handles what the server sends until the connection ends.
func (l *Link) read(r *bufio.Reader) error {
	var received time.Time // when the contents of r were
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

// receive reads one message, whose control line (without its verb) is
// "subject sid [reply] [header bytes] total bytes".
func (l *Link) receive(r *bufio.Reader, line []byte, headers bool, received time.Time) error {
	c, ok := parseControl(line, headers)
	if !ok {
		return fmt.Errorf("malformed control line %q", line)
	}
	l.handling.RLock()
	s, known := l.handlers[c.id]
	l.handling.RUnlock()
	// One buffer holds the whole message. The next read overwrites the line.
	buffer := make([]byte, len(c.reply)+c.total)
	n := copy(buffer, c.reply)
	m := &Message{Subject: s.subject, Reply: text(buffer[:n]), Received: received}
	if known && m.Subject != string(c.subject) { // a wildcard's
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
	if most := l.maxReply.Load(); most > 0 && int64(n) > most {
		l.log.Warn("request dropped: its reply subject is too long to be answered", "link", l.opts.Name, "subject", m.Subject, "bytes", n, "most", most)
		return nil
	}
	switch {
	case !known:
	case l.opts.Forbidden != nil && m.Reply != "" && l.opts.Forbidden(m.Reply):
		if received.Sub(l.warned) > time.Second {
			l.warned = received
			l.log.Warn("a request was ignored: its reply subject is the node's own or the NATS server's",
				"subject", clip([]byte(m.Subject)), "reply", clip(buffer[:n]))
		}
	default:
		s.handle(m)
	}
	return nil
}

// Subscribe has handle called for each message on subject, on the link's one
// reading goroutine: it must not block. With a queue that is not "", its members
// share the messages. The id is for [Link.Confirm] and [Link.Unsubscribe].
func (l *Link) Subscribe(subject, queue string, handle func(*Message)) (id int, err error) {
	l.writing.Lock() // an audit sees it requested, or not at all
	defer l.writing.Unlock()
	l.handling.Lock()
	l.nextID++
	id = l.nextID
	l.handlers[id] = subscription{subject: subject, queue: queue, handle: handle}
	l.handling.Unlock()
	return id, l.write(appendSub(nil, subject, queue, id))
}

// Unsubscribe ends subscriptions. When it returns nil, everything that the server
// sent to them has been handled; on an error the rest is dropped.
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

// Flush returns nil when the server has processed everything sent before, and
// everything that it sent until then has been handled. It returns an error if the
// connection is lost meanwhile.
func (l *Link) Flush(ctx context.Context) error {
	answered := make(chan error, 1)
	if err := l.ping(answered); err != nil {
		return err
	}
	select {
	case err := <-answered:
		return err
	case <-l.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ping asks the server for a PONG. When it comes, nil is sent to answered.
func (l *Link) ping(answered chan error) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	l.pings = append(l.pings, answered)
	l.mu.Unlock()
	err := l.write([]byte("PING\r\n"))
	if err != nil {
		l.mu.Lock()
		l.pings = slices.DeleteFunc(l.pings, func(c chan error) bool { return c == answered })
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

// Send writes whole protocol commands. It blocks while the server is not
// reading.
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
	_, err := conn.Write(l.acceptable(commands))
	return err
}

// Close ends the link and waits for its reader. It is idempotent.
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

package broker

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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// link is the node's own connection to its NATS server, at the level of the
// protocol. nats.go is not used here for two reasons. A message whose header
// block is malformed must be refused, and nats.go hands it over as one
// without headers, which would turn a checked append into an unchecked one.
// And a handler that runs on the reading goroutine and never blocks can
// answer `busy` when a queue is full, where a subscription would drop.
//
// A link dials again when its connection ends (after the process was stopped
// for long, say) and renews its subscriptions. Messages in between are lost,
// as they are for any NATS client.
type link struct {
	name string
	dial func() (net.Conn, error)
	auth func() credentials
	log  *slog.Logger
	// forbidden reports whether a message must not be answered where it asks to
	// be; such a message is not handled. It is set before anything is subscribed to.
	forbidden func(reply string) bool
	warned    time.Time // of a forbidden reply; owned by the reader

	// handling guards handlers; it is never held while one runs.
	handling sync.RWMutex
	handlers map[int]subscription
	nextID   int

	audits audits
	// maxPayload is what the server says that a message may have, 0 before it
	// has said so; maxReply is the longest reply subject that can be answered.
	maxPayload, maxReply atomic.Int64

	// writing is held while writing, which may block for as long as nobody
	// reads. Closing the connection ends that, and needs only mu.
	writing sync.Mutex

	// mu guards what follows.
	mu     sync.Mutex
	conn   net.Conn     // for writing
	dialed net.Conn     // the newest, also while it shakes hands
	pings  []chan error // wait for the server's PONGs, in order
	closed bool
	lost   bool   // the connection, and there is no other yet
	client uint64 // what the server calls the connection

	closing chan struct{} // closed by close
	done    chan struct{} // closed when run has returned
}

type subscription struct {
	subject, queue string
	handle         func(*message)
	ending         bool // unsubscribed; what is under way is still handled
}

// message is a received message. Its slices share one buffer, which is the
// handler's to keep.
type message struct {
	subject string
	reply   string
	header  []byte // a header block, nil if there was none
	payload []byte
	came    time.Time
}

var (
	errLinkClosed = errors.New("broker: connection to the NATS server is closed")
	errLinkLost   = errors.New("broker: connection to the NATS server was lost")
)

// newLink connects and returns once the server has accepted the connection.
func newLink(name string, dial func() (net.Conn, error), auth func() credentials, log *slog.Logger) (*link, error) {
	l := &link{
		name: name, dial: dial, auth: auth, log: log, audits: newAudits(),
		handlers: map[int]subscription{}, closing: make(chan struct{}), done: make(chan struct{}),
	}
	r, err := l.connect()
	if err != nil {
		return nil, fmt.Errorf("connect %s to the NATS server: %w", name, err)
	}
	l.audits.running.Go(l.watch)
	go l.run(r)
	return l, nil
}

// connect dials and shakes hands.
func (l *link) connect() (*bufio.Reader, error) {
	conn, err := l.dial()
	if err != nil {
		return nil, err
	}
	if !l.adopt(conn, &l.dialed) {
		return nil, errors.Join(errLinkClosed, conn.Close())
	}
	r := bufio.NewReaderSize(conn, 128<<10)
	if err := l.handshake(conn, r); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if !l.adopt(conn, &l.conn) {
		return nil, errLinkClosed
	}
	l.mu.Lock()
	l.lost = false
	l.mu.Unlock()
	return r, nil
}

// adopt makes conn one that close closes; false says that the link is closed.
func (l *link) adopt(conn net.Conn, as *net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		*as = conn
	}
	return !l.closed
}

// handshakeTime bounds the handshake: a server that stops may never answer.
const handshakeTime = 10 * time.Second

func (l *link) handshake(conn net.Conn, r *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
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
	hello, err := l.auth().connect(l.name, info.Nonce)
	if err != nil {
		return err
	}
	hello = append(hello, "PING\r\n"...)
	// The pipe has no buffer: write beside reading.
	sent := make(chan error, 1)
	go func() { _, err := conn.Write(hello); sent <- err }()
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
	Client     uint64 `json:"client_id"`
	MaxPayload int64  `json:"max_payload"`
}

// info takes an INFO line in. The server says it again when it knows the account,
// which may allow less.
func (l *link) info(line []byte) (info serverInfo, ok bool) {
	body, ok := bytes.CutPrefix(line, []byte("INFO "))
	if !ok || json.Unmarshal(body, &info) != nil {
		return info, false
	}
	if info.MaxPayload > 0 {
		l.maxPayload.Store(info.MaxPayload)
	}
	if info.Client > 0 {
		l.mu.Lock()
		l.client = info.Client
		l.mu.Unlock()
	}
	return info, true
}

// run reads until close, over as many connections as it takes.
func (l *link) run(r *bufio.Reader) {
	defer close(l.done)
	for {
		err := l.read(r)
		l.hangUp()
		select {
		case <-l.closing:
			return
		default:
		}
		l.log.Warn("connection to the NATS server lost, dialing again", "link", l.name, "err", err)
		if r, err = l.reconnect(); err != nil {
			return
		}
	}
}

// hangUp ends a connection that is not read any more: the server must not go
// on taking it for a subscriber, and nobody wait for it.
func (l *link) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	_ = l.conn.Close()
	for _, p := range l.pings {
		p <- errLinkLost
	}
	l.pings = nil
}

// reconnect dials until it succeeds or the link is closed.
func (l *link) reconnect() (*bufio.Reader, error) {
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

// renew subscribes anew. It looks and writes in one: who unsubscribes
// meanwhile does so behind it.
func (l *link) renew() {
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
		l.log.Debug("subscriptions not renewed", "link", l.name, "err", err)
	}
}

// read handles what comes in until the connection ends.
func (l *link) read(r *bufio.Reader) error {
	var came time.Time // what is in r
	for {
		empty := r.Buffered() == 0
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if empty {
			came = time.Now()
		}
		switch {
		case bytes.HasPrefix(line, []byte("MSG ")):
			err = l.receive(r, line[4:], false, came)
		case bytes.HasPrefix(line, []byte("HMSG ")):
			err = l.receive(r, line[5:], true, came)
		case bytes.HasPrefix(line, []byte("PING")):
			go func() { _ = l.send([]byte("PONG\r\n")) }()
		case bytes.HasPrefix(line, []byte("PONG")):
			l.pong()
		case bytes.HasPrefix(line, []byte("-ERR")):
			l.object(strings.Trim(string(bytes.TrimSpace(line[len("-ERR"):])), "'"))
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
func (l *link) receive(r *bufio.Reader, line []byte, headers bool, came time.Time) error {
	c, ok := parseControl(line, headers)
	if !ok {
		return fmt.Errorf("malformed control line %q", line)
	}
	l.handling.RLock()
	s, known := l.handlers[c.id]
	l.handling.RUnlock()
	// One buffer holds all of the message. The line is gone with the next read.
	buffer := make([]byte, len(c.reply)+c.total)
	n := copy(buffer, c.reply)
	m := &message{subject: s.subject, reply: text(buffer[:n]), came: came}
	if known && m.subject != string(c.subject) { // a wildcard's
		m.subject = string(c.subject)
	}
	body := buffer[n:]
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if _, err := r.Discard(2); err != nil {
		return err
	}
	if headers {
		m.header = body[:c.header:c.header]
	}
	m.payload = body[c.header:]
	if most := l.maxReply.Load(); most > 0 && int64(n) > most {
		l.log.Warn("request dropped: its reply subject is too long to be answered", "link", l.name, "subject", m.subject, "bytes", n, "most", most)
		return nil
	}
	switch {
	case !known:
	case l.forbidden != nil && m.reply != "" && l.forbidden(m.reply):
		if came.Sub(l.warned) > time.Second {
			l.warned = came
			l.log.Warn("a request was ignored: its reply subject is the node's own or the NATS server's",
				"subject", clip([]byte(m.subject)), "reply", clip(buffer[:n]))
		}
	default:
		s.handle(m)
	}
	return nil
}

// control is a message's control line. Its slices alias the line.
type control struct {
	subject, reply []byte
	id             int
	header, total  int
}

func parseControl(line []byte, headers bool) (c control, ok bool) {
	var fields [5][]byte
	n := 0
	for rest := bytes.TrimRight(line, "\r\n"); len(rest) > 0; n++ {
		if n == len(fields) {
			return c, false
		}
		fields[n], rest, _ = bytes.Cut(rest, []byte{' '})
	}
	sizes := 1
	if headers {
		sizes = 2
	}
	if n < 2+sizes || n > 3+sizes {
		return c, false
	}
	c.subject = fields[0]
	if n == 3+sizes {
		c.reply = fields[2]
	}
	var ok1, ok2, ok3 bool
	c.id, ok1 = parseSize(fields[1])
	c.total, ok2 = parseSize(fields[n-1])
	ok3 = true
	if headers {
		c.header, ok3 = parseSize(fields[n-2])
	}
	return c, ok1 && ok2 && ok3 && c.header <= c.total
}

// parseSize reads a number of at most 9 digits: the server sends no larger.
func parseSize(digits []byte) (n int, ok bool) {
	if len(digits) == 0 || len(digits) > 9 {
		return 0, false
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int(d-'0')
	}
	return n, true
}

// subscribe calls handle for each message on subject, on the link's one
// reading goroutine: it must not block. A queue that is not empty shares the
// messages with its other members.
func (l *link) subscribe(subject, queue string, handle func(*message)) (id int, err error) {
	l.writing.Lock() // an audit sees it asked for, or not at all
	defer l.writing.Unlock()
	l.handling.Lock()
	l.nextID++
	id = l.nextID
	l.handlers[id] = subscription{subject: subject, queue: queue, handle: handle}
	l.handling.Unlock()
	return id, l.write(appendSub(nil, subject, queue, id))
}

// unsubscribe ends subscriptions. What the server had sent by then has been
// handled when it returns nil; an error says that the rest was dropped.
func (l *link) unsubscribe(ctx context.Context, ids ...int) error {
	var out []byte
	l.handling.Lock()
	for _, id := range ids {
		s := l.handlers[id]
		s.ending = true
		l.handlers[id] = s
		out = fmt.Appendf(out, "UNSUB %d\r\n", id)
	}
	l.handling.Unlock()
	err := l.send(out)
	if err == nil {
		err = l.flush(ctx)
	}
	l.handling.Lock()
	defer l.handling.Unlock()
	for _, id := range ids {
		delete(l.handlers, id)
		delete(l.audits.refused, id)
	}
	return err
}

// flush returns nil when the server has dealt with all that was sent before,
// and what it sent until then has been handled. It fails if the connection
// is lost meanwhile.
func (l *link) flush(ctx context.Context) error {
	answered := make(chan error, 1)
	if err := l.ping(answered); err != nil {
		return err
	}
	select {
	case err := <-answered:
		return err
	case <-l.done:
		return errLinkClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ping asks the server for a PONG, which will be told to answered.
func (l *link) ping(answered chan error) error {
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

func (l *link) pong() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pings) > 0 {
		l.pings[0] <- nil
		l.pings = l.pings[1:]
	}
}

// send writes whole protocol commands. It blocks while the server is not
// reading.
func (l *link) send(commands []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.write(commands)
}

// write is send for who holds writing.
func (l *link) write(commands []byte) error {
	if len(commands) == 0 {
		return nil
	}
	l.mu.Lock()
	conn, closed := l.conn, l.closed
	l.mu.Unlock()
	if closed {
		return errLinkClosed
	}
	_, err := conn.Write(l.acceptable(commands))
	return err
}

// close ends the link and waits for its reader. It is idempotent.
func (l *link) close() {
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

func appendSub(dst []byte, subject, queue string, id int) []byte {
	if queue != "" {
		return fmt.Appendf(dst, "SUB %s %s %d\r\n", subject, queue, id)
	}
	return fmt.Appendf(dst, "SUB %s %d\r\n", subject, id)
}

// appendPub appends a message without headers.
func appendPub[S ~string | ~[]byte](dst []byte, subject string, payload S) []byte {
	dst = append(dst, "PUB "...)
	dst = append(dst, subject...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(payload)), 10)
	dst = append(dst, "\r\n"...)
	dst = append(dst, payload...)
	return append(dst, "\r\n"...)
}

// appendHPub appends a message with a header block.
func appendHPub(dst []byte, subject string, header, payload []byte) []byte {
	dst = append(dst, "HPUB "...)
	dst = append(dst, subject...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(header)), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(header)+len(payload)), 10)
	dst = append(dst, "\r\n"...)
	dst = append(dst, header...)
	dst = append(dst, payload...)
	return append(dst, "\r\n"...)
}

// appendAgain appends a message as it came in, to be answered by another.
func appendAgain(dst []byte, m *message) []byte {
	to := m.subject
	if m.reply != "" {
		to += " " + m.reply
	}
	if m.header == nil {
		return appendPub(dst, to, m.payload)
	}
	return appendHPub(dst, to, m.header, m.payload)
}

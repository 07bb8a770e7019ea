package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// reply is the answer to an append.
type reply struct {
	Partition     int      `json:"partition"`
	Txid          uint64   `json:"txid"`
	Time          string   `json:"time"`
	Duplicate     bool     `json:"duplicate"`
	Error         *refusal `json:"error"`
	HighWaterMark uint64   `json:"high_water_mark"`
}

type refusal struct {
	Code      int        `json:"code"`
	Reason    string     `json:"reason"`
	Message   string     `json:"message"`
	Lock      string     `json:"lock"`
	Txid      uint64     `json:"txid"`
	Conflicts []conflict `json:"conflicts"`
	FirstTxid uint64     `json:"first_txid"`
}

type conflict struct {
	Lock string `json:"lock"`
	Mode string `json:"mode"`
	Txid uint64 `json:"txid"`
}

func (r reply) String() string {
	if r.Error == nil {
		return fmt.Sprintf("txid %d (duplicate %t)", r.Txid, r.Duplicate)
	}
	return fmt.Sprintf("%d %s: %s", r.Error.Code, r.Error.Reason, r.Error.Message)
}

// partitionInfo is the answer of cantus.info.<p>, as far as it is needed.
type partitionInfo struct {
	Partition     int      `json:"partition"`
	FirstTxid     uint64   `json:"first_txid"`
	HighWaterMark uint64   `json:"high_water_mark"`
	Digest        string   `json:"digest"`
	Leader        string   `json:"leader"`
	Term          uint64   `json:"term"`
	Error         *refusal `json:"error"`
	Replicas      []struct {
		Name          string `json:"name"`
		State         string `json:"state"`
		Voter         bool   `json:"voter"`
		HighWaterMark uint64 `json:"high_water_mark"`
	} `json:"replicas"`
	Locks struct {
		Tracked  int    `json:"tracked"`
		Capacity int    `json:"capacity"`
		Floor    uint64 `json:"floor"`
	} `json:"locks"`
}

// readEnd is the last message of a read.
type readEnd struct {
	next, highWaterMark uint64
}

// errDropped ends a request whose connection broke: it is not known whether it
// was carried out.
var errDropped = errors.New("the connection broke")

// client is a NATS connection that reconnects forever. Its requests end with
// errDropped when the connection breaks.
type client struct {
	nc *nats.Conn
	// limit is how long an answer may take; after that a request ends with
	// overdue.
	limit   time.Duration
	overdue error
	// recorder records requests, under a name; nil if they are not recorded.
	recorder *recorder
	name     string

	mu sync.Mutex
	// session ends when the connection breaks; up is closed while there is a
	// connection.
	session    context.Context
	endSession context.CancelFunc
	up         chan struct{}
}

// errNoAnswer ends a request that was not answered within clientLimit: it is
// not known whether it was carried out.
var errNoAnswer = errors.New("no answer in time")

func dial(tb testing.TB, url string, opts ...nats.Option) *client {
	tb.Helper()
	c := &client{up: make(chan struct{}), limit: patience, overdue: fmt.Errorf("no answer within %v", patience)}
	c.connected(nil)
	opts = append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.DisconnectErrHandler(c.disconnected), nats.ReconnectHandler(c.connected),
		// Subscriptions overflow in these tests on purpose: they are not
		// logged.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nc.Close)
	c.nc = nc
	return c
}

func (c *client) connected(*nats.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.endSession = context.WithCancel(context.Background())
	close(c.up)
}

func (c *client) disconnected(*nats.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.up:
		c.endSession()
		c.up = make(chan struct{})
	default: // an attempt to reconnect that failed
	}
}

// standing is closed while there is a connection.
func (c *client) standing() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

// within derives a context that ends with the connection, or when the answer is
// overdue.
func (c *client) within(ctx context.Context) (context.Context, func()) {
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	ctx, release := context.WithTimeoutCause(ctx, c.limit, c.overdue)
	stop := context.AfterFunc(session, func() { cancel(errDropped) })
	return ctx, func() {
		stop()
		release()
		cancel(nil)
	}
}

// request sends one message and returns its one answer.
func (c *client) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	ctx, done := c.within(ctx)
	defer done()
	answer, err := c.nc.RequestMsgWithContext(ctx, m)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	return answer, err
}

// append sends one transaction. headers are keys, each followed by its value.
func (c *client) append(ctx context.Context, subject string, payload []byte, headers ...string) (reply, error) {
	m := nats.NewMsg(subject)
	m.Data = payload
	for i := 0; i < len(headers); i += 2 {
		m.Header[headers[i]] = append(m.Header[headers[i]], headers[i+1])
	}
	return c.appendMsg(ctx, m)
}

func (c *client) appendMsg(ctx context.Context, m *nats.Msg) (r reply, err error) {
	start := c.recorder.now()
	defer func() { c.recorder.append(c.name, start, m, r, err) }()
	answer, err := c.request(ctx, m)
	if err != nil {
		return reply{}, err
	}
	return decodeReply(answer)
}

// decodeReply checks what is true of every answer to an append.
func decodeReply(answer *nats.Msg) (reply, error) {
	var r reply
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return r, fmt.Errorf("answer %q: %w", answer.Data, err)
	}
	code := answer.Header.Get("Nats-Service-Error-Code")
	switch {
	case r.Error == nil && (r.Txid == 0 || code != ""):
		return r, fmt.Errorf("answer with neither txid nor error: %q, header code %q", answer.Data, code)
	case r.Error == nil:
		if _, err := time.Parse(time.RFC3339Nano, r.Time); err != nil {
			return r, fmt.Errorf("answer %q: %w", answer.Data, err)
		}
	case r.Txid != 0 || code != strconv.Itoa(r.Error.Code) || answer.Header.Get("Nats-Service-Error") == "":
		return r, fmt.Errorf("refusal and headers differ: %q, headers %v", answer.Data, answer.Header)
	}
	return r, nil
}

// read sends one read request, and returns the transactions and the end, or the
// refusal.
func (c *client) read(ctx context.Context, partition int, request map[string]any) ([]*nats.Msg, readEnd, *refusal, error) {
	return c.readFrom(ctx, "read", partition, request)
}

// readFrom reads from the leader ("read") or from any replica ("replica.read").
func (c *client) readFrom(ctx context.Context, verb string, partition int, request map[string]any) ([]*nats.Msg, readEnd, *refusal, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, readEnd{}, nil, err
	}
	return c.readRaw(ctx, fmt.Sprintf("cantus.%s.%d", verb, partition), body)
}

func (c *client) readRaw(ctx context.Context, subject string, body []byte) (got []*nats.Msg, end readEnd, refused *refusal, err error) {
	start := c.recorder.now()
	defer func() { c.recorder.read(c.name, start, subject, body, got, end, refused, err) }()
	ctx, done := c.within(ctx)
	defer done()
	inbox := nats.NewInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, end, nil, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // it fails only on a closed connection
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, end, nil, err
	}
	if err := c.nc.PublishRequest(subject, inbox, body); err != nil {
		return nil, end, nil, err
	}
	for previous := "0"; ; {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, end, nil, err
		}
		if m.Header.Get("Nats-Service-Error-Code") != "" {
			r, err := decodeReply(m)
			return nil, end, r.Error, err
		}
		if m.Header.Get("Status") == "" {
			// The digest chain belongs to the read, not to the transaction.
			if last, chain := previous, m.Header.Get("Cantus-Previous"); chain != last {
				return nil, end, nil, fmt.Errorf("txid %s follows %q: the one before it was %q", m.Header.Get("Cantus-Txid"), chain, last)
			}
			delete(m.Header, "Cantus-Previous")
			previous = m.Header.Get("Cantus-Txid")
			got = append(got, m)
			continue
		}
		end, err = decodeEnd(m)
		return got, end, nil, err
	}
}

func decodeEnd(m *nats.Msg) (readEnd, error) {
	next, err1 := strconv.ParseUint(m.Header.Get("Cantus-Next"), 10, 64)
	mark, err2 := strconv.ParseUint(m.Header.Get("Cantus-High-Water-Mark"), 10, 64)
	if m.Header.Get("Status") != "204" || len(m.Data) > 0 || err1 != nil || err2 != nil {
		return readEnd{}, fmt.Errorf("the read ends with %v %q", m.Header, m.Data)
	}
	return readEnd{next: next, highWaterMark: mark}, nil
}

// drain reads a whole partition.
func drain(tb testing.TB, c *client, partition int) []*nats.Msg {
	tb.Helper()
	var all []*nats.Msg
	for from := uint64(1); ; {
		got, end, refused, err := c.read(tb.Context(), partition, map[string]any{"from": from})
		if err != nil || refused != nil {
			tb.Fatalf("read from %d: %v %v", from, refused, err)
		}
		all = append(all, got...)
		if end.next > end.highWaterMark {
			return all
		}
		if end.next <= from {
			tb.Fatalf("a read from %d says to read on from %d, high-water mark %d", from, end.next, end.highWaterMark)
		}
		from = end.next
	}
}

func (c *client) info(ctx context.Context, partition int) (info partitionInfo, err error) {
	start := c.recorder.now()
	defer func() { c.recorder.info(c.name, start, partition, info, err) }()
	answer, err := c.request(ctx, nats.NewMsg(fmt.Sprintf("cantus.info.%d", partition)))
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(answer.Data, &info); err != nil {
		return info, fmt.Errorf("info %q: %w", answer.Data, err)
	}
	if info.Error != nil {
		return info, fmt.Errorf("info: %s", answer.Data)
	}
	return info, nil
}

func mustInfo(tb testing.TB, c *client, partition int) partitionInfo {
	tb.Helper()
	info, err := c.info(tb.Context(), partition)
	if err != nil {
		tb.Fatal(err)
	}
	return info
}

// txid returns the txid of a transaction on the feed or in a read; 0 is none.
func txid(m *nats.Msg) uint64 {
	id, err := strconv.ParseUint(m.Header.Get("Cantus-Txid"), 10, 64)
	if err != nil {
		return 0
	}
	return id
}

// service is a node or a cluster, as seen by a client that retries.
type service interface {
	// await waits until it is time for the next attempt.
	await(ctx context.Context, tries int) error
}

// await blocks until the node serves.
func (n *node) await(ctx context.Context, _ int) error {
	select {
	case <-n.serving():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retry calls do until the outcome is known, each time once the service is up
// and there is a connection. It returns the first result of do that is neither
// an unknown outcome nor a refusal to try again.
func retry(ctx context.Context, s service, c *client, do func() (reply, error)) (r reply, tries int, err error) {
	for tries = 1; ; tries++ {
		if err := s.await(ctx, tries); err != nil {
			return reply{}, tries, err
		}
		select {
		case <-c.standing():
		case <-ctx.Done():
			return reply{}, tries, context.Cause(ctx)
		}
		r, err = do()
		again := errors.Is(err, errDropped) || errors.Is(err, errNoAnswer) ||
			errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrConnectionClosed)
		if err == nil && r.Error != nil {
			again = r.Error.Reason == "busy" || r.Error.Reason == "unavailable" || r.Error.Reason == "unknown"
		}
		if !again {
			return r, tries, err
		}
	}
}

package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// ErrDropped is returned when the connection breaks during a request: it is not
// known whether the request was carried out.
var ErrDropped = errors.New("the connection broke")

// ErrNoAnswer is returned when a request is not answered within the client's
// limit: it is not known whether it was carried out.
var ErrNoAnswer = errors.New("no answer in time")

// Client is a NATS connection that reconnects forever. Its requests end with
// ErrDropped when the connection breaks.
type Client struct {
	// Conn is the connection. It is the caller's to close.
	Conn *nats.Conn
	// Limit is how long an answer may take; after that a request ends with
	// Overdue.
	Limit   time.Duration
	Overdue error
	// Recorder records requests, under a name; nil if they are not recorded.
	Recorder *Recorder
	Name     string

	mu sync.Mutex
	// session ends when the connection breaks; up is closed while there is a
	// connection.
	session    context.Context
	endSession context.CancelFunc
	up         chan struct{}
}

// DefaultLimit is the limit of a client that Dial returns: a leader that hangs
// returns no answer.
const DefaultLimit = 2 * time.Second

// Dial connects to a server. The options must not concern how the client
// reconnects. Requests end with ErrNoAnswer after DefaultLimit, and are not
// recorded; the caller may change that before the first request.
func Dial(url string, opts ...nats.Option) (*Client, error) {
	c := &Client{up: make(chan struct{}), Limit: DefaultLimit, Overdue: ErrNoAnswer}
	c.connected(nil)
	opts = append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.DisconnectErrHandler(c.disconnected), nats.ReconnectHandler(c.connected),
		// Tests have subscriptions overflow on purpose: that is not logged.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return nil, err
	}
	c.Conn = nc
	return c, nil
}

func (c *Client) connected(*nats.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.endSession = context.WithCancel(context.Background())
	close(c.up)
}

func (c *Client) disconnected(*nats.Conn, error) {
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
func (c *Client) standing() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

// within derives a context that ends with the connection, or when the answer is
// overdue.
func (c *Client) within(ctx context.Context) (context.Context, func()) {
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	ctx, release := context.WithTimeoutCause(ctx, c.Limit, c.Overdue)
	stop := context.AfterFunc(session, func() { cancel(ErrDropped) })
	return ctx, func() {
		stop()
		release()
		cancel(nil)
	}
}

// Request sends one message and returns its one answer.
func (c *Client) Request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	ctx, done := c.within(ctx)
	defer done()
	answer, err := c.Conn.RequestMsgWithContext(ctx, m)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	return answer, err
}

// Append sends one transaction to a subject. headers are keys, each followed by
// its value.
func (c *Client) Append(ctx context.Context, subject string, payload []byte, headers ...string) (Reply, error) {
	m := nats.NewMsg(subject)
	m.Data = payload
	for i := 0; i < len(headers); i += 2 {
		m.Header[headers[i]] = append(m.Header[headers[i]], headers[i+1])
	}
	return c.AppendMsg(ctx, m)
}

// AppendMsg sends one transaction, and returns the answer. A refusal is not an
// error.
func (c *Client) AppendMsg(ctx context.Context, m *nats.Msg) (r Reply, err error) {
	start := c.Recorder.Now()
	defer func() { c.Recorder.Appended(c.Name, start, m, r, err) }()
	answer, err := c.Request(ctx, m)
	if err != nil {
		return Reply{}, err
	}
	return DecodeReply(answer)
}

// Answer is the outcome of an append: Reply, unless there is an error.
type Answer struct {
	Reply
	Err error
}

// AppendAll sends transactions one after the other, without waiting for answers
// in between, and returns the outcome of each.
func (c *Client) AppendAll(ctx context.Context, msgs []*nats.Msg) []Answer {
	answers := make([]Answer, len(msgs))
	var waiting sync.WaitGroup
	for i, m := range msgs {
		a, start := &answers[i], c.Recorder.Now()
		sub, err := c.Conn.SubscribeSync(nats.NewInbox())
		if err == nil {
			sent := &nats.Msg{Subject: m.Subject, Reply: sub.Subject, Header: m.Header, Data: m.Data}
			err = c.Conn.PublishMsg(sent)
		}
		waiting.Go(func() {
			if a.Err = err; err == nil {
				a.Reply, a.Err = c.AnswerTo(ctx, sub)
			}
			if sub != nil {
				_ = sub.Unsubscribe() // the connection may be closed
			}
			c.Recorder.Appended(c.Name, start, m, a.Reply, a.Err)
		})
	}
	waiting.Wait()
	return answers
}

// Info returns the description of a partition. A refusal is an error.
func (c *Client) Info(ctx context.Context, partition int) (info PartitionInfo, err error) {
	start := c.Recorder.Now()
	defer func() { c.Recorder.info(c.Name, start, partition, info, err) }()
	answer, err := c.Request(ctx, nats.NewMsg(fmt.Sprintf("cantus.info.%d", partition)))
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

// AnswerTo waits for the answer to an append that was published with the
// subject of sub as its reply subject.
func (c *Client) AnswerTo(ctx context.Context, sub *nats.Subscription) (Reply, error) {
	ctx, done := c.within(ctx)
	defer done()
	m, err := sub.NextMsgWithContext(ctx)
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return Reply{}, context.Cause(ctx)
	case err != nil:
		return Reply{}, err
	case len(m.Data) == 0 && m.Header.Get("Status") == "503":
		return Reply{}, nats.ErrNoResponders
	}
	return DecodeReply(m)
}

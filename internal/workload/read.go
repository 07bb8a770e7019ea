package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
)

// Read sends one read request to the leader, and returns the transactions and
// the end, or the refusal. request is the body of the request.
func (c *Client) Read(ctx context.Context, partition int, request map[string]any) ([]*nats.Msg, ReadEnd, *Refusal, error) {
	return c.ReadFrom(ctx, "read", partition, request)
}

// ReadFrom is Read from the leader ("read") or from any replica
// ("replica.read").
func (c *Client) ReadFrom(ctx context.Context, verb string, partition int, request map[string]any) ([]*nats.Msg, ReadEnd, *Refusal, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, ReadEnd{}, nil, err
	}
	return c.ReadRaw(ctx, fmt.Sprintf("cantus.%s.%d", verb, partition), body)
}

// ReadRaw is Read with a subject and a body of any content.
func (c *Client) ReadRaw(ctx context.Context, subject string, body []byte) (got []*nats.Msg, end ReadEnd, refused *Refusal, err error) {
	start := c.Recorder.Now()
	defer func() { c.Recorder.read(c.Name, start, subject, body, got, end, refused, err) }()
	ctx, done := c.within(ctx)
	defer done()
	inbox := nats.NewInbox()
	sub, err := c.Conn.SubscribeSync(inbox)
	if err != nil {
		return nil, end, nil, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // it fails only on a closed connection
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, end, nil, err
	}
	if err := c.Conn.PublishRequest(subject, inbox, body); err != nil {
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
			r, err := DecodeReply(m)
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

// Drain reads a whole partition from its leader. A refusal is an error.
func (c *Client) Drain(ctx context.Context, partition int) ([]*nats.Msg, error) {
	var all []*nats.Msg
	for from := uint64(1); ; {
		got, end, refused, err := c.Read(ctx, partition, map[string]any{"from": from})
		if err == nil && refused != nil {
			err = errors.New(Reply{Error: refused}.String())
		}
		if err != nil {
			return nil, fmt.Errorf("read from %d: %w", from, err)
		}
		all = append(all, got...)
		if end.Next > end.HighWaterMark {
			return all, nil
		}
		if end.Next <= from {
			return nil, fmt.Errorf("a read from %d says to read on from %d, high-water mark %d", from, end.Next, end.HighWaterMark)
		}
		from = end.Next
	}
}

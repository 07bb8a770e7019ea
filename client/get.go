package client

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Get returns one committed transaction. It returns [ErrAhead] for a txid
// beyond the log's end and [ErrTrimmed] for one that was trimmed. It retries
// until ctx ends.
func (c *Client) Get(ctx context.Context, partition int, txid uint64) (*Transaction, error) {
	return c.get(ctx, partition, subjects.GetRequest{Txid: txid})
}

// LastWriter returns the newest transaction that recorded, as write or append
// lock, a lock that overlaps this one. It returns [ErrNotFound] if no
// transaction that is kept did. It retries until ctx ends.
func (c *Client) LastWriter(ctx context.Context, partition int, lock string) (*Transaction, error) {
	return c.get(ctx, partition, subjects.GetRequest{Lock: lock})
}

// ByID returns the newest transaction with a message id, however old it is: it
// says what became of a [Request]. It returns [ErrNotFound] if no transaction
// that is kept has the id. It retries until ctx ends.
func (c *Client) ByID(ctx context.Context, partition int, id string) (*Transaction, error) {
	return c.get(ctx, partition, subjects.GetRequest{MsgID: id})
}

// ByNumber returns the transaction with a number in a session, however old it
// is: it says what became of it. It returns [ErrNotFound] if no transaction
// that is kept is that one. It retries until ctx ends.
func (c *Client) ByNumber(ctx context.Context, partition int, session string, seq uint64) (*Transaction, error) {
	return c.get(ctx, partition, subjects.GetRequest{Session: session, SessionSeq: seq})
}

func (c *Client) get(ctx context.Context, partition int, what subjects.GetRequest) (tx *Transaction, err error) {
	body, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	err = c.call(ctx, partition, c.names.Get(partition), body, func(m *nats.Msg, _ int) (error, bool) {
		if m.Header.Get(subjects.HeaderErrorCode) == "" {
			tx, err = parseTransaction(m)
			return err, err == nil
		}
		var r subjects.Reply
		if err := json.Unmarshal(m.Data, &r); err != nil || r.Error == nil {
			return fmt.Errorf("malformed refusal: %q", m.Data), false
		}
		mark := uint64(0)
		if r.HighWaterMark != nil {
			mark = *r.HighWaterMark
		}
		return refusal(*r.Error, partition, "", mark), dispositionOf(r.Error) == final
	})
	if err != nil {
		return nil, fmt.Errorf("get from partition %d: %w", partition, err)
	}
	return tx, nil
}

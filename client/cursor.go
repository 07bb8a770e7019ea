package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Cursor is a durable position in a partition, held by the log itself: for
// consumers that have no database to keep it in.
type Cursor struct {
	c         *Client
	partition int
	name      string
}

// Position is where a cursor stands.
type Position struct {
	// Txid is the last transaction that was applied, 0 for a cursor that was
	// never set, or was removed.
	Txid uint64
	// Time is when it was set, by the leader's clock. It is different after
	// each set, also to the same Txid.
	Time time.Time
	// HighWaterMark is the partition's.
	HighWaterMark uint64
}

// CursorMismatchError is the error of a compare-and-set that found the cursor at another
// position than expected: Position tells which. errors.Is finds ErrWrongLast.
type CursorMismatchError struct {
	RefusedError
	Position Position
}

// Unwrap returns the refusal.
func (e *CursorMismatchError) Unwrap() error { return &e.RefusedError }

// Cursor names a cursor of a partition; name is one token of at most 64 bytes.
// Nothing is asked of the log yet.
func (c *Client) Cursor(partition int, name string) (*Cursor, error) {
	if partition < 0 {
		return nil, fmt.Errorf("%w: partition %d", ErrOptions, partition)
	}
	if err := subjects.CheckCursor(name); err != nil {
		return nil, fmt.Errorf("%w: cursor: %w", ErrOptions, err)
	}
	return &Cursor{c, partition, name}, nil
}

// Get tells where the cursor stands. It holds all sets that were acknowledged
// before. It asks until ctx ends.
func (k *Cursor) Get(ctx context.Context) (Position, error) { return k.call(ctx, nil) }

// Set puts the cursor to txid, wherever it stands; 0 removes it. Past the
// partition's end it is refused, as ErrAhead. It tries until ctx ends; then
// the cursor may have been set.
func (k *Cursor) Set(ctx context.Context, txid uint64) (Position, error) {
	return k.call(ctx, &subjects.CursorRequest{Txid: &txid})
}

// Move puts the cursor to txid if it stands at expected (0 is a cursor that
// does not exist), and returns *CursorMismatchError otherwise. Where a try went
// unanswered and the next finds the cursor at txid, that counts as done: of two
// that move it from the same to the same position both may hear that they did.
func (k *Cursor) Move(ctx context.Context, txid, expected uint64) (Position, error) {
	return k.call(ctx, &subjects.CursorRequest{Txid: &txid, Expected: &expected})
}

// call sends a request, nil to read, until it is answered.
func (k *Cursor) call(ctx context.Context, set *subjects.CursorRequest) (pos Position, err error) {
	var body []byte
	if set != nil {
		if body, err = json.Marshal(set); err != nil {
			return pos, err
		}
	}
	err = k.c.request(ctx, k.partition, k.c.names.Cursor(k.partition, k.name), body, func(m *nats.Msg, try int) (error, bool) {
		var r subjects.CursorReply
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return err, false
		}
		pos = Position{r.Txid, r.Time, r.HighWaterMark}
		if r.Error == nil {
			return nil, true
		}
		refused := refusal(*r.Error, k.partition, "", r.HighWaterMark)
		if r.Error.Reason != subjects.WrongLast {
			return refused, dispositionOf(r.Error) == final
		}
		if try > 1 && pos.Txid == *set.Txid {
			return nil, true
		}
		return &CursorMismatchError{*refused.(*RefusedError), pos}, true
	})
	if err != nil {
		return pos, fmt.Errorf("cursor %q of partition %d: %w", k.name, k.partition, err)
	}
	return pos, nil
}

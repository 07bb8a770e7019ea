package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Cursor is a durable position in a partition, stored in the log itself. It is
// for consumers without a database of their own.
type Cursor struct {
	c         *Client
	partition int
	name      string
}

// Position is the position of a cursor.
type Position struct {
	// Txid is the last transaction that was applied, 0 for a cursor that was
	// never set or was removed.
	Txid uint64
	// Time is when the cursor was set, by the leader's clock. Each set has a
	// different time, even to the same Txid.
	Time time.Time
	// Owner is whose the cursor is, "" for nobody's: see [Cursor.Give].
	Owner string
	// HighWaterMark is the partition's.
	HighWaterMark uint64
}

// CursorMismatchError is returned when a compare-and-set finds the cursor at
// another position than expected, or with another owner. Position is where it
// is, and whose. The error matches [ErrWrongLast] with errors.Is.
type CursorMismatchError struct {
	RefusedError
	Position Position
}

// Unwrap returns the refusal.
func (e *CursorMismatchError) Unwrap() error { return &e.RefusedError }

// Cursor returns the cursor of a partition with the given name, one token of at
// most 64 bytes. It sends no request.
func (c *Client) Cursor(partition int, name string) (*Cursor, error) {
	if partition < 0 {
		return nil, fmt.Errorf("%w: partition %d", ErrOptions, partition)
	}
	if err := subjects.CheckCursor(name); err != nil {
		return nil, fmt.Errorf("%w: cursor: %w", ErrOptions, err)
	}
	return &Cursor{c, partition, name}, nil
}

// Get returns the cursor's position, which includes every set acknowledged
// before the call. It retries until ctx ends.
func (k *Cursor) Get(ctx context.Context) (Position, error) { return k.call(ctx, nil) }

// Set sets the cursor to txid unconditionally; 0 removes it. A txid beyond the
// partition's end is refused with [ErrAhead]. Set retries until ctx ends; then
// the cursor may or may not have been set.
func (k *Cursor) Set(ctx context.Context, txid uint64) (Position, error) {
	return k.call(ctx, &subjects.CursorRequest{Txid: &txid})
}

// Move sets the cursor to txid if it is at expected (0 for a cursor that does
// not exist), and returns a [*CursorMismatchError] otherwise. If an attempt was
// not answered and the next one finds the cursor at txid, Move succeeds: of two
// concurrent moves from the same to the same position, both may succeed.
func (k *Cursor) Move(ctx context.Context, txid, expected uint64) (Position, error) {
	return k.call(ctx, &subjects.CursorRequest{Txid: &txid, Expected: &expected})
}

// Give gives the cursor to a session of its partition: from then on
// transactions of the session move it, by their [Request.Move], and those of
// the session that had it before do not. So a consumer that reads the partition
// and appends to it has its output and its position commit together.
//
// at is where the cursor is and whose, as [Cursor.Get] has returned it, also if
// it does not exist. If it is elsewhere by then, or another one's, Give returns
// a [*CursorMismatchError]. Otherwise the consumer goes on after at.Txid.
//
// The HighWaterMark that Give returns is new enough for the session's first
// transaction: at.Txid may be too far behind.
func (k *Cursor) Give(ctx context.Context, s *Session, at Position) (Position, error) {
	if s.partition != k.partition {
		return at, fmt.Errorf("%w: the cursor is of partition %d, and the session of %d", ErrOptions, k.partition, s.partition)
	}
	owner := subjects.SessionOwner(s.name)
	return k.call(ctx, &subjects.CursorRequest{Txid: &at.Txid, Expected: &at.Txid, Owner: &owner, ExpectedOwner: &at.Owner})
}

// call sends a request, nil to read the cursor, until it is answered.
func (k *Cursor) call(ctx context.Context, set *subjects.CursorRequest) (pos Position, err error) {
	var body []byte
	if set != nil {
		if body, err = json.Marshal(set); err != nil {
			return pos, err
		}
	}
	err = k.c.call(ctx, k.partition, k.c.names.Cursor(k.partition, k.name), body, func(m *nats.Msg, attempt int) (error, bool) {
		var r subjects.CursorReply
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return err, false
		}
		pos = Position{r.Txid, r.Time, r.Owner, r.HighWaterMark}
		if r.Error == nil {
			return nil, true
		}
		refused := refusedError(*r.Error, k.partition, "", r.HighWaterMark)
		if r.Error.Reason != subjects.WrongLast {
			return &refused, dispositionOf(r.Error) == final
		}
		if attempt > 1 && pos.Txid == *set.Txid && (set.Owner == nil || pos.Owner == *set.Owner) {
			return nil, true
		}
		return &CursorMismatchError{refused, pos}, true
	})
	if err != nil {
		return pos, fmt.Errorf("cursor %q of partition %d: %w", k.name, k.partition, err)
	}
	return pos, nil
}

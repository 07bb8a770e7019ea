package client_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// consume doubles the numbers from after a position up to last, and moves the
// cursor k with each, in one session. Those that it has appended itself it
// leaves out.
func consume(t testing.TB, c *client.Client, s *client.Session, after, last uint64) (futures []*client.Future) {
	t.Helper()
	for _, tx := range readAll(t, c, 0) {
		if tx.Kind != "in" || tx.Txid <= after || tx.Txid > last {
			continue
		}
		f, err := s.Append(soon(t), &client.Request{Kind: "out", Payload: tx.Payload, HighWaterMark: last, Move: subjects.Move{Cursor: "k", Txid: tx.Txid}})
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	return futures
}

// A consumer's output and its position commit together, also if another
// instance takes over from one that goes on.
func TestACursorMovesWithItsSession(t *testing.T) {
	_, c := newLog(t)
	for i := range 20 {
		mustAppend(t, c, client.Request{Kind: "in", Payload: fmt.Append(nil, i)})
	}
	k := cursor(t, c, "k")
	at, err := k.Get(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	first := c.NewSession(0)
	if at, err = k.Give(soon(t), first, at); err != nil || at.Txid != 0 || at.Owner != subjects.SessionOwner(first.Name()) {
		t.Fatalf("%+v, %v", at, err)
	}
	if again, err := k.Give(soon(t), c.NewSession(0), client.Position{}); !errors.As(err, new(*client.CursorMismatchError)) {
		t.Fatalf("a cursor was taken from a session that it was not expected to be of: %+v, %v", again, err)
	}
	waitAll(t, consume(t, c, first, at.Txid, 10))
	if at, err = k.Get(soon(t)); err != nil || at.Txid != 10 {
		t.Fatalf("%+v, %v", at, err)
	}

	second := c.NewSession(0)
	if at, err = k.Give(soon(t), second, at); err != nil || at.Txid != 10 {
		t.Fatalf("%+v, %v", at, err)
	}
	for i, f := range consume(t, c, first, 10, 15) { // it does not know yet
		_, err := f.Wait(soon(t))
		if !errors.Is(err, client.ErrWrongLast) || (i > 0) != errors.Is(err, client.ErrSessionEnded) {
			t.Fatalf("transaction %d of the session that has lost its cursor: %v", i, err)
		}
	}
	waitAll(t, consume(t, c, second, at.Txid, 20))
	next := 0
	for _, tx := range readAll(t, c, 0) {
		if tx.Kind != "out" {
			continue
		}
		if string(tx.Payload) != fmt.Sprint(next) || tx.Move != (subjects.Move{Cursor: "k", Txid: uint64(next) + 1}) {
			t.Fatalf("txid %d has %s and moves the cursor %v, where %d was next", tx.Txid, tx.Payload, tx.Move, next)
		}
		next++
	}
	if next != 20 {
		t.Errorf("there are %d of 20 outputs", next)
	}
	if one, err := c.Get(soon(t), 0, 21); err != nil || one.Move != (subjects.Move{Cursor: "k", Txid: 1}) {
		t.Errorf("%+v, %v", one, err)
	}
}

// What can't move a cursor is refused before it is sent.
func TestMovesThatCanNotBe(t *testing.T) {
	_, c := newLog(t)
	s, k := c.NewSession(1), cursor(t, c, "k")
	_, err := k.Give(soon(t), s, client.Position{})
	wantErr(t, err, client.ErrOptions)
	move := subjects.Move{Cursor: "k", Txid: 1}
	_, err = c.Append(soon(t), &client.Request{Move: move})
	wantErr(t, err, client.ErrBadRequest)
	_, err = c.AppendAtomic(soon(t), &client.AtomicBatch{Transactions: []*client.Request{{Move: move}}})
	wantErr(t, err, client.ErrBadRequest)
	for _, move := range []subjects.Move{{Cursor: "k"}, {Txid: 1}, {Cursor: "a.b", Txid: 1}, {Cursor: "a\r\nb", Txid: 1}} {
		if _, err := s.Append(soon(t), &client.Request{Move: move}); err == nil {
			t.Errorf("%+v was accepted", move)
		}
	}
}

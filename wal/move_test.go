package wal

import (
	"bytes"
	"errors"
	"testing"
)

func TestRecordsThatMoveCursors(t *testing.T) {
	all := []Transaction{
		{Kind: []byte("k"), Session: []byte("s"), SessionSeq: 1, Cursor: []byte("c"), CursorTxid: 300, Payload: []byte("p")},
		{Kind: []byte("k"), Session: []byte("s"), SessionSeq: 2, Payload: []byte("p")},
		{Kind: []byte("k"), Session: []byte("s"), SessionSeq: 3, Cursor: []byte("c"), CursorTxid: 1 << 63, Atomic: Atomic{0, 2, 7}},
		{Kind: []byte("k"), Session: []byte("s"), SessionSeq: 3, Atomic: Atomic{1, 2, 0}, Header: []byte("A: b\r\n")},
		{Kind: []byte("k"), MsgID: []byte("id"), Payload: []byte("p")},
	}
	var w BatchWriter
	w.BeginIn(3, 100, 1, 0)
	for i := range all {
		w.Add(&all[i])
	}
	b, err := ParseBatch(w.Finish())
	if err != nil {
		t.Fatal(err)
	}
	r := b.Read()
	got := Transaction{Cursor: []byte("of the one before"), CursorTxid: 9}
	for i := range all {
		if !r.Next(&got) {
			t.Fatal(r.Err())
		}
		if want := &all[i]; !bytes.Equal(got.Cursor, want.Cursor) || got.CursorTxid != want.CursorTxid || got.SessionSeq != want.SessionSeq ||
			got.Atomic != want.Atomic || !bytes.Equal(got.Payload, want.Payload) || !bytes.Equal(got.Header, want.Header) {
			t.Errorf("record %d: %+v, want %+v", i, got, want)
		}
	}
	if r.Next(&got) || r.Err() != nil {
		t.Error(r.Err())
	}
}

func TestCursorsThatAreKept(t *testing.T) {
	var w BatchWriter
	w.Begin(CursorWrites, 9, 1, 0)
	all := []Cursor{{Name: []byte("c"), Owner: []byte("o"), Kept: true}, {Name: []byte("c"), Owner: []byte("o"), HasExpectedOwner: true, ExpectedOwner: []byte("p")}}
	for _, c := range all {
		w.AddCursor(c)
	}
	b, err := ParseBatch(w.Finish())
	if err != nil {
		t.Fatal(err)
	}
	r := b.Read()
	for i, want := range all {
		var got Cursor
		if !r.NextCursor(&got) || got.Kept != want.Kept || !bytes.Equal(got.Owner, want.Owner) || !bytes.Equal(got.ExpectedOwner, want.ExpectedOwner) {
			t.Errorf("cursor %d is %+v, want %+v: %v", i, got, want, r.Err())
		}
	}
}

// A cursor moves only in a session, has a name, and goes somewhere.
func TestMalformedMoves(t *testing.T) {
	for _, tx := range []Transaction{
		{Cursor: []byte("c"), CursorTxid: 1},
		{Cursor: []byte("c"), CursorTxid: 1, MsgID: []byte("id")},
		{Cursor: []byte("c"), Session: []byte("s"), SessionSeq: 1},
	} {
		var w BatchWriter
		w.BeginIn(3, 100, 1, 0)
		w.Add(&tx)
		b, err := ParseBatch(w.Finish())
		if err != nil {
			t.Fatal(err)
		}
		if r := b.Read(); r.Next(new(Transaction)) || !errors.Is(r.Err(), ErrBatch) {
			t.Errorf("%+v: %v", tx, r.Err())
		}
	}
}

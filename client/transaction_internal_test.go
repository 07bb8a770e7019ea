package client

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// A packed transaction is parsed to the same value as a message of its own.
func TestPackedTransactionsAreLikeOthers(t *testing.T) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 1, time.UTC)
	block := func(fields ...string) []byte {
		if len(fields) == 0 {
			return nil
		}
		b := subjects.AppendBlockStart(nil)
		for i := 0; i < len(fields); i += 2 {
			b = subjects.AppendField(b, fields[i], fields[i+1])
		}
		return subjects.AppendBlockEnd(b)
	}
	var message []byte
	var want []Transaction
	for txid, fields := range map[uint64][]string{
		1: {},
		2: {
			subjects.HeaderKind, "pay", subjects.HeaderHighWaterMark, "1", subjects.HeaderStoredMsgID, "id",
			subjects.HeaderWriteLock, "a", subjects.HeaderReadLock, "b", subjects.HeaderWriteLock, "c.>",
			subjects.HeaderAppendLock, "d", "X-App", "one", "x-app", "", "X-App", "two",
		},
		3: {subjects.HeaderWriteLock, "a"},
		4: {subjects.HeaderAppendLock, "b", subjects.HeaderAppendLock, "c"},
		6: {subjects.HeaderSession, "s1", subjects.HeaderSessionSeq, "7", subjects.HeaderHighWaterMark, "0"},
		5: {subjects.HeaderWriteLock, "e,f.>,g", subjects.HeaderAppendLock, "h,i", subjects.HeaderAppendLock, "j"},
	} {
		payload := bytes.Repeat([]byte{byte(txid)}, int(txid)-1)
		message = subjects.AppendPacked(message, subjects.Packed{Txid: txid, Time: at.UnixNano(), Header: block(fields...), Payload: payload})
		m := nats.NewMsg("inbox")
		m.Data = payload
		m.Header.Set(subjects.HeaderTxid, string('0'+rune(txid)))
		m.Header.Set(subjects.HeaderPartition, "7")
		m.Header.Set(subjects.HeaderTime, at.Format(time.RFC3339Nano))
		m.Header.Set(subjects.HeaderKind, subjects.DefaultKind)
		for i := 0; i < len(fields); i += 2 {
			if fields[i] == subjects.HeaderKind {
				m.Header.Del(subjects.HeaderKind)
			}
			m.Header[fields[i]] = append(m.Header[fields[i]], fields[i+1])
		}
		one, err := parseTransaction(m)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, *one)
	}
	got, err := parsePacked(7, message)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if w, a := want[slices.IndexFunc(want, func(t Transaction) bool { return t.Txid == 5 })].WriteLocks, []string{"e", "f.>", "g"}; !slices.Equal(w, a) {
		t.Errorf("a list of locks is read as %q, want %q", w, a)
	}
	if len(got) == 6 { // appending to one list of names does not change others
		for i := range got {
			got[i].WriteLocks, got[i].AppendLocks = append(got[i].WriteLocks, "grown"), append(got[i].AppendLocks, "grown")
		}
		for i := range got {
			if w := got[i].WriteLocks; !reflect.DeepEqual(w[:len(w)-1], append([]string{}, want[i].WriteLocks...)) {
				t.Errorf("%d has the write locks %q, want %q", got[i].Txid, w, want[i].WriteLocks)
			}
		}
	}
	for what, broken := range map[string][]byte{
		"cut off":           message[:len(message)-1],
		"a mark of letters": subjects.AppendPacked(nil, subjects.Packed{Txid: 1, Header: block(subjects.HeaderHighWaterMark, "x")}),
		"a number of words": subjects.AppendPacked(nil, subjects.Packed{Txid: 1, Header: block(subjects.HeaderSession, "s", subjects.HeaderSessionSeq, "one")}),
		"no header block":   subjects.AppendPacked(nil, subjects.Packed{Txid: 1, Header: []byte("GET /")}),
	} {
		if txs, err := parsePacked(7, broken); !errors.Is(err, errNotTransaction) || txs != nil {
			t.Errorf("%s: %d transactions, %v", what, len(txs), err)
		}
	}
}

package broker

import (
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// oneAtomicBatch makes a batch of one atomic batch.
func oneAtomicBatch(size, count uint32, id string, fingerprint uint64) []byte {
	var w wal.BatchWriter
	w.Begin(wal.Transactions, 1, 1, 0)
	for i := range count {
		t := wal.Transaction{Kind: []byte("k"), Payload: []byte{byte(i)}, Atomic: wal.Atomic{Index: i, Size: size}}
		if i == 0 && id != "" {
			t.MsgID, t.Atomic.Fingerprint = []byte(id), fingerprint
		}
		w.Add(&t)
	}
	return w.Finish()
}

// What is restored must be what a leader could have written.
func TestRestoredAtomicBatchesAreChecked(t *testing.T) {
	payloads := func(yield func([]byte) bool) { _ = yield([]byte{0}) && yield([]byte{1}) && yield([]byte{2}) }
	right := wal.PayloadsHash(payloads)
	for _, c := range []struct {
		data []byte
		text string // "" if it is right
	}{
		{oneAtomicBatch(3, 3, "", 0), ""},
		{oneAtomicBatch(3, 3, "id", right), ""},
		{oneAtomicBatch(3, 3, "id", right+1), "the fingerprint of the atomic batch 1-3 is not that of its payloads"},
		{oneAtomicBatch(3, 2, "", 0), "out of place in its atomic batch"},
		{oneAtomicBatch(subjects.MaxBatch, subjects.MaxBatch, "", 0), ""},
		{oneAtomicBatch(subjects.MaxBatch+1, subjects.MaxBatch+1, "", 0), "it has at most 5000 transactions"},
	} {
		_, _, err := checkRestored(c.data, wal.Base{}, 0)
		if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v, want %q", err, c.text)
		}
	}
	plain := fuzzBatch(1, 1, "a")
	var w wal.BatchWriter
	w.BeginIn(1, 1, 1, 0)
	w.Add(&wal.Transaction{Kind: []byte("k"), Session: []byte("s"), SessionSeq: 1})
	session, moves := w.Finish(), oneMove("c", wal.Atomic{})
	for want, batches := range [][][]byte{{plain}, {plain, oneAtomicBatch(3, 3, "", 0)}, {session, plain, oneAtomicBatch(3, 3, "", 0)}, {session, moves, plain}} {
		if got := recordsOf(batches); got != want {
			t.Errorf("records of version %d, want %d", got, want)
		}
	}
}

// oneMove makes a batch of a transaction that moves a cursor, or two if it is
// to be in an atomic batch.
func oneMove(cursor string, in wal.Atomic) []byte {
	var w wal.BatchWriter
	w.BeginIn(1, 1, 1, 0)
	for i := range max(in.Size, 1) {
		t := wal.Transaction{Kind: []byte("k"), Session: []byte("s"), SessionSeq: 1}
		if t.Atomic.Size = in.Size; in.Size > 0 {
			t.Atomic.Index = i
		}
		if i == in.Index {
			t.Cursor, t.CursorTxid = []byte(cursor), 1
		}
		if in.Size > 0 && i == 0 {
			t.Atomic.Fingerprint = wal.PayloadsHash(slices.Values(make([][]byte, in.Size)))
		}
		w.Add(&t)
	}
	return w.Finish()
}

func TestRestoredMovesAreChecked(t *testing.T) {
	for _, c := range []struct {
		data []byte
		text string // "" if it is right
	}{
		{oneMove("c", wal.Atomic{}), ""},
		{oneMove("c", wal.Atomic{Size: 2}), ""},
		{oneMove("c", wal.Atomic{Size: 2, Index: 1}), `cursor "c" is not on the first transaction of its atomic batch`},
		{oneMove("a.b", wal.Atomic{}), `cursor name "a.b"`},
	} {
		_, _, err := checkRestored(c.data, wal.Base{}, 0)
		if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v, want %q", err, c.text)
		}
	}
}

// A leader that was replaced knows neither the log's end nor the message ids of
// what another one has committed since.
func TestWhatOnlyALeaderKnowsIsConfirmed(t *testing.T) {
	for _, reason := range []subjects.Reason{subjects.Ahead, subjects.Expired} {
		p := &responder{confirmLeader: func() bool { return false }}
		b := &batch{decided: []earlyOutcome{{r: &request{}, outcome: outcome{err: subjects.Errorf(reason, "x")}}}}
		if p.verify(b, 5); b.decided[0].outcome.err.Reason != subjects.Unavailable {
			t.Errorf("%s is answered as %s", reason, b.decided[0].outcome.err.Reason)
		}
	}
	p := &responder{confirmLeader: func() bool { return false }}
	number := &request{cert: lockmgr.Transaction{SessionSeq: 3}}
	b := &batch{decided: []earlyOutcome{{r: number, outcome: outcome{err: subjects.Errorf(subjects.WrongLast, "x")}}}}
	if p.verify(b, 5); b.decided[0].outcome.err.Reason != subjects.Unavailable {
		t.Errorf("a wrong number is answered as %s", b.decided[0].outcome.err.Reason)
	}
}

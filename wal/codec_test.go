package wal_test

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// chance returns a source of randomness. A failing test logs its seed.
func chance(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

func randomBytes(r *rand.Rand, most int) []byte {
	b := make([]byte, r.IntN(most+1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func randomTransaction(r *rand.Rand) wal.Transaction {
	t := wal.Transaction{
		Kind: randomBytes(r, 9), Header: randomBytes(r, 40), Payload: randomBytes(r, 300),
		HasHighWaterMark: r.IntN(2) == 0,
	}
	if t.HasHighWaterMark {
		t.HighWaterMark = r.Uint64() >> r.IntN(64)
	}
	if id := randomBytes(r, 128); len(id) > 0 && r.IntN(2) == 0 {
		t.MsgID = id
	}
	for range r.IntN(5) {
		t.Locks = append(t.Locks, wal.Lock{Mode: wal.LockMode(r.IntN(3)), Name: randomBytes(r, 200)})
	}
	return t
}

// plain returns t with nil for each empty slice.
func plain(t wal.Transaction) wal.Transaction {
	for _, b := range []*[]byte{&t.Kind, &t.MsgID, &t.Header, &t.Payload} {
		*b = append([]byte{}, *b...)
	}
	t.Locks = append([]wal.Lock{}, t.Locks...)
	for i := range t.Locks {
		t.Locks[i].Name = append([]byte{}, t.Locks[i].Name...)
	}
	return t
}

func randomBatch(r *rand.Rand, n int) ([]byte, []wal.Transaction) {
	first, at := 1+r.Uint64()>>uint(1+r.IntN(62)), int64(r.Uint64()>>2)
	var w wal.BatchWriter
	if r.IntN(2) == 0 {
		w.Begin(wal.Transactions, first, at, r.IntN(4096))
	} else {
		w.BeginIn(r.Uint64(), first, at, r.IntN(4096))
	}
	var want []wal.Transaction
	for i := range n {
		t := randomTransaction(r)
		w.Add(&t)
		t.Txid, t.Time = first+uint64(i), at+int64(i)
		want = append(want, plain(t))
	}
	if w.Count() != n {
		panic("batch writer miscounts")
	}
	size := w.Size()
	b := w.Finish()
	if len(b) != size+4 {
		panic("batch writer mismeasures")
	}
	return b, want
}

func TestBatchComesBackAsItWasWritten(t *testing.T) {
	r := chance(t)
	for range 300 {
		b, want := randomBatch(r, r.IntN(12))
		batch, err := wal.ParseBatch(b)
		if err != nil {
			t.Fatal(err)
		}
		if batch.Count != len(want) || len(want) > 0 && (batch.First != want[0].Txid || batch.Last() != want[len(want)-1].Txid) {
			t.Fatalf("header %+v for %d transactions", batch, len(want))
		}
		skip := r.IntN(len(want) + 1)
		reader := batch.Read()
		reader.Skip(skip)
		var got wal.Transaction
		for _, w := range want[skip:] {
			if !reader.Next(&got) {
				t.Fatalf("batch ends early: %v", reader.Err())
			}
			if !reflect.DeepEqual(plain(got), w) {
				t.Fatalf("got %+v, want %+v", got, w)
			}
		}
		if reader.Next(&got) || reader.Err() != nil {
			t.Fatalf("batch does not end: %v", reader.Err())
		}
	}
}

func TestCursorsComeBackAsTheyWereWritten(t *testing.T) {
	r := chance(t)
	for range 100 {
		var w wal.BatchWriter
		w.Begin(wal.CursorWrites, 7, 9, 0)
		var want []wal.Cursor
		for range r.IntN(6) {
			c := wal.Cursor{Name: randomBytes(r, 64), Txid: r.Uint64(), Owner: randomBytes(r, 64)}
			if c.HasExpected = r.IntN(2) == 0; c.HasExpected {
				c.Expected = r.Uint64()
			}
			if c.HasExpectedOwner = r.IntN(2) == 0; c.HasExpectedOwner {
				c.ExpectedOwner = randomBytes(r, 64)
			}
			w.AddCursor(c)
			want = append(want, c)
		}
		batch, err := wal.ParseBatch(w.Finish())
		if err != nil {
			t.Fatal(err)
		}
		if batch.Last() != 7 {
			t.Fatalf("a batch of cursors moves the last txid to %d", batch.Last())
		}
		reader := batch.Read()
		var got wal.Cursor
		for _, w := range want {
			if !reader.NextCursor(&got) || !bytes.Equal(got.Name, w.Name) || got.Txid != w.Txid || !bytes.Equal(got.Owner, w.Owner) ||
				got.HasExpected != w.HasExpected || got.Expected != w.Expected ||
				got.HasExpectedOwner != w.HasExpectedOwner || !bytes.Equal(got.ExpectedOwner, w.ExpectedOwner) {
				t.Fatalf("got %+v, want %+v: %v", got, w, reader.Err())
			}
		}
		if reader.NextCursor(&got) || reader.Err() != nil {
			t.Fatalf("batch does not end: %v", reader.Err())
		}
	}
}

func TestEveryFlippedBitOfABatchIsRefused(t *testing.T) {
	b, _ := randomBatch(chance(t), 3)
	forEachFlip(b, func(bit int) {
		if _, err := wal.ParseBatch(b); !errors.Is(err, wal.ErrBatch) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	})
	for n := range b {
		if _, err := wal.ParseBatch(b[:n]); !errors.Is(err, wal.ErrBatch) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestEveryFlippedBitOfAnEntryIsRefused(t *testing.T) {
	data, _ := randomBatch(chance(t), 2)
	e := wal.Entry{Index: 5, Term: 3, AppendedAt: 11, Extensions: []byte("x"), Data: data}
	b := e.Encode(2, 3)
	forEachFlip(b, func(bit int) {
		if _, err := wal.DecodeEntry(2, 5, 3, b); !errors.Is(err, wal.ErrDamaged) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	})
	for n := range b {
		if _, err := wal.DecodeEntry(2, 5, 3, b[:n]); !errors.Is(err, wal.ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	for _, other := range []struct {
		group uint32
		index uint64
		epoch uint64
	}{{1, 5, 3}, {2, 4, 3}, {2, 6, 3}, {2, 5, 2}} {
		if _, err := wal.DecodeEntry(other.group, other.index, other.epoch, b); !errors.Is(err, wal.ErrDamaged) {
			t.Fatalf("taken for entry %d of group %d in epoch %d: %v", other.index, other.group, other.epoch, err)
		}
	}
}

func TestEveryFlippedBitOfAChecksummedFileIsRefused(t *testing.T) {
	want := wal.Identity{Format: 1, Cluster: "c", ID: "abc", Node: "n1", Partitions: 4}
	b, err := wal.EncodeChecksummed(want)
	if err != nil {
		t.Fatal(err)
	}
	var got wal.Identity
	if err := wal.DecodeChecksummed(b, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	forEachFlip(b, func(bit int) {
		if err := wal.DecodeChecksummed(b, &got); !errors.Is(err, wal.ErrDamaged) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	})
}

// forEachFlip calls check with each bit of b flipped in turn.
func forEachFlip(b []byte, check func(bit int)) {
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		check(bit)
		b[bit/8] ^= 1 << (bit % 8)
	}
}

func TestTransactionBatchWithImpossibleTxidsIsRefused(t *testing.T) {
	for _, first := range []uint64{0, math.MaxUint64, math.MaxUint64 - 1} {
		var w wal.BatchWriter
		w.Begin(wal.Transactions, first, 0, 0)
		w.Add(&wal.Transaction{})
		w.Add(&wal.Transaction{})
		if _, err := wal.ParseBatch(w.Finish()); !errors.Is(err, wal.ErrBatch) {
			t.Errorf("two transactions from txid %d on: %v", first, err)
		}
	}
}

// setChecksum sets b's checksum, so that a fuzzer reaches the code after its
// check.
func setChecksum(b []byte) []byte {
	if len(b) < 4 {
		return b
	}
	return append(b[:len(b)-4:len(b)-4], wal.Checksum(b[:len(b)-4])...)
}

// bounded fails the test if fn allocates much more than n bytes of input
// warrant.
func bounded(t *testing.T, n int, fn func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(64*n+64<<10); got > most {
		t.Fatalf("%d bytes allocated for %d bytes of input", got, n)
	}
}

func FuzzParseBatch(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for n := range 4 {
		b, _ := randomBatch(r, n)
		f.Add(b)
	}
	var w wal.BatchWriter
	w.Begin(wal.CursorWrites, 7, 9, 0)
	w.AddCursor(wal.Cursor{Name: []byte("c"), Txid: 3})
	w.AddCursor(wal.Cursor{Name: []byte("c"), Txid: 4, Owner: []byte("b"), ExpectedOwner: []byte("a"), HasExpectedOwner: true})
	f.Add(w.Finish())
	w.BeginIn(5, 7, 9, 0)
	w.Add(&wal.Transaction{Payload: []byte("p")})
	f.Add(w.Finish())
	f.Add(restores(6, restoreSteps...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = wal.ParseBatch(b)
		batch, err := wal.ParseBatch(setChecksum(b))
		if err != nil {
			if !errors.Is(err, wal.ErrBatch) {
				t.Fatal(err)
			}
			return
		}
		bounded(t, len(b), func() { readAll(t, batch) })
	})
}

// readAll reads every record, and writes the batch again: that must read the
// same.
func readAll(t *testing.T, batch wal.Batch) {
	var w wal.BatchWriter
	if w.Begin(batch.Kind, batch.First, batch.Time, 0); batch.Term != 0 {
		w.BeginIn(batch.Term, batch.First, batch.Time, 0)
	}
	r := batch.Read()
	n := 0
	var tx wal.Transaction
	var c wal.Cursor
	var step wal.RestoreStep
	for {
		if batch.Kind == wal.Restores {
			if !r.NextRestore(&step) {
				break
			}
			w.AddRestore(step)
		} else if batch.Kind == wal.Transactions && r.Next(&tx) {
			w.Add(&tx)
		} else if batch.Kind != wal.Transactions && r.NextCursor(&c) {
			w.AddCursor(c)
		} else {
			break
		}
		n++
	}
	if err := r.Err(); err != nil {
		if !errors.Is(err, wal.ErrBatch) {
			t.Fatal(err)
		}
		return
	}
	if n != batch.Count {
		t.Fatalf("%d records read of %d", n, batch.Count)
	}
	again, err := wal.ParseBatch(w.Finish())
	if err != nil || again.Count != batch.Count || again.First != batch.First || again.Term != batch.Term || again.Last() != batch.Last() {
		t.Fatalf("written anew: %+v, %v", again, err)
	}
	a, b := batch.Read(), again.Read()
	for sa, sb := (wal.RestoreStep{}), (wal.RestoreStep{}); batch.Kind == wal.Restores && a.NextRestore(&sa); {
		if !b.NextRestore(&sb) || !reflect.DeepEqual(sa, sb) {
			t.Fatalf("written anew: %+v, was %+v", sb, sa)
		}
	}
	var ta, tb wal.Transaction
	for batch.Kind == wal.Transactions && a.Next(&ta) {
		if !b.Next(&tb) || !reflect.DeepEqual(plain(ta), plain(tb)) {
			t.Fatalf("written anew: %+v, was %+v", tb, ta)
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	e := wal.Entry{Index: 5, Term: 3, AppendedAt: 11, Extensions: []byte("x"), Data: []byte("data")}
	f.Add(e.Encode(2, 3))
	e = wal.Entry{Index: 5, Type: 1}
	f.Add(e.Encode(2, 3))
	e = wal.Entry{Index: 5, Term: 3, Extensions: []byte(wal.RestoredMark), Data: []byte("data")}
	f.Add(e.Encode(2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 4 {
			b = append(b[:len(b)-4:len(b)-4], wal.EntryChecksum(2, 5, 3, b[:len(b)-4])...)
		}
		e, err := wal.DecodeEntry(2, 5, 3, b)
		if err != nil {
			if !errors.Is(err, wal.ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		again, err := wal.DecodeEntry(2, 5, 3, e.Encode(2, 3))
		if err != nil || !reflect.DeepEqual(e, again) {
			t.Fatalf("written anew: %+v, was %+v: %v", again, e, err)
		}
	})
}

func FuzzDecodeChecksummed(f *testing.F) {
	for _, v := range []any{
		wal.Identity{Format: 1, Cluster: "c", ID: "abc", Node: "n1", Partitions: 4},
		wal.CheckpointFile{Seq: 3},
	} {
		b, err := wal.EncodeChecksummed(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 9 {
			b = append(b[:len(b)-9:len(b)-9], wal.ChecksumLine(b[:len(b)-9])...)
		}
		var id wal.Identity
		if err := wal.DecodeChecksummed(b, &id); err == nil {
			again, err := wal.EncodeChecksummed(id)
			var back wal.Identity
			if err == nil {
				err = wal.DecodeChecksummed(again, &back)
			}
			if err != nil || !back.Founded.Equal(id.Founded) || back.ID != id.ID || back.Partitions != id.Partitions {
				t.Fatalf("encoded again: %+v, was %+v: %v", back, id, err)
			}
		} else if !errors.Is(err, wal.ErrDamaged) {
			t.Fatal(err)
		}
		var ck wal.CheckpointFile
		if err := wal.DecodeChecksummed(b, &ck); err != nil && !errors.Is(err, wal.ErrDamaged) {
			t.Fatal(err)
		}
	})
}

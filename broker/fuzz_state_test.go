package broker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// emptyLog returns an empty log, in a store whose journal is in memory.
func emptyLog(t testing.TB) *wal.Log {
	t.Helper()
	s, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}, FS: journaltest.New(1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Log(0)
}

// fuzzLog returns a log with two batches of transactions.
func fuzzLog(f *testing.F) *wal.Log {
	f.Helper()
	log := emptyLog(f)
	for index, data := range [][]byte{fuzzBatch(1, 1, "a"), fuzzBatch(1, 2, "b")} {
		if err := log.Append(wal.Entry{Index: uint64(index) + 1, Term: 1, Data: data}); err != nil {
			f.Fatal(err)
		}
	}
	return log
}

// fuzzBatch returns a batch of one transaction.
func fuzzBatch(term, txid uint64, lock string) []byte {
	var w wal.BatchWriter
	w.BeginIn(term, txid, int64(1000*txid), 0)
	w.Add(&wal.Transaction{Kind: defaultKind, MsgID: []byte(lock), Payload: []byte("p"), Locks: []wal.Lock{{Mode: wal.WriteLock, Name: []byte(lock)}}})
	return w.Finish()
}

// FuzzApply applies an entry that a leader made up. The replica applies it,
// voids it, or says that it can't, which stops the node; the high-water mark
// and the chain of digests move by what was applied, and by nothing else.
func FuzzApply(f *testing.F) {
	f.Add(fuzzBatch(1, 3, "c"), false)
	f.Add(fuzzBatch(1, 7, "c"), false)
	f.Add(fuzzBatch(9, 3, "c"), false)
	for _, kind := range []wal.BatchKind{wal.CursorWrites, wal.Trims, wal.Commands, wal.Restores, 77} {
		var w wal.BatchWriter
		w.Begin(kind, 2, 5000, 0)
		if kind == wal.CursorWrites {
			w.AddCursor(wal.Cursor{Name: []byte("k"), Txid: 2})
			w.AddCursor(wal.Cursor{Name: []byte("k"), Txid: 1, Owner: []byte("a"), HasExpectedOwner: true})
		} else {
			w.AddRaw(trimRecord(trimPoint{Base: wal.Base{Txid: 1}, index: 1}))
		}
		f.Add(w.Finish(), false)
	}
	f.Add([]byte{}, true)
	log := fuzzLog(f)
	f.Fuzz(func(t *testing.T, data []byte, asItIs bool) {
		var damage error
		r := newPartitionState(log, testStateOptions, time.Now, func(err error) { damage = err }, &digests{})
		r.Apply([]raftstore.Committed{{Index: 1, Term: 1, Data: fuzzBatch(1, 1, "a")}, {Index: 2, Term: 1, Data: fuzzBatch(1, 2, "b")}})
		if damage != nil || r.mark.Load() != 2 {
			t.Fatal(damage)
		}
		if !asItIs && len(data) >= 4 {
			body := data[: len(data)-4 : len(data)-4]
			data = binary.LittleEndian.AppendUint32(body, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
		}
		digest := r.digest
		a, ok := r.Apply([]raftstore.Committed{{Index: 3, Term: 1, Data: data}})[0].(applied)
		b, err := wal.ParseBatch(data)
		switch {
		case !ok || a.failed != (damage != nil):
			t.Fatalf("%+v, %v", a, damage)
		case damage != nil && !errors.Is(damage, wal.ErrDamaged) && !errors.Is(damage, wal.ErrFormat) && !errors.Is(damage, wal.ErrBatch):
			t.Fatal(damage)
		case err != nil && !a.failed:
			t.Fatalf("%v, yet it was applied", err)
		}
		want := uint64(2)
		if err == nil && b.Kind == wal.Transactions && !a.void && !a.failed {
			want += uint64(b.Count)
		}
		if got := r.mark.Load(); !a.failed && got != want {
			t.Fatalf("the mark is %d, want %d: %+v", got, want, a)
		}
		if a.void && r.digest != digest {
			t.Fatal("a void batch is in the chain")
		}
		r.Snapshot()
	})
}

// FuzzRestore restores a replica from the state and the metadata of a snapshot:
// what is in the data directory, or what a replica has sent whose log was
// fetched.
func FuzzRestore(f *testing.F) {
	log := fuzzLog(f)
	r := newPartitionState(log, testStateOptions, time.Now, func(error) {}, &digests{})
	r.Apply([]raftstore.Committed{{Index: 1, Term: 1, Data: fuzzBatch(1, 1, "a")}, {Index: 2, Term: 1, Data: fuzzBatch(1, 2, "b")}})
	f.Add(r.Snapshot().State, "cursor/a", make([]byte, 16))
	f.Add([]byte(`{"digest":""}`), metaPoint+"0000000000000001", make([]byte, pointSize))
	f.Add([]byte(`{"index":18446744073709551615,"txid":18446744073709551615,"first":1,"digest":"`+strings.Repeat("A", 43)+`="}`), metaBase, make([]byte, 40))
	f.Add([]byte(`null`), metaPoint+"zz", []byte{})
	f.Fuzz(func(t *testing.T, state []byte, name string, value []byte) {
		switch name = strings.ToValidUTF8(name, "?"); {
		case strings.HasPrefix(name, metaCursor), strings.HasPrefix(name, metaPoint), name == metaBase:
		default:
			name = metaCursor + name
		}
		if err := log.SetMeta(wal.Meta{Name: name, Value: append([]byte{}, value...)}); err != nil {
			t.Fatal(err)
		}
		r := newPartitionState(log, testStateOptions, time.Now, func(error) {}, &digests{})
		err := r.Restore(state)
		if err != nil && !errors.Is(err, wal.ErrDamaged) && !errors.Is(err, wal.ErrNotFound) {
			t.Errorf("%v", err)
		}
		if err == nil {
			r.Snapshot()
			_, _, _ = r.lastPointThat(func(p trimPoint) bool { return p.Txid < 2 })
		}
		if err := log.SetMeta(wal.Meta{Name: name}); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzCommand applies a command to the facts, as it is in the log. It takes
// effect whole or not at all, and leaves facts that a snapshot keeps.
func FuzzCommand(f *testing.F) {
	for _, c := range []cluster.Command{
		{Kind: cluster.AddNode, Node: "n4", Member: cluster.Member{ID: "id4"}}, {Kind: cluster.RemoveNode, Node: "n1"},
		{Kind: cluster.Place, Placement: map[int][]string{0: {"n2", "n1"}}}, {Kind: cluster.Place, Placement: map[int][]string{-1: nil, 9: {"n1"}}},
		{Kind: cluster.NoteStart, Node: "n1", Member: cluster.Member{ID: "id1"}, Start: cluster.Start{Number: 3, Nonce: "x"}},
	} {
		f.Add(mustJSON(c))
	}
	f.Add([]byte(`{"kind":"set","node":"n2","member":{"standby":true},"placement":{"0":["n2"]}}`))
	f.Fuzz(func(t *testing.T, record []byte) {
		m := &meta{identity: fuzzIdentity(t), changed: make(chan struct{})}
		m.facts = cluster.Bootstrap(map[string]string{"n1": "id1", "n2": "id2", "n3": "id3"}, 2, 3)
		m.fail = func(error) {}
		before := mustJSON(m.facts)
		var w wal.BatchWriter
		w.Begin(wal.Commands, 0, 1, 0)
		w.AddRaw(record)
		err, _ := m.Apply([]raftstore.Committed{{Index: 1, Term: 1, Data: w.Finish()}})[0].(error)
		after := mustJSON(m.facts)
		if err != nil && string(before) != string(after) {
			t.Fatalf("%v, yet the facts changed: %s", err, after)
		}
		var again metaSnapshot
		if err := json.Unmarshal(m.Snapshot().State, &again); err != nil || string(mustJSON(again.Facts)) != string(after) {
			t.Fatalf("%s became %+v, %v", after, again.Facts, err)
		}
		for p, names := range m.facts.Placement { // what every node reads of them
			if len(names) == 0 || fmt.Sprint(m.facts.Voters(p)) != fmt.Sprint(names) {
				t.Fatalf("partition %d is on %v", p, names)
			}
			m.facts.Followers(p)
		}
		m.facts.MetaVoters()
		if _, uneven := m.facts.Balance(); uneven && len(m.facts.Nodes) == 0 {
			t.Fatal("replicas on no node")
		}
	})
}

// FuzzFacts restores the facts from a snapshot, which this node or another one
// has stored, and changes them.
func FuzzFacts(f *testing.F) {
	good := cluster.Bootstrap(map[string]string{"n1": "id1", "n2": "id2"}, 2, 2)
	f.Add(mustJSON(metaSnapshot{5, good}))
	for _, s := range []string{`null`, `{"facts":null}`, `{"facts":{"nodes":{},"placement":[[]]}}`, `{"facts":{"nodes":{"n1":{}},"placement":[["n1"],["n7"]]}}`, `{"index":-1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		m := &meta{identity: fuzzIdentity(t), changed: make(chan struct{})}
		m.facts, m.fail = good.Clone(), func(error) {}
		if err := m.Restore(state); err != nil {
			if !errors.Is(err, wal.ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		for _, c := range []cluster.Command{
			{Kind: cluster.AddNode, Version: m.facts.Version, Node: "n9", Member: cluster.Member{ID: "id9"}},
			{Kind: cluster.NoteStart, Node: "n9", Member: cluster.Member{ID: "id9"}, Start: cluster.Start{Number: 1}},
		} {
			m.Apply([]raftstore.Committed{{Index: m.index + 1, Data: encodeCommand(c)}})
		}
		m.facts.MetaVoters()
		m.facts.Balance()
		for p := range m.facts.Placement {
			if len(m.facts.Voters(p)) == 0 {
				t.Fatalf("partition %d is nowhere", p)
			}
		}
	})
}

// FuzzRestoredBatches loads a piece of a log from a backup. What the leader
// takes from it, a replica can apply; the rest waits for the next piece.
func FuzzRestoredBatches(f *testing.F) {
	var stream []byte
	for txid := range uint64(3) {
		b := fuzzBatch(7, txid+1, "a")
		stream = append(binary.AppendUvarint(stream, uint64(len(b))), b...)
	}
	f.Add(stream, false)
	f.Add(stream[:len(stream)-3], false)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, true)
	log := fuzzLog(f)
	f.Fuzz(func(t *testing.T, stream []byte, asItIs bool) {
		if !asItIs {
			correctChecksums(stream)
		}
		batches, rest, err := splitBatches(stream, restorePoint{restoring: true})
		if err != nil {
			if _, is := errors.AsType[*subjects.Error](err); !is {
				t.Fatal(err)
			}
			return
		}
		size := len(rest)
		var damage error
		r := newPartitionState(log, testStateOptions, time.Now, func(err error) { damage = err }, &digests{})
		r.Apply([]raftstore.Committed{beginStep(wal.Base{}, 0)})
		for i, b := range batches {
			size += len(binary.AppendUvarint(nil, uint64(len(b)))) + len(b)
			a := r.Apply([]raftstore.Committed{{Index: uint64(i + 2), Term: 1, Data: b, Restored: true}})[0].(applied)
			if damage != nil || a.void {
				t.Fatalf("batch %d is taken, and not applied: %+v, %v", i, a, damage)
			}
		}
		if size > len(stream) || !bytes.HasSuffix(stream, rest) {
			t.Fatalf("%d batches and %d bytes of %d", len(batches), len(rest), len(stream))
		}
	})
}

// correctChecksums corrects the checksums of the batches in a stream.
func correctChecksums(stream []byte) {
	for {
		n, size := binary.Uvarint(stream)
		if size <= 0 || n < 4 || n > uint64(len(stream)-size) {
			return
		}
		b := stream[size : size+int(n)]
		sum := crc32.Checksum(b[:len(b)-4], crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(b[len(b)-4:], sum)
		stream = stream[size+int(n):]
	}
}

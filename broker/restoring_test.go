package broker

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// stateOnDisk is a partition's state with its log, without Raft.
type stateOnDisk struct {
	*partitionState
	t     *testing.T
	store *wal.Store
	chain digests
}

func newStateOnDisk(t *testing.T) *stateOnDisk {
	t.Helper()
	s, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r := &stateOnDisk{t: t, store: s}
	r.partitionState = newPartitionState(s.Log(0), testStateOptions, time.Now, func(err error) { t.Error(err) }, &r.chain)
	return r
}

// commit appends and applies entries, and returns whether the last one is void.
func (r *stateOnDisk) commit(entries ...raftstore.Committed) (void bool) {
	r.t.Helper()
	for _, e := range entries {
		e.Index = r.log.LastIndex() + 1
		stored := wal.Entry{Index: e.Index, Term: e.Term, Data: e.Data}
		if e.Restored {
			stored.Extensions = []byte(wal.RestoredMark)
		}
		if err := r.log.Append(stored); err != nil {
			r.t.Fatal(err)
		}
		void = r.Apply([]raftstore.Committed{e})[0].(applied).void
	}
	return void
}

// restart makes the replica anew, from a snapshot as it is now, or from the
// beginning of the log.
func (r *stateOnDisk) restart(fromSnapshot bool) {
	r.t.Helper()
	var state []byte
	if fromSnapshot {
		snapshot := r.Snapshot()
		state = snapshot.State
		if err := r.log.SetMeta(snapshot.Metas...); err != nil {
			r.t.Fatal(err)
		}
	}
	r.chain = digests{}
	now := newPartitionState(r.log, testStateOptions, time.Now, func(err error) { r.t.Error(err) }, &r.chain)
	if fromSnapshot {
		if err := now.Restore(state); err != nil {
			r.t.Fatal(err)
		}
		r.partitionState = now
		return
	}
	r.partitionState = now
	for e, err := range r.log.Entries(1, r.log.LastIndex()) {
		if err != nil {
			r.t.Fatal(err)
		}
		r.Apply([]raftstore.Committed{{Index: e.Index, Term: e.Term, Data: e.Data, Restored: e.Restored()}})
	}
}

// restoreSteps returns an entry with steps of a restore.
func restoreSteps(steps ...wal.RestoreStep) raftstore.Committed {
	var w wal.BatchWriter
	w.Begin(wal.Restores, 0, 1, 0)
	for _, s := range steps {
		w.AddRestore(s)
	}
	return raftstore.Committed{Term: 50, Data: w.Finish()}
}

func beginStep(base wal.Base, at int64) raftstore.Committed {
	return restoreSteps(wal.RestoreStep{Begin: &wal.RestoreBegin{Cluster: "c1", Base: base, Time: at}})
}

func endStep(at wal.Base) raftstore.Committed {
	return restoreSteps(wal.RestoreStep{End: &wal.RestoreEnd{Base: at, History: []wal.PastCluster{{ID: "c1", LastTxid: at.Txid}}}})
}

func restoredBatch(data []byte) raftstore.Committed {
	return raftstore.Committed{Term: 50, Data: data, Restored: true}
}

// original is a log that was appended to in several terms.
type original struct {
	*stateOnDisk
	batches []wal.Base // where each ends
	data    [][]byte
}

func newOriginal(t *testing.T, batches int) *original {
	o := &original{stateOnDisk: newStateOnDisk(t)}
	r := rand.New(rand.NewPCG(1, 2))
	at := int64(1000)
	for i := range batches {
		var w wal.BatchWriter
		term := uint64(3 + i/10)
		w.BeginIn(term, o.mark.Load()+1, at, 0)
		for j := range 1 + r.IntN(4) {
			w.Add(&wal.Transaction{
				Kind: defaultKind, MsgID: []byte{byte('a' + i%26), byte('a' + j)}, Payload: []byte("p"),
				Locks: []wal.Lock{{Mode: wal.WriteLock, Name: []byte{byte('a' + r.IntN(20))}}},
			})
		}
		data := w.Finish()
		if o.commit(raftstore.Committed{Term: term, Data: data}) {
			t.Fatal("a batch is void")
		}
		at += int64(time.Second) * int64(1+r.IntN(3))
		o.data, o.batches = append(o.data, data), append(o.batches, wal.Base{Txid: o.mark.Load(), Digest: o.digest})
	}
	var w wal.BatchWriter
	w.Begin(wal.CursorWrites, o.mark.Load(), at, 0)
	w.AddCursor(wal.Cursor{Name: []byte("k"), Txid: 7})
	w.AddCursor(wal.Cursor{Name: []byte("l"), Txid: 9})
	o.commit(raftstore.Committed{Term: 60, Data: w.Finish()})
	return o
}

// restoreCursors returns the step that sets the original's cursors.
func (o *original) restoreCursors() raftstore.Committed {
	var steps []wal.RestoreStep
	for name, c := range o.cursors {
		steps = append(steps, wal.RestoreStep{Cursor: &wal.RestoredCursor{Name: []byte(name), Txid: c.Txid, Time: c.Time}})
	}
	return restoreSteps(steps...)
}

// equal checks that a replica is in the state of the original, except for what
// depends on the position of entries.
func (o *original) equal(r *stateOnDisk) {
	r.t.Helper()
	if r.digest != o.digest || r.mark.Load() != o.mark.Load() || r.lastTime != o.lastTime || !reflect.DeepEqual(r.cursors, o.cursors) || r.isRestoring() {
		r.t.Fatalf("the restored log ends at %d, digest %x, time %d, cursors %v; the original at %d, %x, %d, %v",
			r.mark.Load(), r.digest, r.lastTime, r.cursors, o.mark.Load(), o.digest, o.lastTime, o.cursors)
	}
	if want := []wal.PastCluster{{ID: "c1", LastTxid: o.mark.Load()}}; !slices.Equal(r.history, want) {
		r.t.Fatalf("the history is %v, want %v", r.history, want)
	}
	if got, want := lockmgr.StateOf(r.certifier.table), lockmgr.StateOf(o.certifier.table); r.first == 1 && !got.Equal(want, false) {
		r.t.Fatalf("the lock table is\n%+v, want\n%+v", got, want)
	}
	if report := wal.VerifyLog(r.log, wal.Base{}, wal.Base{Txid: r.mark.Load(), Digest: r.digest}); report.Err != nil {
		r.t.Fatalf("verified: %+v", report)
	}
}

// TestARestoreIsTheSameLog restores a log, with repeats and late entries of
// everything, and a restart behind each entry: from a snapshot, from the log's
// beginning, or none.
func TestARestoreIsTheSameLog(t *testing.T) {
	o := newOriginal(t, 60)
	for name, restart := range map[string]func(r *stateOnDisk){
		"without a restart":              func(*stateOnDisk) {},
		"restarted from snapshots":       func(r *stateOnDisk) { r.restart(true) },
		"restarted from the log's start": func(r *stateOnDisk) { r.restart(false) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newStateOnDisk(t)
			commit := func(want bool, e raftstore.Committed) {
				t.Helper()
				if void := r.commit(e); void != want {
					t.Fatalf("after txid %d an entry is void: %v, want %v", r.mark.Load(), void, want)
				}
				restart(r)
			}
			var cursors wal.BatchWriter
			cursors.Begin(wal.CursorWrites, 0, 5, 0)
			cursors.AddCursor(wal.Cursor{Name: []byte("other"), Txid: 1})
			cursorWrite := raftstore.Committed{Term: 50, Data: cursors.Finish()}

			commit(true, restoredBatch(o.data[0])) // before the beginning
			commit(true, endStep(o.batches[59]))
			commit(false, beginStep(wal.Base{}, 0))
			commit(true, beginStep(wal.Base{}, 0))
			for i, data := range o.data {
				commit(true, raftstore.Committed{Term: 3 + uint64(i/10), Data: data}) // of the right term, and not restored
				commit(false, restoredBatch(data))
				if i%13 == 0 {
					commit(true, restoredBatch(data))
					commit(true, beginStep(wal.Base{}, 0))
					commit(true, cursorWrite)
					commit(true, raftstore.Committed{Term: 50, Data: trimBatch(r.partitionState)})
					commit(true, endStep(o.batches[59]))
				}
			}
			commit(false, o.restoreCursors())
			wrong := o.batches[59]
			wrong.Digest[5] ^= 1
			commit(true, endStep(wrong))
			commit(false, endStep(o.batches[59]))
			commit(true, endStep(o.batches[59]))
			commit(true, restoredBatch(fuzzBatch(3, o.mark.Load()+1, "late")))
			commit(true, o.restoreCursors())
			o.equal(r)
			checkTimesRise(t, r)
		})
	}
}

func trimBatch(r *partitionState) []byte {
	var w wal.BatchWriter
	w.Begin(wal.Trims, r.mark.Load(), math.MaxInt64, 0)
	w.AddRaw(trimRecord(r.endPoint()))
	return w.Finish()
}

// checkTimesRise certifies a transaction with a clock of long ago: it gets a
// later time than the last restored one.
func checkTimesRise(t *testing.T, r *stateOnDisk) {
	t.Helper()
	r.certifier.now = func() time.Time { return time.Unix(0, 1) }
	c := r.certifier.certify(51, []*request{{tx: wal.Transaction{Kind: defaultKind}, cert: lockmgr.Transaction{}}})
	if c.data == nil || c.first != r.mark.Load()+1 || c.time <= r.lastTime {
		t.Fatalf("certified as %d at %d, behind txid %d at %d", c.first, c.time, r.mark.Load(), r.lastTime)
	}
	if r.commit(raftstore.Committed{Term: 51, Data: c.data}) {
		t.Fatal("the first batch after the restore is void")
	}
}

// A backup of a log that was trimmed begins behind a base: the restored log
// begins there, and its floor is there.
func TestARestoreFromABase(t *testing.T) {
	o := newOriginal(t, 60)
	const n = 20 // batches that were trimmed
	base := o.batches[n]
	last, err := wal.ParseBatch(o.data[n])
	if err != nil {
		t.Fatal(err)
	}
	for _, snapshots := range []bool{true, false} {
		r := newStateOnDisk(t)
		r.commit(beginStep(base, last.Time+int64(last.Count)-1))
		if at := r.position(); at.mark != base.Txid || at.first != base.Txid+1 || !at.restoring {
			t.Fatalf("the restore begins at %+v", at)
		}
		if floor := r.certifier.stats().Floor; floor != base.Txid {
			t.Fatalf("the floor is %d, want %d", floor, base.Txid)
		}
		r.restart(snapshots)
		for _, data := range o.data[n+1:] {
			if r.commit(restoredBatch(data)) {
				t.Fatal("a batch is void")
			}
			r.restart(snapshots)
		}
		r.commit(o.restoreCursors(), endStep(o.batches[59]))
		r.restart(snapshots)
		o.equal(r)
		checkTimesRise(t, r)
	}
}

// TestAMirrorIsTheSameLog mirrors a log, with a trim in between, and restarts
// behind each entry. It ends in the state of the original.
func TestAMirrorIsTheSameLog(t *testing.T) {
	o := newOriginal(t, 60)
	mirror := restoreSteps(wal.RestoreStep{Begin: &wal.RestoreBegin{Cluster: "c1", Mirror: true}})
	for name, restart := range map[string]func(r *stateOnDisk){
		"without a restart":              func(*stateOnDisk) {},
		"restarted from snapshots":       func(r *stateOnDisk) { r.restart(true) },
		"restarted from the log's start": func(r *stateOnDisk) { r.restart(false) },
	} {
		for _, trimmed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", trimmed ", trimmed), func(t *testing.T) {
				r := newStateOnDisk(t)
				commit := func(want bool, e raftstore.Committed) {
					t.Helper()
					if void := r.commit(e); void != want {
						t.Fatalf("after txid %d an entry is void: %v, want %v", r.mark.Load(), void, want)
					}
					restart(r)
				}
				commit(false, mirror)
				for i, data := range o.data {
					commit(true, raftstore.Committed{Term: 3 + uint64(i/10), Data: data}) // of the right term, and not restored
					commit(false, restoredBatch(data))
					if i == 30 {
						commit(true, mirror)
						commit(true, beginStep(wal.Base{}, 0))
						if trimmed {
							commit(false, raftstore.Committed{Term: 50, Data: trimBatch(r.partitionState)})
						}
					}
					if at := r.position(); at.restoring || at.mirrorOf != "c1" || r.promotedAfter() != 0 {
						t.Fatalf("the mirror is at %+v", at)
					}
				}
				commit(false, o.restoreCursors())
				commit(false, restoreSteps(wal.RestoreStep{Cursor: &wal.RestoredCursor{Name: []byte("k"), Txid: 3, Time: 5}})) // is older
				commit(false, endStep(o.batches[59]))
				o.equal(r)
				if r.promotedAfter() != r.mark.Load() || r.position().mirrorOf != "" || (r.first > 1) != trimmed {
					t.Fatalf("promoted after %d, %+v", r.promotedAfter(), r.position())
				}
				if !trimmed { // a trim has moved the time on
					checkTimesRise(t, r)
				}
			})
		}
	}
}

// A log that is not empty can't be restored, nor one that was.
func TestOnlyAnEmptyLogIsRestored(t *testing.T) {
	var cursors wal.BatchWriter
	cursors.Begin(wal.CursorWrites, 0, 5, 0)
	cursors.AddCursor(wal.Cursor{Name: []byte("k"), Txid: 1})
	for name, before := range map[string][]raftstore.Committed{
		"a transaction":          {{Term: 1, Data: fuzzBatch(1, 1, "a")}},
		"a cursor":               {{Term: 1, Data: cursors.Finish()}},
		"restored":               {beginStep(wal.Base{}, 0), endStep(wal.Base{})},
		"restored from another":  {beginStep(wal.Base{Txid: 4}, 9)},
		"restored up to a place": {beginStep(wal.Base{Txid: 4}, 9), endStep(wal.Base{Txid: 4})},
	} {
		r := newStateOnDisk(t)
		if r.commit(before...) {
			t.Fatalf("%s: void", name)
		}
		restoring := r.isRestoring()
		if !r.commit(beginStep(wal.Base{}, 0)) || r.isRestoring() != restoring {
			t.Errorf("%s: the restore begins", name)
		}
	}
}

// A cursor past the log's end makes the end void.
func TestARestoreDoesNotEndBeforeItsCursors(t *testing.T) {
	r := newStateOnDisk(t)
	r.commit(beginStep(wal.Base{}, 0), restoredBatch(fuzzBatch(9, 1, "a")))
	at := wal.Base{Txid: 1, Digest: r.digest}
	r.commit(restoreSteps(wal.RestoreStep{Cursor: &wal.RestoredCursor{Name: []byte("k"), Txid: 2, Time: 3}}))
	if !r.commit(endStep(at)) {
		t.Fatal("a cursor is past the log's end")
	}
	r.commit(restoreSteps(wal.RestoreStep{Cursor: &wal.RestoredCursor{Name: []byte("k")}}))
	if r.commit(endStep(at)) || len(r.cursors) > 0 {
		t.Fatal("the restore does not end")
	}
}

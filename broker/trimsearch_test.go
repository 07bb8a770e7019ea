package broker

import (
	"errors"
	"reflect"
	"testing"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// trimEntry returns an entry with a trim record.
func (r *stateOnDisk) trimEntry(at trimPoint) raftstore.Committed {
	var w wal.BatchWriter
	w.Begin(wal.Trims, r.mark.Load(), r.lastTime+1, 0)
	w.AddRaw(trimRecord(at))
	return raftstore.Committed{Term: 60, Data: w.Finish()}
}

// through returns the last point at which a trim may end up to a txid.
func (r *stateOnDisk) through(txid uint64) trimPoint {
	r.t.Helper()
	at, found, err := r.lastPointThat(func(p trimPoint) bool { return p.Txid <= txid })
	if err != nil || !found {
		r.t.Fatalf("up to %d: %v, %v", txid, found, err)
	}
	return at
}

// compare does the duty that a trim has left, and returns the outcome.
func (r *stateOnDisk) compare() error {
	r.t.Helper()
	if r.unchecked == nil {
		r.t.Fatal("nothing is to be compared")
	}
	return r.unchecked.compareBase(r.log, r.base, r.trimIndex)
}

// Any point that is computed from the log is the one that the replica had when
// it applied the batch, wherever the computation begins.
func TestPointsAreComputedFromTheLog(t *testing.T) {
	o := newOriginal(t, 60)
	for trimmed := range 50 {
		for _, b := range o.batches[trimmed:] {
			for _, txid := range []uint64{b.Txid, b.Txid + 1} {
				if at := o.through(txid); at.Base != b && at.Txid != txid {
					t.Fatalf("up to %d: %d, %x; want %d, %x", txid, at.Txid, at.Digest, b.Txid, b.Digest)
				}
			}
		}
		o.commit(o.trimEntry(o.through(o.batches[trimmed].Txid)))
		if o.base != o.batches[trimmed] || o.first != o.batches[trimmed].Txid+1 {
			t.Fatalf("the log begins behind %d, %x; want %d, %x", o.base.Txid, o.base.Digest, o.batches[trimmed].Txid, o.batches[trimmed].Digest)
		}
		if trimmed%7 == 3 {
			if err := o.compare(); err != nil {
				t.Fatal(err)
			}
			o.checked(o.unchecked, o.basePoint())
		}
		if trimmed%5 == 0 {
			want, tables := o.through(o.mark.Load()-1), lockmgr.StateOf(o.certifier.table)
			o.restart(true)
			if got := o.through(o.mark.Load() - 1); got != want {
				t.Fatalf("after a restart the last point is %v, want %v", got, want)
			}
			if got := lockmgr.StateOf(o.certifier.table); !got.Equal(tables, true) {
				t.Fatalf("after a restart the tables are\n%+v, want\n%+v", got, tables)
			}
		}
	}
	if err := o.compare(); err != nil {
		t.Fatal(err)
	}
}

// A replica begins where the record says, and finds out before it deletes
// anything that its log is another one: also after a restart.
func TestARecordOfAnotherLogIsFoundOut(t *testing.T) {
	for name, change := range map[string]func(o *original, at *trimPoint){
		"":                       func(*original, *trimPoint) {},
		"another digest":         func(_ *original, at *trimPoint) { at.Digest[9] ^= 1 },
		"not the end of a batch": func(_ *original, at *trimPoint) { at.Txid-- },
		"a later entry":          func(_ *original, at *trimPoint) { at.index++ },
		"an earlier entry":       func(_ *original, at *trimPoint) { at.index-- },
		"at the log's end":       func(o *original, at *trimPoint) { *at = o.endPoint(); at.Digest[9] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			o := newOriginal(t, 40)
			var batch int
			for batch = 20; o.batches[batch].Txid-o.batches[batch-1].Txid < 2; batch++ {
			}
			o.commit(o.trimEntry(o.through(o.batches[5].Txid)))
			at := o.through(o.batches[batch].Txid)
			change(o, &at)
			o.commit(o.trimEntry(at))
			if o.first != at.Txid+1 || o.base != at.Base {
				t.Fatalf("the log begins behind %v, want %v", o.base, at.Base)
			}
			for range 2 {
				if err := o.compare(); name == "" && err != nil || name != "" && !errors.Is(err, errOtherTrim) {
					t.Fatalf("compared: %v", err)
				}
				o.restart(true)
			}
		})
	}
}

// A record that comes late changes nothing, nor one of a log that is longer.
func TestATrimThatDoesNotFitChangesNothing(t *testing.T) {
	o := newOriginal(t, 40)
	late, ahead := o.through(o.batches[10].Txid), o.endPoint()
	ahead.Txid++
	o.commit(o.trimEntry(o.through(o.batches[20].Txid)))
	base, points := o.basePoint(), o.trimPoints
	for _, at := range []trimPoint{late, ahead, {Base: base.Base}, {}} {
		o.commit(o.trimEntry(at))
		if o.basePoint() != base || !reflect.DeepEqual(o.trimPoints, points) {
			t.Fatalf("a trim at %v moves the log's beginning from %v to %v", at, base, o.basePoint())
		}
	}
}

// A record of an older version has the oldest txid to keep. The log then begins
// at a trim point that is remembered.
func TestAnOlderTrimRecord(t *testing.T) {
	o := newOriginal(t, 40)
	o.trimPoints = []trimPoint{o.through(o.batches[10].Txid), o.through(o.batches[20].Txid)}
	record := func(keep uint64) raftstore.Committed {
		var w wal.BatchWriter
		w.Begin(wal.Trims, o.mark.Load(), o.lastTime+1, 0)
		w.AddRaw(trimRecord(trimPoint{Base: wal.Base{Txid: keep}})[:oldTrimSize])
		return raftstore.Committed{Term: 60, Data: w.Finish()}
	}
	o.commit(record(o.batches[15].Txid))
	if o.base != o.batches[10] {
		t.Fatalf("the log begins behind %d, want %d", o.base.Txid, o.batches[10].Txid)
	}
	o.commit(record(o.mark.Load() + 1))
	if o.base != o.batches[39] || o.unchecked != nil {
		t.Fatalf("the log begins behind %d, want %d", o.base.Txid, o.batches[39].Txid)
	}
}

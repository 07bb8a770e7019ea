package broker

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/wal"
)

// certifiedBatch certifies one transaction with a lock and gives the bytes of its
// batch, and the rollbacks there had been.
func certifiedBatch(t *testing.T, r *replica, lock string) (data []byte, rolled int) {
	t.Helper()
	tx := lockmgr.Transaction{Locks: []lockmgr.Lock{{Mode: lockmgr.Append, Name: lock}}}
	v := r.table.Certify(&tx, time.Now().UnixNano())
	if v.Outcome != lockmgr.Pass {
		t.Fatalf("%+v", v)
	}
	var w wal.BatchWriter
	w.Begin(wal.Transactions, v.Txid, time.Now().UnixNano(), 100)
	w.Add(&wal.Transaction{Kind: defaultKind, Locks: []wal.Lock{{Mode: wal.AppendLock, Name: []byte(lock)}}})
	return w.Finish(), r.rolled
}

func recordBatch(t *testing.T, r *replica, data []byte) {
	t.Helper()
	b, err := wal.ParseBatch(data)
	if err == nil {
		err = r.record(data, b)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantNewest holds the committed recorder of a lock and what is in flight against
// what they should be.
func wantNewest(t *testing.T, r *replica, lock string, txid uint64, inFlight int) {
	t.Helper()
	if got, _ := r.table.Newest(lock); got != txid {
		t.Errorf("newest of %s: %d, want %d", lock, got, txid)
	}
	if got := r.table.Stats().InFlight; got != inFlight {
		t.Errorf("%d in flight, want %d", got, inFlight)
	}
}

func newTestReplica() *replica {
	return newReplica(nil, Options{MaxLocks: 10, MaxMsgIDs: 10, MsgIDWindow: time.Minute}, nil, nil)
}

func TestABatchOfThisLeaderStaysInFlightUntilItCommits(t *testing.T) {
	r := newTestReplica()
	first, rolled := certifiedBatch(t, r, "a")
	r.propose(first, 1, rolled)
	second, rolled := certifiedBatch(t, r, "b")
	r.propose(second, 1, rolled)
	recordBatch(t, r, first)
	wantNewest(t, r, "a", 1, 1)
	recordBatch(t, r, second)
	wantNewest(t, r, "b", 2, 0)
}

// Another leader's batch takes the place of what this one had in flight.
func TestAForeignBatchTakesBackWhatIsInFlight(t *testing.T) {
	other := newTestReplica()
	foreign, _ := certifiedBatch(t, other, "foreign")
	r := newTestReplica()
	for _, lock := range []string{"a", "b"} {
		data, rolled := certifiedBatch(t, r, lock)
		r.propose(data, 1, rolled)
	}
	recordBatch(t, r, foreign)
	wantNewest(t, r, "foreign", 1, 0)
	wantNewest(t, r, "a", 0, 0)
}

// What was certified before the flight was rolled back is not in it, whether it
// was proposed before or after: it is recorded as it was read.
func TestABatchThatWasRolledBackIsRead(t *testing.T) {
	for _, late := range []bool{false, true} {
		r := newTestReplica()
		data, rolled := certifiedBatch(t, r, "a")
		if !late {
			r.propose(data, 1, rolled)
		}
		r.rollBack()
		if late {
			r.propose(data, 1, rolled)
		}
		// Another one has its place in flight.
		certifiedBatch(t, r, "b")
		recordBatch(t, r, data)
		wantNewest(t, r, "a", 1, 0)
		wantNewest(t, r, "b", 0, 0)
	}
}

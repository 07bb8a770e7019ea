package broker

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/wal"
)

// certifyAppend certifies one transaction with an append lock and returns its
// batch.
func certifyAppend(t *testing.T, r *partitionState, lock string) []byte {
	t.Helper()
	tx := &request{
		tx:   wal.Transaction{Kind: defaultKind, Locks: []wal.Lock{{Mode: wal.AppendLock, Name: []byte(lock)}}},
		cert: lockmgr.Transaction{Locks: []lockmgr.Lock{{Mode: lockmgr.Append, Name: lock}}},
	}
	c := r.certifier.certify(1, []*request{tx})
	if len(c.passed) != 1 || c.data == nil {
		t.Fatalf("%+v", c)
	}
	return c.data
}

func recordBatch(t *testing.T, r *partitionState, data []byte) {
	t.Helper()
	b, err := wal.ParseBatch(data)
	if err == nil {
		err = r.record(data, b)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantNewest checks the committed recorder of a lock and the newest in flight.
func wantNewest(t *testing.T, r *partitionState, lock string, txid uint64, inFlight int) {
	t.Helper()
	if got, _ := r.certifier.newest(lock); got != txid {
		t.Errorf("newest of %s: %d, want %d", lock, got, txid)
	}
	if got := r.certifier.stats().InFlight; got != inFlight {
		t.Errorf("%d in flight, want %d", got, inFlight)
	}
}

var testStateOptions = stateOptions{locks: lockmgr.Options{Locks: 10, IDs: 10, IDWindow: time.Minute}}

func newTestReplica() *partitionState {
	return newPartitionState(nil, testStateOptions, time.Now, nil, nil)
}

func TestABatchOfThisLeaderStaysInFlightUntilItCommits(t *testing.T) {
	r := newTestReplica()
	first, second := certifyAppend(t, r, "a"), certifyAppend(t, r, "b")
	wantNewest(t, r, "a", 0, 2)
	recordBatch(t, r, first)
	wantNewest(t, r, "a", 1, 1)
	recordBatch(t, r, second)
	wantNewest(t, r, "b", 2, 0)
}

// Another leader's batch replaces what this one had in flight.
func TestAForeignBatchTakesBackWhatIsInFlight(t *testing.T) {
	foreign := certifyAppend(t, newTestReplica(), "foreign")
	r := newTestReplica()
	for _, lock := range []string{"a", "b"} {
		certifyAppend(t, r, lock)
	}
	recordBatch(t, r, foreign)
	wantNewest(t, r, "foreign", 1, 0)
	wantNewest(t, r, "a", 0, 0)
}

// A batch that was certified before a rollback is no longer in flight: it is
// recorded from its bytes.
func TestABatchThatWasRolledBackIsRead(t *testing.T) {
	r := newTestReplica()
	data := certifyAppend(t, r, "a")
	r.certifier.rollback()
	certifyAppend(t, r, "b") // has its txid in flight
	recordBatch(t, r, data)
	wantNewest(t, r, "a", 1, 0)
	wantNewest(t, r, "b", 0, 0)
}

package broker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// A clock that goes back does not take the log's time back with it: after a
// transaction with a time in the future, each one is a little later, also those
// that are in flight together.
func TestTimeNeverGoesBack(t *testing.T) {
	opts := broker.Options{Partitions: 1}
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	appendTx(t, nc, "cantus.append.0", "now")
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	future := time.Now().Add(time.Hour).UTC()
	appendAt(t, dir, 2, future)

	_, nc = openNode(t, dir, opts)
	const rounds, count = 20, 10
	for range rounds {
		var batch []byte
		for i := range count {
			batch = append(batch, item(fmt.Sprint(i))...)
		}
		if err := nc.PublishRequest("cantus.batch.0", nc.NewRespInbox(), batch); err != nil {
			t.Fatal(err)
		}
	}
	r := appendTx(t, nc, "cantus.append.0", "last") // behind all of them
	if want := uint64(2 + rounds*count + 1); r.Txid != want || !r.Time.After(future) || r.Time.After(future.Add(time.Minute)) {
		t.Errorf("%+v, want txid %d just after %s", r, want, future)
	}
	log := checkLog(t, nc, 0)
	if at := log[1].Header.Get(subjects.HeaderTime); at != future.Format(time.RFC3339Nano) {
		t.Fatalf("the transaction of the future is of %s, not of %s", at, future)
	}
}

// appendAt puts a batch of one transaction with a time of its own into the log
// of a node that is closed.
func appendAt(t *testing.T, dir string, txid uint64, at time.Time) {
	t.Helper()
	s, err := wal.Open(dir, wal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := s.Log(0)
	newest, err := l.Entry(l.LastIndex())
	if err != nil {
		t.Fatal(err)
	}
	var w wal.BatchWriter
	w.Begin(wal.Transactions, txid, at.UnixNano(), 0)
	w.Add(&wal.Transaction{Kind: []byte("tx"), Payload: []byte("from the future")})
	if err := l.Append(wal.Entry{Index: newest.Index + 1, Term: newest.Term, Data: w.Finish()}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

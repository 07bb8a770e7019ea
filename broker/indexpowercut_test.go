//go:build powercut && linux

package broker

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/cantuslog/cantus/internal/powercut"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

var (
	indexCuts  = flag.Int("index-cuts", 10, "how often TestTheIndexIsExactAfterThePowerFails cuts the power")
	indexChild = flag.String("index-child", "", "for that test itself: append and index in this directory until the process is killed")
)

// TestTheIndexIsExactAfterThePowerFails cuts the power of a file system of its
// own while a log is appended to and indexed. What the index has survived with
// must answer as the log does. It needs root and a loop device:
//
//	go test -tags powercut -run PowerFails ./broker -index-cuts 30
func TestTheIndexIsExactAfterThePowerFails(t *testing.T) {
	if *indexChild != "" {
		appendAndIndex(t, *indexChild)
		return
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	disk := powercut.New(t, "1G")
	dir := filepath.Join(disk.Mount, "data")
	survived := 0
	for round := range *indexCuts {
		cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-index-child", dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines, cut := bufio.NewScanner(out), 1+r.IntN(600)
		flush := r.IntN(2 * cut) // if it comes, files that are being written are on the disk in part
		for n := 1; n <= cut && lines.Scan(); n++ {
			if n == flush {
				unix.Sync()
			}
		}
		disk.Cut()
		_ = cmd.Process.Kill()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		disk.Return()
		last, kept := checkIndex(t, dir, r)
		t.Logf("round %d: %d transactions, %d of them in runs that were kept", round, last, kept)
		if kept > 0 {
			survived++
		}
	}
	if survived == 0 {
		t.Error("no run has survived: the test sees little")
	}
}

// openIndexed opens the log and the index in a directory.
func openIndexed(t *testing.T, dir string) (x *indexed, closeAll func()) {
	t.Helper()
	store, err := wal.Open(filepath.Join(dir, "log"), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	x = &indexed{t: t, log: store.Log(0), dir: filepath.Join(dir, "index"), current: true, budget: 64 << 10, changed: make(chan struct{})}
	return x, func() {
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// perBatch is how many transactions each entry has.
const perBatch = 20

// appendAndIndex appends to the log until the process is killed, indexes it,
// and prints a line for each entry.
func appendAndIndex(t *testing.T, dir string) {
	x, _ := openIndexed(t, dir)
	x.apply(x.log.LastIndex() * perBatch)
	x.run()
	for {
		index := x.log.LastIndex() + 1
		first := (index-1)*perBatch + 1
		var w wal.BatchWriter
		w.Begin(wal.Transactions, first, int64(first), 0)
		for txid := first; txid < first+perBatch; txid++ {
			w.Add(namedTransaction(txid))
		}
		if err := x.log.Append(wal.Entry{Index: index, Term: 1, Data: w.Finish()}); err != nil {
			return // the power is gone
		}
		x.apply(first + perBatch - 1)
		fmt.Println(index)
	}
}

// namedTransaction returns the transaction with a txid.
func namedTransaction(txid uint64) *wal.Transaction {
	lock := fmt.Sprintf("a.%d.%d", txid%7, txid%1009)
	if txid%97 == 0 {
		lock = fmt.Sprintf("a.%d.>", txid%7)
	}
	t := &wal.Transaction{Kind: fmt.Append(nil, "k", txid%53), Locks: []wal.Lock{{Mode: wal.AppendLock, Name: []byte(lock)}}}
	if txid%3 == 0 {
		t.Session, t.SessionSeq = fmt.Append(nil, "s", txid/300), txid%300/3+1
	} else {
		t.MsgID = fmt.Append(nil, "id", txid)
	}
	return t
}

// checkIndex opens the log and the index, and compares what reads by names find
// with the log. It returns the last transaction, and how many were in the index
// as soon as it was open.
func checkIndex(t *testing.T, dir string, r *rand.Rand) (last, kept uint64) {
	t.Helper()
	x, closeAll := openIndexed(t, dir)
	defer closeAll()
	last = x.log.LastIndex() * perBatch
	x.apply(last)
	i, stop := x.run()
	defer stop()
	testkit.Until(t, "the index is open", func() bool { return i.index.Load() != nil })
	kept = i.through()
	// Later ones are still added meanwhile: a read finds them in the log.
	at := x.position()
	read := reader{store: x.log, position: x.position, indexer: i, scans: semaphore.NewWeighted(1)}
	for range 60 {
		txid := 1 + r.Uint64N(max(last, 1)+10)
		of := namedTransaction(txid)
		queries := map[string]query{
			"kind":    {kinds: []string{string(of.Kind)}},
			"lock":    {lock: string(of.Locks[0].Name)},
			"subtree": {lock: fmt.Sprintf("a.%d.>", txid%7), kinds: []string{string(of.Kind)}},
		}
		if of.SessionSeq > 0 {
			queries["number"] = query{session: string(of.Session), seq: of.SessionSeq}
		} else {
			queries["message id"] = query{msgID: string(of.MsgID)}
		}
		for what, q := range queries {
			want := scanFor(t, x.log, at, &q)
			var got []uint64
			var s scanned
			_, err := read.down(at, &q, last, 1, &s, func(found *wal.Transaction) (bool, error) {
				if q.matches(found) {
					got = append(got, found.Txid)
				}
				return false, nil
			})
			slices.Reverse(got)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("%s of txid %d: the index finds %v, %v, the log has %v", what, txid, got, err, want)
			}
		}
	}
	testkit.Until(t, "the index is complete", func() bool { return i.through() == last })
	return last, kept
}

// scanFor returns the transactions of the log that a query asks for.
func scanFor(t *testing.T, log *wal.Log, at position, q *query) (found []uint64) {
	t.Helper()
	for _, b := range log.Batches(1, at.index) {
		if b.Err != nil {
			t.Fatal(b.Err)
		}
		records := b.Batch.Read()
		for tx := (wal.Transaction{}); records.Next(&tx); {
			if q.matches(&tx) {
				found = append(found, tx.Txid)
			}
		}
	}
	return found
}

package broker_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// history is what was committed, and the oracle for what may commit.
type history struct {
	locks [][]string // of transaction i+1, those that it recorded
	ids   []string   // of transaction i+1, "" for none
}

func (h *history) last() uint64 { return uint64(len(h.locks)) }

// newest returns the newest transaction that recorded a lock overlapping name.
func (h *history) newest(name string) uint64 {
	for i := len(h.locks) - 1; i >= 0; i-- {
		for _, l := range h.locks[i] {
			if subjects.Overlap(l, name) {
				return uint64(i + 1)
			}
		}
	}
	return 0
}

// After a restart the tables refuse what they refused before. They may have
// forgotten more than before, but nothing past the floor.
func TestTablesAfterRestart(t *testing.T) {
	testkit.NotShort(t, "nodes restart many times")
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { tablesAfterRestart(t, seed) })
	}
}

func tablesAfterRestart(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	opts := broker.Options{Partitions: 1, MaxLocks: 5 + r.IntN(40), MaxMsgIDs: 3 + r.IntN(20), MsgIDWindow: time.Hour}
	names := 3 + r.IntN(60)
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	var h history
	lockName := func() string {
		if r.IntN(12) == 0 {
			return fmt.Sprintf("g%d.>", r.IntN(4))
		}
		return fmt.Sprintf("g%d.%d", r.IntN(4), r.IntN(names))
	}
	for round := range 4 {
		for range 20 + r.IntN(60) {
			var batch []byte
			for range 1 + r.IntN(5) {
				var headers, recorded []string
				for range r.IntN(4) {
					l := lockName()
					headers, recorded = append(headers, appendLock, l), append(recorded, l)
				}
				id := ""
				if r.IntN(2) == 0 {
					id = fmt.Sprint("id-", len(h.ids))
					headers = append(headers, msgID, id)
				}
				batch = append(batch, item(fmt.Sprint(len(h.ids)), headers...)...)
				h.locks, h.ids = append(h.locks, recorded), append(h.ids, id)
			}
			if m := ask(t, nc, "cantus.batch.0", string(batch)); !strings.Contains(string(m.Data), fmt.Sprintf(`"high_water_mark":%d}`, h.last())) {
				t.Fatalf("%s", m.Data)
			}
		}
		h.check(t, nc, opts, lockName)
		if round%2 == 0 {
			n, nc = reopen(t, n, dir, opts)
		} else { // as after a crash
			copied := t.TempDir()
			copyDir(t, dir, copied)
			nc.Close()
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			dir = copied
			n, nc = openNode(t, dir, opts)
		}
		h.check(t, nc, opts, lockName)
	}
}

// check asks the node about locks and ids without appending anything: every
// request also expects a wrong last txid, which is checked after ids and before
// locks; so locks are looked up by get.
func (h *history) check(t *testing.T, nc *nats.Conn, opts broker.Options, lockName func() string) {
	t.Helper()
	floor := info(t, nc, 0).Locks.Floor
	recorded, most := 0, h.last() // the newest locks are known, as many as there is room for
	for ; most > 0 && recorded < opts.MaxLocks; most-- {
		recorded += len(h.locks[most-1])
	}
	if most == 0 && recorded < opts.MaxLocks && floor > 0 || most > 0 && floor > most+1 {
		t.Fatalf("the floor is %d, though only %d locks were recorded from %d on and %d fit", floor, recorded, most+1, opts.MaxLocks)
	}
	for range 40 {
		name := lockName()
		want := h.newest(name)
		m := ask(t, nc, "cantus.get.0", fmt.Sprintf(`{"lock":%q}`, name))
		if m.Header.Get(subjects.HeaderErrorCode) == "" {
			if got := number(t, m, subjects.HeaderTxid); got != want {
				t.Fatalf("%s was last recorded by %d, not %d (floor %d)", name, want, got, floor)
			}
		} else if want > floor {
			t.Fatalf("%s was recorded by %d, past the floor %d, and is not known", name, want, floor)
		}
	}
	ids := 0
	for i := len(h.ids) - 1; i >= 0 && ids < opts.MaxMsgIDs; i-- {
		if h.ids[i] == "" {
			continue
		}
		ids++
		m := ask(t, nc, "cantus.append.0", strconv.Itoa(i), msgID, h.ids[i], last, "18446744073709551615")
		if want := fmt.Sprintf(`"txid":%d,`, i+1); !strings.Contains(string(m.Data), want) || !strings.Contains(string(m.Data), `"duplicate":true`) {
			t.Fatalf("id %d of the newest %d: %s, want %s", ids, opts.MaxMsgIDs, m.Data, want)
		}
	}
	for i := range h.ids { // the oldest id of all is forgotten, if there were enough since
		if h.ids[i] != "" {
			if m := ask(t, nc, "cantus.append.0", strconv.Itoa(i), msgID, h.ids[i], last, "18446744073709551615"); ids == opts.MaxMsgIDs && i+1 < len(h.ids)-20*opts.MaxMsgIDs &&
				!strings.Contains(string(m.Data), "wrong_last") {
				t.Fatalf("id %d should be forgotten: %s", i, m.Data)
			}
			break
		}
	}
}

// What conflicts before a restart conflicts after it, and what passes past the
// floor passes.
func TestCertificationAfterRestart(t *testing.T) {
	opts := broker.Options{Partitions: 1, MaxLocks: 8}
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	var h history
	for i := range 40 {
		l := fmt.Sprint("l.", i%13)
		appendTx(t, nc, "cantus.append.0", "x", appendLock, l)
		h.locks = append(h.locks, []string{l})
	}
	for range 3 {
		floor := info(t, nc, 0).Locks.Floor
		if floor == 0 || floor >= h.last() {
			t.Fatalf("floor %d", floor)
		}
		for i := range 13 {
			name := fmt.Sprint("l.", i)
			for at := floor; at <= h.last(); at++ {
				// With an id that is taken, nothing is appended: certify alone.
				m := ask(t, nc, "cantus.append.0", "x", read, name, mark, fmt.Sprint(at), "Cantus-Kind", "probe")
				newest := h.newest(name)
				if conflict := strings.Contains(string(m.Data), "conflict"); conflict != (newest > at) {
					t.Fatalf("%s at %d (recorded by %d, floor %d): %s", name, at, newest, floor, m.Data)
				}
				if m.Header.Get(subjects.HeaderErrorCode) == "" {
					h.locks = append(h.locks, nil)
				}
				if at > floor+3 {
					break
				}
			}
		}
		n, nc = reopen(t, n, dir, opts)
	}
}

// A batch with the wrong txids counts for nothing, wherever it is in the log.
func TestVoidBatches(t *testing.T) {
	testkit.NotShort(t, "nodes restart many times")
	opts := broker.Options{Partitions: 1, Name: "n1", Cluster: "cantus"}
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	fill(t, nc)
	nc.Close()
	want := uint64(10)
	for round, first := range []uint64{1, 10, 99, 8} {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		appendEntry(t, dir, first, "void")
		n, nc = openNode(t, dir, opts)
		digest := info(t, nc, 0).Digest
		if r := appendTx(t, nc, "cantus.append.0", fmt.Sprint("after ", round), write, "void", mark, fmt.Sprint(want), appendLock, fmt.Sprint("a", round)); r.Error != nil || r.Txid != want+1 {
			t.Fatalf("round %d: %+v", round, r)
		}
		want++
		n, nc = reopen(t, n, dir, opts)
		if i := info(t, nc, 0); i.Digest == digest || i.HighWaterMark != want {
			t.Errorf("round %d: %+v", round, i)
		}
		for _, m := range checkLog(t, nc, 0) {
			if strings.Contains(string(m.Data), "void") {
				t.Fatalf("round %d: txid %s is of the void batch", round, m.Header.Get(subjects.HeaderTxid))
			}
		}
		if i := info(t, nc, 0); digestOf(t, i.BaseDigest, 0, stream(t, nc, "").batches) != i.Digest {
			t.Errorf("round %d: the batches have another digest than the partition", round)
		}
		for txid := uint64(1); txid <= want; txid++ {
			if m := ask(t, nc, "cantus.get.0", fmt.Sprintf(`{"txid":%d}`, txid)); number(t, m, subjects.HeaderTxid) != txid || string(m.Data) == "void" {
				t.Fatalf("round %d: get %d returned %s", round, txid, m.Data)
			}
		}
		if r := appendTx(t, nc, "cantus.append.0", "void", msgID, "void-id", last, "0"); r.Error == nil || r.Error.Reason != subjects.WrongLast {
			t.Fatalf("round %d: the void batch's message id counts: %+v", round, r)
		}
		nc.Close()
	}
	digest := ""
	n, nc = reopen(t, n, dir, opts)
	digest = info(t, nc, 0).Digest
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wal.Verify(dir, func(p wal.PartitionReport) {
		if p.Err != nil || p.LastTxid != want || p.Transactions != want || fmt.Sprintf("%x", p.Digest) != digest {
			t.Errorf("verify: %+v", p)
		}
	}); err != nil {
		t.Error(err)
	}
}

// TestStoredNamesWithCommas opens an older log, in which a lock name could hold
// a comma: it is read back, and counts in conflicts under that name.
func TestStoredNamesWithCommas(t *testing.T) {
	opts := broker.Options{Partitions: 1, Name: "n1", Cluster: "cantus"}
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	appendEntry(t, dir, 1, "old.a,b")
	n, nc = openNode(t, dir, opts)
	for range 2 {
		ms := checkLog(t, nc, 0)
		if len(ms) != 3 || ms[0].Header.Get(write) != "old.a,b" {
			t.Fatalf("%d transactions, the first with %v", len(ms), ms[0].Header)
		}
		if a := collect(t, nc, "cantus.read.0", `{"lock":"old.>"}`); len(a.transactions) != 3 {
			t.Errorf("a filter finds %d of 3", len(a.transactions))
		}
		e := wantRefusal(t, ask(t, nc, "cantus.append.0", "x", mark, "2", write, "old.>"), subjects.Conflict)
		if e.Txid != 3 {
			t.Errorf("conflict with %d, want 3", e.Txid)
		}
		// Sent today it is two names, of which nobody recorded either.
		if r := appendTx(t, nc, "cantus.append.0", "x", mark, "0", read, "old.a,b", last, "2"); r.Error == nil || r.Error.Reason != subjects.WrongLast {
			t.Errorf("%+v", r)
		}
		n, nc = reopen(t, n, dir, opts)
	}
	if r := appendTx(t, nc, "cantus.append.0", "x", mark, "0", read, "old.a,b"); r.Error != nil || r.Txid != 4 {
		t.Errorf("%+v", r)
	}
}

// appendEntry appends a batch to the log that no tenure would.
func appendEntry(t *testing.T, dir string, first uint64, lock string) {
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
	w.Begin(wal.Transactions, first, time.Now().UnixNano(), 0)
	for range 3 {
		w.Add(&wal.Transaction{
			Kind: []byte("tx"), Payload: []byte("void"), MsgID: []byte("void-id"),
			Locks: []wal.Lock{{Mode: wal.WriteLock, Name: []byte(lock)}},
		})
	}
	if err := l.Append(wal.Entry{Index: newest.Index + 1, Term: newest.Term, Data: w.Finish()}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// memoryArchive holds the batches of one partition, and returns a few at a
// time. It proves nothing: what it checks is what it is asked.
type memoryArchive struct {
	mu      sync.Mutex
	batches [][]byte
	err     error // of each request, if not nil
	base    wal.Base
	checks  int
}

func (a *memoryArchive) set(do func(a *memoryArchive)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do(a)
}

func (a *memoryArchive) Batches(_ context.Context, partition int, from uint64, base wal.Base) (all []wal.Batch, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	if partition != 0 || from > base.Txid {
		return nil, fmt.Errorf("asked for txid %d of partition %d, before %d", from, partition, base.Txid)
	}
	a.base = base
	for _, data := range a.batches {
		b, err := wal.ParseBatch(data)
		if err != nil {
			return nil, err
		}
		if b.Last() >= from && len(all) < 3 {
			all = append(all, b)
		}
	}
	return all, nil
}

// parsed returns all batches.
func (a *memoryArchive) parsed() (all []wal.Batch, err error) {
	for _, data := range a.batches {
		b, err := wal.ParseBatch(data)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, a.err
}

func (a *memoryArchive) Find(_ context.Context, _ int, at int64, from uint64, base wal.Base) (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all, err := a.parsed()
	for _, b := range all {
		for i := range b.Count {
			if txid := b.First + uint64(i); txid >= from && txid <= base.Txid && b.Time+int64(i) >= at {
				return txid, err
			}
		}
	}
	return 0, err
}

func (a *memoryArchive) Check(_ context.Context, _ int, base wal.Base, _ []string) (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks++
	all, err := a.parsed()
	if err != nil || base.Txid == 0 || len(all) == 0 {
		return 0, err
	}
	return all[0].First, nil
}

// readChained reads as a client does: it goes on where each answer says, up to
// the high-water mark.
func readChained(t *testing.T, nc *nats.Conn, subject, query string) (all []*nats.Msg) {
	t.Helper()
	for next, mark := uint64(1), uint64(1); next <= mark; {
		a := collect(t, nc, subject, fmt.Sprintf(`{"from":%d%s}`, next, query))
		if a.refusal != nil || a.next <= next {
			t.Fatalf("from %d: %v, next %d", next, a.refusal, a.next)
		}
		for _, m := range a.transactions {
			delete(m.Header, subjects.HeaderPrevious) // depends on where answers end
			all = append(all, m)
		}
		next, mark = a.next, a.mark
	}
	return all
}

// Reads of what was trimmed are answered from the archive, and are those of
// before the trim.
func TestReadsGoOnInTheArchive(t *testing.T) {
	a := &memoryArchive{}
	n, nc := one(t, broker.Options{Archive: a})
	const trimmed = 60
	for i := range trimmed {
		appendTx(t, nc, "cantus.append.0", strings.Repeat("p", 10*i), "Cantus-Kind", fmt.Sprint("k", i%3), subjects.HeaderAppendLock, fmt.Sprint("lock.", i%5))
	}
	batches, err := broker.Batches(n, 0)
	if err != nil {
		t.Fatal(err)
	}
	digest := info(t, nc, 0).Digest
	queries := []string{``, `,"max":7`, `,"max_bytes":900`, `,"kinds":["k1","tx"]`, `,"lock":"lock.3"`, `,"headers_only":true,"max":11`, `,"kinds":["nothing"]`, `,"wait":"1m","max":50`}
	read := func() (all [][]*nats.Msg) {
		for _, q := range queries {
			for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
				all = append(all, readChained(t, nc, subject, q))
			}
		}
		return all
	}
	want := read()
	if r := trim(t, nc, fmt.Sprintf(`{"before":%d}`, trimmed+1)); r.FirstTxid != trimmed+1 {
		t.Fatalf("trimmed: %+v", r)
	}
	appendTx(t, nc, "cantus.append.0", "later")
	appendTx(t, nc, "cantus.append.0", "later")

	refused := func(reason subjects.Reason, because string) {
		t.Helper()
		for subject, body := range map[string]string{"cantus.read.0": "", "cantus.get.0": `{"txid":5}`} {
			e := wantRefusal(t, ask(t, nc, subject, body), reason)
			if !strings.Contains(e.Message, because) || !strings.Contains(e.Message, "the oldest one kept is 61") {
				t.Errorf("%s is refused with %v", subject, e)
			}
		}
	}
	a.set(func(a *memoryArchive) { a.err = fmt.Errorf("%w: it ends before", broker.ErrNotArchived) })
	refused(subjects.Trimmed, "can't be read from the archive: it ends before")
	a.set(func(a *memoryArchive) { a.err = errors.New("secret") })
	refused(subjects.Unavailable, "can't be read at the moment")
	a.set(func(a *memoryArchive) { a.err, a.batches = nil, batches[20:] })
	refused(subjects.Trimmed, "it has not returned transaction")
	a.set(func(a *memoryArchive) { a.batches = batches })
	eventually(t, "info says that the archive is read", func() bool { i := info(t, nc, 0); return i.ArchivedFrom == 1 && i.NotArchived == "" })
	for i, got := range read() {
		q := queries[i/2]
		if later := len(got) - len(want[i]); later != 2 && (strings.Contains(q, "tx") || !strings.Contains(q, "kinds") && !strings.Contains(q, "lock")) || later < 0 {
			t.Fatalf("%s: %d transactions, and %d before", q, len(got), len(want[i]))
		}
		for j, m := range want[i] {
			if fmt.Sprint(got[j].Header) != fmt.Sprint(m.Header) || string(got[j].Data) != string(m.Data) {
				t.Fatalf("%s: transaction %d is %v, and was %v", q, j, got[j].Header, m.Header)
			}
		}
	}
	if a.base.Txid != trimmed || fmt.Sprintf("%x", a.base.Digest[:]) != digest {
		t.Errorf("the archive was asked for the log with %d, %x; it has %s", a.base.Txid, a.base.Digest[:], digest)
	}
	packed := collect(t, nc, "cantus.read.0", `{"packed":true}`)
	if packed.refusal != nil || packed.next < 4 {
		t.Errorf("packed: %v %v", packed.refusal, packed.next)
	}
	samePacked(t, nc, "cantus.read.0", `{"from":5,"max":20}`, collect(t, nc, "cantus.read.0", `{"from":5,"max":20}`))
	m := ask(t, nc, "cantus.get.0", `{"txid":5}`)
	if number(t, m, subjects.HeaderTxid) != 5 || string(m.Data) != string(want[0][4].Data) {
		t.Errorf("get: %v", m.Header)
	}
}

// Without an archive, what was trimmed is refused as before.
func TestReadsWithoutAnArchive(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fillTo(t, nc, 5)
	trim(t, nc, `{"before":6}`)
	for subject, body := range map[string]string{"cantus.read.0": "", "cantus.get.0": `{"txid":5}`} {
		if e := wantRefusal(t, ask(t, nc, subject, body), subjects.Trimmed); strings.Contains(e.Message, "archive") || e.FirstTxid != 6 {
			t.Errorf("%s is refused with %v", subject, e)
		}
	}
	if i := info(t, nc, 0); i.ArchivedFrom != 0 || i.NotArchived != "" {
		t.Errorf("info: %+v", i)
	}
}

// A time before the log's first transaction is searched in the archive, and
// the read goes on in the log.
func TestTimesAreSearchedInTheArchive(t *testing.T) {
	a := &memoryArchive{}
	n, nc := one(t, broker.Options{Archive: a})
	for range 60 {
		appendTx(t, nc, "cantus.append.0", "x")
	}
	all := timedLog(t, nc, 1)
	batches, err := broker.Batches(n, 0)
	if err != nil {
		t.Fatal(err)
	}
	trim(t, nc, `{"before":41}`)
	first := info(t, nc, 0).FirstTxid
	if first < 2 {
		t.Fatalf("the log begins with %d", first)
	}
	a.set(func(a *memoryArchive) { a.batches = batches })
	for i, x := range all {
		query := fmt.Sprintf(`,"from_time":%q`, x.at.Format(nanos))
		got := readChained(t, nc, "cantus.read.0", query)
		if len(got) != len(all)-i || number(t, got[0], subjects.HeaderTxid) != x.txid {
			t.Fatalf("from the time of %d: %d transactions, the first with %v", x.txid, len(got), got[0].Header)
		}
		if txid, refused := asOf(t, nc, x.at); refused != nil || *txid != x.txid {
			t.Fatalf("as of the time of %d: %v, %v", x.txid, txid, refused)
		}
	}
	if txid, refused := asOf(t, nc, all[0].at.Add(-1)); refused != nil || *txid != 0 {
		t.Errorf("as of a time before all: %v, %v", txid, refused)
	}
	a.set(func(a *memoryArchive) { a.err = errors.New("secret") })
	early := fmt.Sprintf(`{"from_time":%q}`, all[3].at.Format(nanos))
	if e := wantRefusal(t, ask(t, nc, "cantus.read.0", early), subjects.Unavailable); strings.Contains(e.Message, "secret") {
		t.Errorf("refused with %v", e)
	}
	a.set(func(a *memoryArchive) { a.err = fmt.Errorf("%w: nothing", broker.ErrNotArchived) })
	wantRefusal(t, ask(t, nc, "cantus.read.0", early), subjects.Trimmed)
}

// What info and the log say of the archive is what a check has found, and the
// log says it once.
func TestTheArchiveIsChecked(t *testing.T) {
	logged := new(buffer)
	a := &memoryArchive{}
	n, nc := one(t, broker.Options{Archive: a, Logger: slog.New(slog.NewTextHandler(logged, nil))})
	says := func(from uint64, why string, times int, text string) {
		t.Helper()
		eventually(t, fmt.Sprintf("info says %d, %q", from, why), func() bool {
			i := info(t, nc, 0)
			return i.ArchivedFrom == from && i.NotArchived == why && logged.count(text) >= times
		})
		if n := logged.count(text); n != times {
			t.Errorf("the log says %d times %q, want %d", n, text, times)
		}
	}
	says(0, "", 1, `msg="the archive can be read, and nothing was trimmed yet"`)
	for range 20 {
		appendTx(t, nc, "cantus.append.0", "x")
	}
	batches, err := broker.Batches(n, 0)
	if err != nil {
		t.Fatal(err)
	}
	trim(t, nc, `{"before":11}`)
	says(0, fmt.Sprintf("it has no transactions up to %d", info(t, nc, 0).FirstTxid-1), 1, `msg="the archive is not usable"`)
	set := func(batches [][]byte, err error) {
		a.set(func(a *memoryArchive) { a.batches, a.err = batches, err })
		for range 3 {
			ask(t, nc, "cantus.get.0", `{"txid":5}`)
		}
	}
	set(batches, nil)
	says(1, "", 1, `msg="the archive is usable"`)
	set(nil, fmt.Errorf("%w: another log", broker.ErrNotArchived))
	checks := func() (n int) {
		a.set(func(a *memoryArchive) { n = a.checks })
		return n
	}
	eventually(t, "the archive is checked", func() bool { return info(t, nc, 0).NotArchived == "another log" })
	for range 2 { // the log does not say the same again
		before := checks()
		ask(t, nc, "cantus.get.0", `{"txid":5}`)
		eventually(t, "the archive is checked again", func() bool { return checks() > before })
	}
	says(0, "another log", 1, `msg="the archive is not usable" partition=0 because="broker: not in the archive: another log"`)
	set(nil, errors.New("open /srv/secret: gone"))
	says(0, "it can't be read; the node's log says why", 1, `msg="the archive is not usable" partition=0 because="open /srv/secret: gone"`)
	set(batches, nil)
	says(1, "", 2, `msg="the archive is usable"`)
}

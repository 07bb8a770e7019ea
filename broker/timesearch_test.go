package broker_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// timed is what a plain scan knows of a partition's transactions.
type timed struct {
	txid uint64
	at   time.Time
	kind string
}

// timedLog returns all transactions that are kept.
func timedLog(t *testing.T, nc *nats.Conn, first uint64) (all []timed) {
	t.Helper()
	for _, m := range collect(t, nc, "cantus.read.0", fmt.Sprintf(`{"from":%d,"max":65536,"max_bytes":8388608}`, first)).transactions {
		at, err := time.Parse(nanos, m.Header.Get(subjects.HeaderTime))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, timed{number(t, m, subjects.HeaderTxid), at, m.Header.Get(subjects.HeaderKind)})
	}
	return all
}

// from returns the txids from a time and a txid on.
func from(all []timed, at time.Time, txid uint64, kind string) (ids []uint64) {
	for _, x := range all {
		if !x.at.Before(at) && x.txid >= txid && (kind == "" || kind == x.kind) {
			ids = append(ids, x.txid)
		}
	}
	return ids
}

// asOf asks for the last transaction at or before a time.
func asOf(t *testing.T, nc *nats.Conn, at time.Time) (txid *uint64, refused *subjects.Error) {
	t.Helper()
	var i subjects.PartitionInfo
	if err := json.Unmarshal(ask(t, nc, "cantus.info.0", fmt.Sprintf(`{"at":%q}`, at.Format(nanos))).Data, &i); err != nil {
		t.Fatal(err)
	}
	return i.AsOf, i.Error
}

// fillTimes appends batches of up to 40 transactions, with a cursor write after
// some.
func fillTimes(t *testing.T, nc *nats.Conn, random *rand.Rand, batches int) {
	t.Helper()
	for range batches {
		var frame []byte
		for i := range 1 + random.IntN(40) {
			frame = append(frame, item("x", subjects.HeaderKind, []string{"a", "b"}[i%2])...)
		}
		ask(t, nc, "cantus.batch.0", string(frame))
		if random.IntN(3) == 0 {
			ask(t, nc, "cantus.cursor.0.c", `{"txid":1}`)
		}
	}
}

// TestReadsFromATime compares reads from a time, and as of one, with a plain
// scan of the log: between trim points, within batches, before the first
// transaction and after the last one, and after a trim and a restart.
func TestReadsFromATime(t *testing.T) {
	opts := broker.Options{Partitions: 1}
	broker.PointEvery(&opts, 64)
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	random := rand.New(rand.NewPCG(7, 7))
	checkTimes(t, nc, random, time.Now(), time.Now().Add(time.Hour))
	fillTimes(t, nc, random, 40)
	all := timedLog(t, nc, 1)
	checkTimes(t, nc, random, all[0].at.Add(-time.Hour), all[len(all)-1].at.Add(time.Hour))

	trimmed := trim(t, nc, fmt.Sprintf(`{"before":%d}`, len(all)/2)).FirstTxid
	if trimmed < 2 {
		t.Fatalf("nothing was trimmed: the oldest is %d", trimmed)
	}
	last := all[trimmed-2].at // of what was trimmed
	for range 2 {
		checkTimes(t, nc, random, last.Add(1), all[len(all)-1].at.Add(time.Hour))
		for _, at := range []time.Time{last, last.Add(-1), all[0].at, all[0].at.Add(-time.Hour)} {
			for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
				a := collect(t, nc, subject, fmt.Sprintf(`{"from_time":%q}`, at.Format(nanos)))
				if a.refusal == nil {
					t.Fatalf("from %v: %d transactions, although some were trimmed", at, len(a.transactions))
				}
				if e := wantRefusal(t, a.refusal, subjects.Trimmed); e.FirstTxid != trimmed {
					t.Errorf("the oldest is said to be %d, want %d", e.FirstTxid, trimmed)
				}
			}
		}
		if txid, e := asOf(t, nc, last); e != nil || *txid != trimmed-1 {
			t.Errorf("at the time of the last trimmed one: %v, %v", txid, e)
		}
		if _, e := asOf(t, nc, last.Add(-1)); e == nil || e.Reason != subjects.Trimmed {
			t.Errorf("as of one that was trimmed: %v", e)
		}
		// A read from a txid that is kept need not know what was before.
		a := collect(t, nc, "cantus.read.0", fmt.Sprintf(`{"from":%d,"from_time":%q,"max":1}`, trimmed, all[0].at.Format(nanos)))
		if a.refusal != nil || a.next != trimmed+1 {
			t.Errorf("from %d on: next %d, %v", trimmed, a.next, a.refusal)
		}
		n, nc = reopen(t, n, dir, opts)
	}

	// Everything goes: then nothing is left to be found, and that is known.
	fillTimes(t, nc, random, 1)
	mark := info(t, nc, 0).HighWaterMark
	newest := timedLog(t, nc, mark)[0].at
	if first := trim(t, nc, fmt.Sprintf(`{"before":%d}`, mark+1)).FirstTxid; first != mark+1 {
		t.Fatalf("%d is left", first)
	}
	checkTimes(t, nc, random, newest.Add(1), newest.Add(time.Hour))
	if txid, e := asOf(t, nc, newest); e != nil || *txid != mark {
		t.Errorf("at the time of the last one: %v, %v", txid, e)
	}
	if _, e := asOf(t, nc, newest.Add(-1)); e == nil || e.Reason != subjects.Trimmed {
		t.Errorf("as of one before: %v", e)
	}
}

// checkTimes compares what is found from random times on, between two times,
// with a plain scan.
func checkTimes(t *testing.T, nc *nats.Conn, random *rand.Rand, low, high time.Time) {
	t.Helper()
	i := info(t, nc, 0)
	all := timedLog(t, nc, i.FirstTxid)
	var times []time.Time
	for range 60 {
		times = append(times, low.Add(time.Duration(random.Int64N(int64(high.Sub(low))+1))))
		if len(all) > 0 {
			times = append(times, all[random.IntN(len(all))].at.Add(timesNanosecond(random.IntN(3)-1)))
		}
	}
	times = append(times, low, high)
	for _, at := range times {
		if at.Before(low) || at.After(high) {
			continue
		}
		stamp, txid, kind := at.Format(nanos), i.FirstTxid+uint64(random.IntN(len(all)+1)), []string{"", "a", "b"}[random.IntN(3)]
		for _, c := range []struct {
			body string
			want []uint64
		}{
			{fmt.Sprintf(`{"from_time":%q,"max":65536}`, stamp), from(all, at, 0, "")},
			{fmt.Sprintf(`{"from_time":%q,"max":65536,"packed":true}`, stamp), from(all, at, 0, "")},
			{fmt.Sprintf(`{"from_time":%q,"max":65536,"from":%d}`, stamp, txid), from(all, at, txid, "")},
			{fmt.Sprintf(`{"from_time":%q,"max":65536,"kinds":[%q]}`, stamp, "k"+kind), nil},
			{fmt.Sprintf(`{"from_time":%q,"max":65536,"kinds":["a"]}`, stamp), from(all, at, 0, "a")},
		} {
			for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
				a := collect(t, nc, subject, c.body)
				if a.refusal != nil {
					t.Fatalf("%s %s: %s", subject, c.body, a.refusal.Data)
				}
				var got []uint64
				for _, m := range a.transactions {
					if m.Header.Get(subjects.HeaderTxid) != "" {
						got = append(got, number(t, m, subjects.HeaderTxid))
						continue
					}
					for _, m := range unpack(t, m) {
						got = append(got, number(t, m, subjects.HeaderTxid))
					}
				}
				if !slices.Equal(got, c.want) || a.next != i.HighWaterMark+1 {
					t.Fatalf("%s %s: %d, next %d; want %d, next %d", subject, c.body, got, a.next, c.want, i.HighWaterMark+1)
				}
			}
		}
		want := i.HighWaterMark - uint64(len(from(all, at.Add(1), 0, "")))
		if got, e := asOf(t, nc, at); e != nil || *got != want {
			t.Fatalf("as of %v: %v, %v; want %d", at, got, e, want)
		}
	}
}

// A read from a time that has not come yet waits, and passes over what is
// appended before that time.
func TestAReadFromATimeToCome(t *testing.T) {
	_, nc := one(t, broker.Options{})
	appendTx(t, nc, "cantus.append.0", "first")
	at := time.Now().Add(time.Hour)
	answered := begin(t, nc, "cantus.read.0", fmt.Sprintf(`{"from_time":%q,"wait":"1s"}`, at.Format(nanos)))
	appendTx(t, nc, "cantus.append.0", "too early")
	if a := answered(t); a.refusal != nil || len(a.transactions) > 0 || a.next < 2 {
		t.Errorf("%d transactions, next %d, %v", len(a.transactions), a.next, a.refusal)
	}
	// From one that comes while the read waits, it gets what is appended then.
	at = time.Now().Add(50 * time.Millisecond)
	answered = begin(t, nc, "cantus.read.0", fmt.Sprintf(`{"from_time":%q,"wait":"60s"}`, at.Format(nanos)))
	var want uint64
	eventually(t, "that time has come", func() bool {
		r := appendTx(t, nc, "cantus.append.0", "x")
		want = r.Txid
		return !r.Time.Before(at)
	})
	if a := answered(t); a.refusal != nil || len(a.transactions) != 1 || number(t, a.transactions[0], subjects.HeaderTxid) != want {
		t.Errorf("%d transactions, want %d: %v", len(a.transactions), want, a.refusal)
	}
}

// Times that are none are refused, and say what one looks like.
func TestTimesThatAreNone(t *testing.T) {
	_, nc := one(t, broker.Options{})
	for _, at := range []string{`""`, `"now"`, `"2026-11-01"`, `"2026-11-01T08:00:00"`, `1793520000`, `null`, `"9999-12-31T23:59:59Z"`} {
		for subject, field := range map[string]string{"cantus.read.0": "from_time", "cantus.replica.read.0": "from_time", "cantus.info.0": "at"} {
			wantRefusal(t, ask(t, nc, subject, fmt.Sprintf(`{%q:%s}`, field, at)), subjects.BadRequest)
		}
	}
	wantRefusal(t, ask(t, nc, "cantus.info", `{"at":"2026-11-01T08:00:00Z"}`), subjects.BadRequest)
}

package broker_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

func TestBatchOutcomes(t *testing.T) {
	_, nc := one(t, broker.Options{})
	appendTx(t, nc, "cantus.append.0", "first", msgID, "m0")
	m := ask(t, nc, "cantus.batch.0", string(slices.Concat(
		item("a", mark, "1", write, "x"),
		item("b"),
		item("c", mark, "1", write, "x"),          // conflicts with the first of this batch
		item("d", msgID, "m1"),                    //
		item("d", msgID, "m1"),                    // repeats the one before
		item("e", msgID, "m1"),                    // uses its id for something else
		item("first", msgID, "m0"),                // repeats one of before the batch
		item("f", write, "y"),                     // lacks its mark
		item("g", "Cantus-High-Water-Marks", "1"), // a typo
		item("h", last, "4"),                      // sees those before it
		item("i", last, "4"),                      //
		item("j", mark, "99"),                     //
		item(""),
	)))
	wantBody(t, m, `{"partition":0,"results":[`+
		`{"index":0,"count":2,"txid":2,"time":"T"},`+
		`{"index":2,"count":1,"error":{"code":409,"reason":"conflict","message":"write lock \"x\" was recorded by txid 2, after high-water mark 1: apply up to 2, recompute and send again","lock":"x","txid":2,"conflicts":[{"lock":"x","mode":"write","txid":2}]}},`+
		`{"index":3,"count":1,"txid":4,"time":"T"},`+
		`{"index":4,"count":1,"txid":4,"time":"T","duplicate":true},`+
		`{"index":5,"count":1,"error":{"code":422,"reason":"id_reused","message":"message id \"m1\" stands for another payload, of txid 4: use a new id","txid":4}},`+
		`{"index":6,"count":1,"txid":1,"time":"T","duplicate":true},`+
		`{"index":7,"count":1,"error":{"code":400,"reason":"bad_request","message":"Cantus-High-Water-Mark is missing: lock \"y\" is checked against it, so give the txid up to which you had applied the partition (0 for nothing yet)"}},`+
		`{"index":8,"count":1,"error":{"code":400,"reason":"bad_request","message":"header \"Cantus-High-Water-Marks\" is not known: an append may carry Cantus-High-Water-Mark, Cantus-Write-Lock, Cantus-Read-Lock, Cantus-Append-Lock, Cantus-Unless, Cantus-Kind, Nats-Msg-Id, Cantus-Session, Cantus-Session-Seq, Cantus-Cursor, Nats-Expected-Last-Sequence, Cantus-Not-After"}},`+
		`{"index":9,"count":1,"txid":5,"time":"T"},`+
		`{"index":10,"count":1,"error":{"code":409,"reason":"wrong_last","message":"expected last sequence 4 is not the high-water mark"}},`+
		`{"index":11,"count":1,"error":{"code":412,"reason":"ahead","message":"high-water mark 99 is ahead of partition 0, whose last txid is 5: it comes from another log, or this log has lost transactions; stop, and check that cluster and partition are the right ones"}},`+
		`{"index":12,"count":1,"txid":6,"time":"T"}],"high_water_mark":6}`)
	if len(m.Header) != 0 {
		t.Errorf("headers %v: refusals within results have none", m.Header)
	}
	if _, payloads := txids(t, checkLog(t, nc, 0)); strings.Join(payloads, ",") != "first,a,b,d,h," {
		t.Errorf("appended: %q", payloads)
	}
}

// The times that a run stands for are those that its transactions have.
func TestBatchRunsTellTimes(t *testing.T) {
	_, nc := one(t, broker.Options{})
	var payload []byte
	for i := range 1000 {
		payload = append(payload, item(fmt.Sprint(i))...)
	}
	var r subjects.BatchReply
	request(t, nc, message("cantus.batch.0", string(payload)), &r)
	if len(r.Results) != 1 || r.Results[0].Count != 1000 {
		t.Fatalf("results %+v", r.Results)
	}
	for i, m := range checkLog(t, nc, 0) {
		if want := r.Results[0].Time.Add(1 * timesNanosecond(i)).Format(nanos); m.Header.Get(subjects.HeaderTime) != want || string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("transaction %d: time %s, want %s", i, m.Header.Get(subjects.HeaderTime), want)
		}
	}
}

func TestMalformedBatches(t *testing.T) {
	_, nc := one(t, broker.Options{})
	good := item("good")
	frame := func(header, payload uint32, rest string) string {
		b := binary.BigEndian.AppendUint32(nil, header)
		return string(binary.BigEndian.AppendUint32(b, payload)) + rest
	}
	many := strings.Repeat(string(item("")), subjects.MaxBatch+1)
	for _, c := range []struct {
		name, payload string
		reason        subjects.Reason
		headers       []string
	}{
		{"empty", "", subjects.BadRequest, nil},
		{"lengths cut short", string(good) + "\x00\x00\x00", subjects.BadRequest, nil},
		{"content cut short", string(good) + string(good[:len(good)-1]), subjects.BadRequest, nil},
		{"length past the end", string(good) + frame(0, 1<<31, "x"), subjects.BadRequest, nil},
		{"lengths that overflow", string(good) + frame(1<<32-1, 1<<32-1, "xxxx"), subjects.BadRequest, nil},
		{"header length past the end", frame(5, 0, "abcd"), subjects.BadRequest, nil},
		{"a transaction's header on the message", string(good), subjects.BadRequest, []string{msgID, "m"}},
		{"an unknown header on the message", string(good), subjects.BadRequest, []string{"Cantus-X", "m"}},
		{"too many", many, subjects.TooLarge, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := ask(t, nc, "cantus.batch.0", c.payload, c.headers...)
			wantRefusal(t, m, c.reason)
			var r subjects.BatchReply
			if err := json.Unmarshal(m.Data, &r); err != nil || len(r.Results) != 0 || r.HighWaterMark == nil {
				t.Errorf("answer %s", m.Data)
			}
		})
	}
	var r subjects.BatchReply
	request(t, nc, message("cantus.batch.0", string(good)+frame(4, 1, "nonex")+string(good), "App", "passed over"), &r)
	if len(r.Results) != 3 || r.Results[1].Error == nil || r.Results[1].Error.Reason != subjects.BadRequest || r.Results[2].Txid != 2 {
		t.Errorf("a malformed header block of one: %+v", r.Results)
	}
	request(t, nc, message("cantus.batch.0", strings.Repeat(string(item("")), subjects.MaxBatch)), &r)
	if len(r.Results) != 1 || r.Results[0].Count != subjects.MaxBatch {
		t.Errorf("the largest batch: %+v", r.Results)
	}
	if ms := checkLog(t, nc, 0); len(ms) != 2+subjects.MaxBatch {
		t.Errorf("%d transactions", len(ms))
	}
}

// The answer to a batch of refusals is larger than the batch, and must still
// arrive.
func TestABatchOfConflictsIsAnswered(t *testing.T) {
	_, nc := one(t, broker.Options{})
	name := strings.TrimSuffix(strings.Repeat(strings.Repeat("é", 30)+".", 2), ".")
	appendTx(t, nc, "cantus.append.0", "x", appendLock, name)
	conflict := string(item("", mark, "0", write, name))
	count := min(subjects.MaxBatch, 1_000_000/len(conflict))
	var r subjects.BatchReply
	m := request(t, nc, message("cantus.batch.0", strings.Repeat(conflict, count)), &r)
	if len(r.Results) != count {
		t.Fatalf("%d results in %d bytes for %d transactions", len(r.Results), len(m.Data), count)
	}
	for i, run := range r.Results {
		if run.Index != i || run.Error == nil || run.Error.Reason != subjects.Conflict || run.Error.Code != 409 || run.Error.Txid != 1 {
			t.Fatalf("result %d: %+v", i, run)
		}
	}
	// So must the repeat of a large batch.
	var batch []byte
	for i := range subjects.MaxBatch {
		batch = append(batch, item("", msgID, fmt.Sprint(i))...)
	}
	for _, duplicate := range []bool{false, true} {
		request(t, nc, message("cantus.batch.0", string(batch)), &r)
		if n := len(r.Results); duplicate && n != subjects.MaxBatch || !duplicate && n != 1 || r.Results[n-1].Duplicate != duplicate {
			t.Fatalf("%d results, the last is %+v", n, r.Results[n-1])
		}
	}
	checkLog(t, nc, 0)
}

package bench

import (
	"encoding/json"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestScanUintReadsAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		data string
		want uint64
		ok   bool
	}{
		"reply":       {string(encode(t, subjects.Reply{Partition: 3, Txid: 813})), 813, true},
		"with space":  {`{"txid": 7}`, 7, true},
		"last":        {`"txid":18446744073709551615`, 18446744073709551615, true},
		"none":        {`{"partition":1}`, 0, false},
		"not a digit": {`{"txid":"1"}`, 0, false},
		"cut short":   {`{"txid":`, 0, false},
		"within text": {string(encode(t, map[string]string{"message": `"txid":5`})), 0, false},
	} {
		if got, ok := scanUint([]byte(test.data), txidKey); got != test.want || ok != test.ok {
			t.Errorf("%s: %d, %v; want %d, %v", name, got, ok, test.want, test.ok)
		}
	}
}

func TestScanRunsCountsWhatWasCommitted(t *testing.T) {
	busy := subjects.Errorf(subjects.Busy, "full")
	conflict := subjects.Errorf(subjects.Conflict, "no")
	conflict.Txid = 30
	data := encode(t, subjects.BatchReply{Results: []subjects.BatchRun{
		{Index: 0, Count: 5, Txid: 10}, {Index: 5, Count: 1, Error: busy}, {Index: 6, Count: 2, Txid: 15},
		{Index: 8, Count: 1, Error: conflict},
	}})
	if r := scanRuns(data); r != (runs{committed: 7, refused: 1, busy: true, mark: 30}) {
		t.Errorf("%+v; want 7 committed, 1 refused, others busy, mark 30", r)
	}
	if r := scanRuns(encode(t, subjects.BatchReply{Error: busy})); r != (runs{busy: true}) {
		t.Errorf("refused as a whole: %+v; want busy", r)
	}
	if r := scanRuns([]byte("{")); r != (runs{}) {
		t.Errorf("broken: %+v; want nothing", r)
	}
}

func TestAppendAnswersAreUnderstood(t *testing.T) {
	a := &cantusAppend{marks: []uint64{5}}
	s := &pending{msg: &nats.Msg{Subject: "cantus.append.0"}}
	refusal := func(code string, e *subjects.Error) *nats.Msg {
		return &nats.Msg{Header: nats.Header{subjects.HeaderErrorCode: {code}}, Data: encode(t, subjects.Reply{Error: e})}
	}
	if o := a.judge(s, &nats.Msg{Data: encode(t, subjects.Reply{Txid: 9})}); o != (outcome{done: 1}) || a.marks[0] != 9 {
		t.Errorf("success: %+v, mark %d", o, a.marks[0])
	}
	conflict := subjects.Errorf(subjects.Conflict, "no")
	conflict.Txid = 12
	if o := a.judge(s, refusal("409", conflict)); o != (outcome{refused: true}) || a.marks[0] != 12 {
		t.Errorf("conflict: %+v, mark %d", o, a.marks[0])
	}
	if o := a.judge(s, refusal("429", subjects.Errorf(subjects.Busy, "full"))); o != (outcome{busy: true}) {
		t.Errorf("busy: %+v", o)
	}
	if o := a.judge(s, refusal("400", subjects.Errorf(subjects.BadRequest, "bad"))); o.err == nil {
		t.Errorf("bad request: %+v, want an error", o)
	}
	if o := a.judge(s, &nats.Msg{Data: []byte("?")}); o.err == nil {
		t.Errorf("nonsense: %+v, want an error", o)
	}
}

func TestReadsGoOnWhereTheyWereCutShort(t *testing.T) {
	r := &cantusRead{subject: "cantus.read.0", first: 1, last: 25, next: 1, max: 10, maxBytes: 1000}
	a, b := &pending{msg: &nats.Msg{}}, &pending{msg: &nats.Msg{}}
	end := func(next string) *nats.Msg {
		return &nats.Msg{Header: nats.Header{"Status": {"204"}, subjects.HeaderNext: {next}}}
	}
	want := func(s *pending, from uint64, most int) {
		t.Helper()
		var req subjects.ReadRequest
		if err := json.Unmarshal(s.msg.Data, &req); err != nil || req.From != from || req.Max != most {
			t.Errorf("asked for %s (%v), want %d from %d", s.msg.Data, err, most, from)
		}
	}
	r.compose(a)
	want(a, 1, 10)
	r.compose(b)
	want(b, 11, 10)
	if o := r.judge(a, &nats.Msg{Header: nats.Header{subjects.HeaderTxid: {"1"}}}); o != (outcome{done: 1, more: true}) {
		t.Errorf("transaction: %+v", o)
	}
	if o := r.judge(a, end("5")); o != (outcome{again: true}) {
		t.Errorf("cut short: %+v", o)
	}
	a.again = true
	r.compose(a)
	want(a, 5, 6)
	if o := r.judge(a, end("11")); o != (outcome{}) {
		t.Errorf("end: %+v", o)
	}
	a.again = false
	r.compose(a)
	want(a, 21, 5)
	r.compose(b)
	want(b, 1, 10)
	if o := r.judge(b, end("1")); o.err == nil {
		t.Errorf("no way forward: %+v, want an error", o)
	}
}

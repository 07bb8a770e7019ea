package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// alternating are headers of transactions that record "x" and "y" by turns,
// never both: the longest search there is looks for both.
func alternating(i int) string { return "Cantus-Append-Lock: " + string('x'+rune(i%2)) + "\r\n" }

const both = `{"locks":["x","y"]}`

// decodeIn decodes a request of a message.
func decodeIn(t *testing.T, m *natslink.Message, headers string) *request {
	t.Helper()
	r := &request{message: m}
	if err := r.decode([]byte("NATS/1.0\r\n"+headers+"\r\n"), nil, 1<<20); err != nil {
		t.Fatal(err)
	}
	return r
}

// certifierWith returns a certifier that remembers some transactions.
func certifierWith(t *testing.T, n int, headers func(i int) string) *certifier {
	t.Helper()
	c := newCertifier(lockmgr.Options{}, time.Now)
	var rs []*request
	for i := range n {
		rs = append(rs, decodeIn(t, &natslink.Message{}, headers(i)))
	}
	out := c.certify(1, rs)
	b, err := wal.ParseBatch(out.data)
	if err != nil || len(out.passed) != n {
		t.Fatalf("%d of %d pass: %v", len(out.passed), n, err)
	}
	if _, _, err := c.record(out.data, b); err != nil {
		t.Fatal(err)
	}
	return c
}

// A search that takes long leaves the certifier, which others wait for. One
// that does not stays, also behind it.
func TestALongSearchLeavesTheCertifier(t *testing.T) {
	c := certifierWith(t, 8000, alternating)
	many := "Cantus-High-Water-Mark: 0\r\nCantus-Unless: [" + strings.Repeat(both+",", 15) + both + "]\r\n"
	long, short := &natslink.Message{}, &natslink.Message{}
	out := c.certify(1, []*request{
		decodeIn(t, long, ""), decodeIn(t, long, many),
		decodeIn(t, short, "Cantus-High-Water-Mark: 7900\r\nCantus-Unless: "+both+"\r\n"),
	})
	if len(out.parked) != 1 || out.parked[0] != long || len(out.passed) != 1 || out.passed[0].message != short {
		t.Fatalf("%d messages leave, %d transactions pass, %d do not", len(out.parked), len(out.passed), len(out.notPassed))
	}
	// What the log has of it is behind it now.
	again := decodeIn(t, long, many)
	need := c.unremembered(again)
	if len(need.items) != 16 {
		t.Fatalf("the log is searched for items %v", need.items)
	}
	again.finding = &logFinding{checks: 1, through: 8000, unless: make([]subjects.MatchedCondition, 16)}
	if out := c.certify(1, []*request{again}); len(out.passed) != 1 {
		t.Errorf("after the search: %+v", out)
	}
	// A search that does not get shorter ends after all.
	again = decodeIn(t, long, many)
	again.finding = &logFinding{checks: maxLogChecks, unless: make([]subjects.MatchedCondition, 16)}
	out = c.certify(1, []*request{again})
	if len(out.notPassed) != 1 || out.notPassed[0].matched == nil || !out.notPassed[0].matched.Forgotten {
		t.Errorf("after %d searches: %+v", maxLogChecks, out)
	}
}

// The transactions of a message can't make the certifier compare each with all
// before it.
func TestAMessageWhoseTransactionsAreComparedWithEachOther(t *testing.T) {
	c := certifierWith(t, 1, alternating)
	m := &natslink.Message{}
	var rs []*request
	const count, items = 4000, 4
	for i := range count {
		rs = append(rs, decodeIn(t, m, fmt.Sprintf("%sCantus-High-Water-Mark: 1\r\nCantus-Unless: [%s%s]\r\n", alternating(i+1), strings.Repeat(both+",", items-1), both)))
	}
	out := c.certify(1, rs)
	if len(out.passed) < 50 || len(out.notPassed) < count/4 || len(out.passed)+len(out.notPassed) != count {
		t.Fatalf("%d pass, %d do not, %d messages leave", len(out.passed), len(out.notPassed), len(out.parked))
	}
	for _, j := range out.notPassed {
		if m := j.matched; m == nil || !m.Forgotten || m.Txid != j.last || j.verdict.DependsOn != m.Txid {
			t.Fatalf("%+v: %+v", j, m)
		}
	}
}

// What the log has a match for is refused because of that, and not because of a
// lock that the leader has forgotten since the search, and that nobody may have
// recorded.
func TestAMatchIsTheAnswerAndNotAForgottenLock(t *testing.T) {
	c := newCertifier(lockmgr.Options{Locks: 1}, time.Now)
	commit := func(lock string) {
		out := c.certify(1, []*request{decodeIn(t, &natslink.Message{}, "Cantus-Append-Lock: "+lock+"\r\n")})
		recordCertified(t, c, out.data)
	}
	for _, lock := range []string{"x", "y", "z"} {
		commit(lock)
	}
	send := func(locks ...lockmgr.Recorder) judged {
		r := &request{message: &natslink.Message{}, finding: &logFinding{
			checks: 1, through: 3, locks: locks, unless: []subjects.MatchedCondition{{Item: 0, Txid: 1}},
		}}
		header := "NATS/1.0\r\nCantus-High-Water-Mark: 0\r\nCantus-Write-Lock: own\r\nCantus-Unless: {\"locks\":[\"x\"]}\r\n\r\n"
		if err := r.decode([]byte(header), nil, 1<<20); err != nil {
			t.Fatal(err)
		}
		out := c.certify(1, []*request{r})
		if len(out.notPassed) != 1 {
			t.Fatalf("%d pass, %d do not, %d messages leave", len(out.passed), len(out.notPassed), len(out.parked))
		}
		return out.notPassed[0]
	}
	for range 2 {
		if j := send(lockmgr.Recorder{}); j.matched == nil || j.matched.Txid != 1 || j.matched.Forgotten || j.verdict.Conflicts != nil {
			t.Errorf("floor %d: %+v, %+v", c.stats().Floor, j.verdict, j.matched)
		}
		commit("v") // after the search
		commit("w")
	}
	// A lock that the log has a recorder of comes first.
	if j := send(lockmgr.Recorder{Txid: 2}); j.matched != nil || len(j.verdict.Conflicts) != 1 || !j.verdict.Conflicts[0].Forgotten {
		t.Errorf("floor %d: %+v, %+v", c.stats().Floor, j.verdict, j.matched)
	}
}

// What the certifier knows of a session's own lock may be forgotten when an
// earlier transaction of the session enters: one with an older mark behind it
// is then looked up, and not refused for what nobody may have recorded.
func TestAnOlderMarkBehindANewerOneOfItsSessionIsLookedUp(t *testing.T) {
	c := newCertifier(lockmgr.Options{Locks: 2}, time.Now)
	number := func(seq, mark int) *request {
		return decodeIn(t, &natslink.Message{}, fmt.Sprintf("Cantus-Session: s\r\nCantus-Session-Seq: %d\r\nCantus-High-Water-Mark: %d\r\nCantus-Write-Lock: own\r\n", seq, mark))
	}
	commit := func(rs ...*request) {
		t.Helper()
		out := c.certify(1, rs)
		if len(out.passed) != len(rs) {
			t.Fatalf("%d of %d pass, %d messages leave", len(out.passed), len(rs), len(out.parked))
		}
		recordCertified(t, c, out.data)
	}
	other := func(lock string) *request {
		return decodeIn(t, &natslink.Message{}, "Cantus-Append-Lock: "+lock+"\r\n")
	}
	commit(other("a"), other("b"))
	commit(number(1, 2), other("c"))
	commit(number(2, 2), other("d"))
	if floor := c.table.Floor(); floor <= 2 {
		t.Fatalf("the floor is %d", floor)
	}
	third, fourth := number(3, 6), number(4, 2)
	out := c.certify(1, []*request{third, fourth})
	if len(out.passed) != 1 || len(out.parked) != 1 || out.parked[0] != fourth.message {
		t.Fatalf("%d pass, %d messages leave, refused is %+v", len(out.passed), len(out.parked), out.notPassed)
	}
	recordCertified(t, c, out.data)
	if need := c.unremembered(fourth); len(need.unknown) != 1 {
		t.Fatalf("to be looked up: %+v", need)
	}
	again := number(4, 2)
	again.finding = &logFinding{checks: 1, through: c.table.Committed(), locks: make([]lockmgr.Recorder, 1), unless: []subjects.MatchedCondition{}}
	again.finding.apply(&again.cert)
	commit(again)
}

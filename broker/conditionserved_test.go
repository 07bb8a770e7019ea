package broker_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// appendOne appends a transaction and returns the reply.
func appendOne(t *testing.T, nc *nats.Conn, headers ...string) subjects.Reply {
	t.Helper()
	r, err := tryAppend(nc, "x", headers...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The examples of the contract.
func TestConditions(t *testing.T) {
	_, nc := one(t, broker.Options{})
	appendOne(t, nc, "Cantus-Kind", "enrolled", "Cantus-Append-Lock", "course.c1, student.s1")
	appendOne(t, nc, "Cantus-Kind", "enrolled", "Cantus-Append-Lock", "course.c2, student.s2")
	appendOne(t, nc, "Cantus-Kind", "renamed", "Cantus-Append-Lock", "course.c1")
	for _, c := range []struct {
		unless []string
		mark   string
		match  []uint64 // one of them is named
	}{
		{[]string{`{"kinds":["enrolled"],"locks":["course.c1"]}`}, "1", nil},
		{[]string{`{"locks":["course.c1","student.s2"]}`}, "0", nil},
		{[]string{`{"kinds":["enrolled"],"locks":["student.>"]}`}, "1", []uint64{2}},
		{[]string{`{"kinds":["renamed"]}`, `{"locks":["student.s1"]}`}, "0", []uint64{3, 1}},
		{[]string{`[{"kinds":["renamed"]},{"locks":["student.s1"]}]`}, "0", []uint64{3, 1}},
		{[]string{` [ {"locks" : ["student.s\u0031"] } ] `}, "0", []uint64{1}},
		{[]string{`{"locks":["student.s\u0031"]}`}, "0", []uint64{1}},
		{[]string{`{"locks":[">"]}`}, "2", []uint64{3}},
		{[]string{`{"kinds":["enrolled","renamed"],"locks":["course.>","course.c1"]}`}, "0", []uint64{3}},
	} {
		headers := []string{"Cantus-High-Water-Mark", c.mark, "Cantus-Kind", "tried"}
		for _, item := range c.unless {
			headers = append(headers, "Cantus-Unless", item)
		}
		r := appendOne(t, nc, headers...)
		switch e := r.Error; {
		case e == nil && c.match != nil:
			t.Errorf("%s at %s commits as %d", c.unless, c.mark, r.Txid)
		case e != nil && c.match == nil:
			t.Errorf("%s at %s: %s", c.unless, c.mark, e.Message)
		case e != nil && (e.Reason != subjects.Conflict || e.Unless == nil || e.Lock != "" || e.Conflicts != nil || e.Txid != e.Unless.Txid || e.Unless.Forgotten):
			t.Errorf("%s at %s: %+v", c.unless, c.mark, e)
		case e != nil && (e.Unless.Item >= len(c.match) || e.Txid != c.match[e.Unless.Item]):
			t.Errorf("%s at %s: item %d matches %d, want one of %v", c.unless, c.mark, e.Unless.Item, e.Txid, c.match)
		}
	}
}

func TestMalformedConditions(t *testing.T) {
	_, nc := one(t, broker.Options{})
	many := "[" + strings.Repeat(`{"kinds":["a"]},`, subjects.MaxUnless) + `{"kinds":["a"]}]`
	locks := `{"locks":[` + strings.Repeat(`"a",`, subjects.MaxQueryLocks) + `"a"]}`
	for value, text := range map[string]string{
		``:                              "it is empty",
		`a`:                             "give an item, such as",
		`{}`:                            "has neither kinds nor locks",
		`[]`:                            "has no item",
		`{"locks":["a"]},{"locks":[]}`:  "give an item, such as",
		`{"locks":["a"],"locks":["b"]}`: `field "locks" is given twice`,
		`{"Locks":["a"]}`:               `unknown field "Locks"`,
		`{"kind":"a"}`:                  `unknown field "kind"`,
		`{"kinds":["a"],"locks":["]}`:   "give an item, such as",
		`{"kinds":["a"],"locks":null}`:  "null in field",
		`{"kinds":["a b"]}`:             "white space",
		`{"locks":["a..b"]}`:            "a..b",
		`{"locks":[""]}`:                "empty",
		`{"locks":["a"]}}`:              "give an item, such as",
		`{"locks":["a"]} x`:             "give an item, such as",
		`{"locks":["a"],"x":1}`:         `unknown field "x"`,
		many:                            "more than 16 items",
		locks:                           "at most 16 are allowed",
	} {
		r := appendOne(t, nc, "Cantus-High-Water-Mark", "0", "Cantus-Unless", value)
		if r.Error == nil || r.Error.Reason != subjects.BadRequest || !strings.Contains(r.Error.Message, text) {
			t.Errorf("%s: %+v, want %q", value, r.Error, text)
		}
	}
	if r := appendOne(t, nc, "Cantus-Unless", `{"locks":["a"]}`); r.Error == nil || !strings.Contains(r.Error.Message, "Cantus-High-Water-Mark is missing") {
		t.Errorf("without a mark: %+v", r.Error)
	}
	if r := appendOne(t, nc, "cantus-unless", `{"locks":["a"]}`); r.Error == nil || r.Error.Reason != subjects.BadRequest {
		t.Errorf("in small letters: %+v", r.Error)
	}
}

// Verdicts are those of a model that looks through the whole log, for marks of
// any age, although the node's table knows three locks, with and without an
// index, across a restart and trims.
func TestConditionsOfAnyAge(t *testing.T) {
	for name, opts := range map[string]broker.Options{"index": {MaxLocks: 3}, "no index": {MaxLocks: 3, NoIndex: true}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			opts.Partitions = 1
			n, nc := openNode(t, dir, opts)
			m := ageModel{rand: rand.New(rand.NewPCG(7, 7))}
			for round := range 3 {
				for range 120 {
					m.try(t, nc)
				}
				if round == 1 {
					m.first = uint64(len(m.log)) / 2
					if a := askServed(t, nc, "cantus.admin.trim.0", fmt.Sprintf(`{"before":%d}`, m.first)); !strings.Contains(string(a.Data), fmt.Sprintf(`"first_txid":%d`, m.first)) {
						t.Fatalf("%s", a.Data)
					}
				}
				n, nc = reopen(t, n, dir, opts)
			}
			if m.old == 0 || m.refused == 0 || m.passed == 0 || m.trimmed == 0 {
				t.Errorf("%d transactions with old marks passed, %d were refused, %d because of what was trimmed; %d in all passed", m.old, m.refused, m.trimmed, m.passed)
			}
		})
	}
}

type ageModel struct {
	rand                 *rand.Rand
	log                  []ageEvent
	first                uint64 // of the log, 0 for 1
	old, refused, passed int
	trimmed              int // refused because of what was trimmed
}

type ageEvent struct {
	kind  string
	locks []string
}

// newest returns the newest transaction after a mark that has a kind, if it is
// not "", and locks that overlap all of some.
func (m *ageModel) newest(mark uint64, kind string, locks ...string) uint64 {
	for txid := uint64(len(m.log)); txid > mark; txid-- {
		e := m.log[txid-1]
		all := kind == "" || e.kind == kind
		for _, l := range locks {
			has := false
			for _, own := range e.locks {
				has = has || subjects.Overlap(l, own)
			}
			all = all && has
		}
		if all {
			return txid
		}
	}
	return 0
}

func (m *ageModel) try(t *testing.T, nc *nats.Conn) {
	t.Helper()
	lock := func() string { return fmt.Sprintf("%c.%d", 'a'+rune(m.rand.IntN(3)), m.rand.IntN(40)) }
	e := ageEvent{kind: string('K' + rune(m.rand.IntN(3))), locks: []string{lock(), lock()}}
	mark := m.rand.Uint64N(uint64(len(m.log)) + 1)
	write, a, b := lock(), lock(), lock()
	if m.rand.IntN(4) == 0 {
		a = "a.>"
	}
	headers := []string{"Cantus-Kind", e.kind, "Cantus-High-Water-Mark", fmt.Sprint(mark), appendLock, strings.Join(e.locks, ",")}
	var byLock, byItem uint64
	if which := m.rand.IntN(3); which > 0 {
		headers = append(headers, subjects.HeaderUnless, fmt.Sprintf(`{"kinds":["K"],"locks":["%s","%s"]}`, a, b))
		byItem = m.newest(mark, "K", a, b)
		if which == 2 {
			write = ""
		}
	}
	if write != "" {
		headers = append(headers, subjects.HeaderWriteLock, write)
		byLock = m.newest(mark, "", write)
		e.locks = append(e.locks, write)
	}
	r := appendOne(t, nc, headers...)
	trimmed := m.first > 1 && mark+1 < m.first
	switch err := r.Error; {
	case err == nil && (byLock > 0 || byItem > 0):
		t.Fatalf("%s, and %s with %s, at %d: commits as %d, and %d and %d conflict", write, a, b, mark, r.Txid, byLock, byItem)
	case err == nil:
		m.log = append(m.log, e)
		m.passed++
		if uint64(len(m.log)) > mark+5 {
			m.old++
		}
	case err.Reason != subjects.Conflict:
		t.Fatal(err)
	case err.Unless != nil:
		m.refused++
		if err.Unless.Forgotten {
			m.trimmed++
		}
		if byItem != err.Txid && !(trimmed && err.Unless.Forgotten && err.Txid < m.first) {
			t.Fatalf("%s with %s at %d: %d is named, want %d: %+v", a, b, mark, err.Txid, byItem, err)
		}
	default:
		m.refused++
		if err.Conflicts[0].Forgotten {
			m.trimmed++
		}
		if byLock != err.Txid && !(trimmed && err.Conflicts[0].Forgotten && err.Txid < m.first) {
			t.Fatalf("%s at %d: %d is named, want %d: %+v", write, mark, err.Txid, byLock, err)
		}
	}
}

// A search that would go too far is refused, and says so.
func TestAConditionThatIsNotSearchedFor(t *testing.T) {
	testkit.NotShort(t, "100 MB are appended")
	_, nc := one(t, broker.Options{NoIndex: true, MaxLocks: 1})
	payload := strings.Repeat("x", 900_000)
	for i := range 100 {
		m := ask(t, nc, "cantus.append.0", payload, "Cantus-Append-Lock", fmt.Sprint("l.", i))
		if strings.Contains(string(m.Data), "error") {
			t.Fatalf("%s", m.Data)
		}
	}
	r := appendOne(t, nc, "Cantus-High-Water-Mark", "0", "Cantus-Unless", `{"kinds":["none"]}`)
	if e := r.Error; e == nil || e.Unless == nil || !e.Unless.Forgotten || e.Txid < 10 || e.Txid > 60 {
		t.Fatalf("%+v", e)
	}
	mark := fmt.Sprint(r.Error.Txid)
	if r := appendOne(t, nc, "Cantus-High-Water-Mark", mark, "Cantus-Unless", `{"kinds":["none"]}`); r.Error != nil {
		t.Fatalf("at %s: %+v", mark, r.Error)
	}
	r = appendOne(t, nc, "Cantus-High-Water-Mark", "0", "Cantus-Read-Lock", "none")
	if e := r.Error; e == nil || len(e.Conflicts) != 1 || !e.Conflicts[0].Forgotten || e.Txid < 10 || e.Txid > 60 {
		t.Fatalf("%+v", e)
	}
}

// A batch message whose transactions have old marks is decided as a whole, in
// its order, and a malformed one of them is counted once.
func TestABatchWithOldMarks(t *testing.T) {
	n, nc := one(t, broker.Options{MaxLocks: 1})
	for _, l := range []string{"a", "b", "c"} {
		appendTx(t, nc, "cantus.append.0", "x", appendLock, l)
	}
	body := slices.Concat(item("1", mark, "0", write, "d"), item("2", mark, "none"), item("3", mark, "1", write, "b"), item("4", mark, "0", read, "d"), item("5"))
	m := ask(t, nc, "cantus.batch.0", string(body))
	var r subjects.BatchReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, run := range r.Results {
		text := fmt.Sprint(run.Index, " ", run.Txid)
		if run.Error != nil {
			text = fmt.Sprint(run.Index, " ", run.Error.Reason, " ", run.Error.Txid)
		}
		got = append(got, text)
	}
	if want := []string{"0 4", "1 bad_request 0", "2 conflict 2", "3 conflict 4", "4 5"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if all := broker.Metric(t, n, "cantus_requests_refused_total", "bad_request"); all != 1 {
		t.Errorf("a malformed transaction counts %v times", all)
	}
}

// A search covers what was applied when it began, and no more: what comes after
// it is for the certifier.
func TestHowFarALogCheckLooks(t *testing.T) {
	n, nc := one(t, broker.Options{MaxLocks: 1})
	for _, l := range []string{"a", "b", "c"} {
		appendTx(t, nc, "cantus.append.0", "x", appendLock, l)
	}
	block := subjects.AppendField(subjects.AppendBlockStart(nil), mark, "0")
	block = subjects.AppendField(block, write, "d")
	if through := broker.CheckLog(t, n, 0, subjects.AppendBlockEnd(block)); through != 3 {
		t.Errorf("through %d of 3", through)
	}
}

// A message has so much of the log searched and no more, so that others get
// their turn.
func TestHowMuchALogCheckSearches(t *testing.T) {
	n, nc := one(t, broker.Options{MaxLocks: 1})
	for _, l := range []string{"a", "b", "c"} {
		appendTx(t, nc, "cantus.append.0", "x", appendLock, l)
	}
	var body []byte
	for range 100 {
		body = append(body, item("1", mark, "0", write, "d")...)
	}
	if clear := broker.CheckBatch(t, n, 0, body, 1<<30); clear != 100 {
		t.Errorf("nothing was found for %d transactions of 100", clear)
	}
	if clear := broker.CheckBatch(t, n, 0, body, 100_000); clear < 5 || clear > 50 {
		t.Errorf("nothing was found for %d transactions of 100 before the end", clear)
	}
}

// A search without an index has few large transactions in memory at a time.
func TestASearchOfLargeTransactions(t *testing.T) {
	n, nc := one(t, broker.Options{NoIndex: true})
	payload := strings.Repeat("x", 900_000)
	for range 20 {
		appendTx(t, nc, "cantus.append.0", payload, appendLock, "a")
	}
	if bytes := broker.LargestWindow(t, n, 0); bytes < 900_000 || bytes > 6_000_000 {
		t.Errorf("%d bytes", bytes)
	}
}

// One of those that claim a name at once gets it, although their marks are from
// before all that the node remembers.
func TestOneOfThoseThatClaimANameGetsIt(t *testing.T) {
	n, nc := one(t, broker.Options{MaxLocks: 1})
	const names, claims = 40, 6
	for _, header := range []string{write, subjects.HeaderUnless} {
		var claimed, refused atomic.Int64
		var wg sync.WaitGroup
		for range claims {
			wg.Go(func() {
				for i := range names {
					name := fmt.Sprint(header, ".", i)
					value := name
					if header != write {
						value = fmt.Sprintf(`{"kinds":["claimed"],"locks":[%q]}`, name)
					}
					r, err := tryAppend(nc, "x", mark, "0", header, value, appendLock, name, "Cantus-Kind", "claimed")
					switch {
					case err != nil:
						t.Error(err)
					case r.Error == nil:
						claimed.Add(1)
					case r.Error.Reason == subjects.Conflict:
						refused.Add(1)
					default:
						t.Error(r.Error)
					}
				}
			})
		}
		wg.Wait()
		if claimed.Load() != names || refused.Load() != names*(claims-1) {
			t.Errorf("%s: %d claims of %d names succeed, %d are refused", header, claimed.Load(), names, refused.Load())
		}
	}
	if got := broker.Metric(t, n, "cantus_conflicts_forgotten_total"); got != 0 {
		t.Errorf("%v conflicts may be false", got)
	}
}

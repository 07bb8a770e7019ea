package broker_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

func TestReadsByName(t *testing.T) {
	for name, opts := range map[string]broker.Options{"index": {}, "no index": {NoIndex: true}} {
		t.Run(name, func(t *testing.T) {
			_, nc := one(t, opts)
			fill(t, nc)
			for _, c := range []struct {
				body string
				want []uint64
				next uint64
			}{
				{`{"query":[{"kinds":["a"]}]}`, []uint64{1, 3, 5, 7, 9}, 11},
				{`{"query":[{"locks":["l.0"]},{"locks":["l.1"]}]}`, []uint64{1, 7}, 11},
				{`{"query":[{"locks":["l.0","l.1"]}]}`, nil, 11},
				{`{"query":[{"locks":["l.0","l.>",">"]}]}`, []uint64{1}, 11},
				{`{"query":[{"kinds":["b"],"locks":["l.0"]},{"kinds":["a"],"locks":["l.2"]}]}`, []uint64{3}, 11},
				{`{"query":[{"kinds":["a","b"],"locks":["l.0"]}],"lock":"l.1"}`, nil, 11},
				{`{"query":[{"locks":["l.>"]}],"max":2}`, []uint64{1, 3}, 4},
				{`{"query":[]}`, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 11},
				{`{"newest_first":true}`, []uint64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 0},
				{`{"newest_first":true,"max":3}`, []uint64{10, 9, 8}, 7},
				{`{"newest_first":true,"from":2}`, []uint64{2, 1}, 0},
				{`{"newest_first":true,"max_bytes":25}`, []uint64{10, 9}, 8},
				{`{"newest_first":true,"lock":"l.>","max":2}`, []uint64{9, 7}, 6},
				{`{"newest_first":true,"kinds":["a"],"from":6}`, []uint64{5, 3, 1}, 0},
				{`{"newest_first":true,"query":[{"locks":["l.0"]}]}`, []uint64{1}, 0},
				{`{"newest_first":true,"query":[{"locks":["none"]}]}`, nil, 0},
			} {
				for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
					a := collect(t, nc, subject, c.body)
					if a.refusal != nil {
						t.Errorf("%s %s: refused: %s", subject, c.body, a.refusal.Data)
						continue
					}
					if ids, _ := txids(t, a.transactions); !slices.Equal(ids, c.want) || a.next != c.next || a.mark != 10 {
						t.Errorf("%s %s: %v, next %d, mark %d; want %v, next %d", subject, c.body, ids, a.next, a.mark, c.want, c.next)
					}
					samePacked(t, nc, subject, c.body, a)
				}
			}
		})
	}
}

func TestRefusedReadsByName(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	many := func(n int, of string) string { return strings.TrimSuffix(strings.Repeat(of+",", n), ",") }
	for body, want := range map[string]string{
		`{"query":[{}]}`: "query[0] has neither kinds nor locks",
		`{"query":[{"locks":["a"]},{"kinds":[],"locks":[]}]}`:               "query[1] has neither",
		`{"query":[{"locks":["a..b"]}]}`:                                    "a..b",
		`{"query":[{"kinds":["a b"]}]}`:                                     "a b",
		`{"query":[{"names":["a"]}]}`:                                       "names",
		`{"query":{"locks":["a"]}}`:                                         "query",
		`{"query":[` + many(17, `{"locks":["a"]}`) + `]}`:                   "query has 17 items: at most 16",
		`{"query":[{"locks":[` + many(17, `"a"`) + `]}]}`:                   "query[0].locks has 17 names: at most 16",
		`{"query":[{"kinds":[` + many(65, `"a"`) + `]}]}`:                   "query[0].kinds has 65 names: at most 64",
		`{"newest_first":true,"wait":"1s"}`:                                 "newest_first and wait",
		`{"newest_first":true,"cluster":"` + strings.Repeat("a", 22) + `"}`: "cluster",
		`{"newest_first":true,"from":0}`:                                    "from is 0",
	} {
		a := collect(t, nc, "cantus.read.0", body)
		if a.refusal == nil || !strings.Contains(string(a.refusal.Data), want) || !strings.Contains(string(a.refusal.Data), `"bad_request"`) {
			t.Errorf("%s: %+v", body, a.refusal)
		}
	}
	if a := collect(t, nc, "cantus.read.0", `{"newest_first":true,"from":11}`); a.refusal == nil || !strings.Contains(string(a.refusal.Data), `"ahead"`) {
		t.Errorf("from beyond the end: %+v", a.refusal)
	}
}

// named is a log of transactions with names, and what was appended.
type named struct {
	t   *testing.T
	r   *rand.Rand
	nc  *nats.Conn
	all []namedTransaction
}

type namedTransaction struct {
	kind, id string
	locks    []string
}

func (n *named) token() string { return string(rune('a' + n.r.IntN(4))) }

func (n *named) lock() string {
	l := n.token()
	for range n.r.IntN(3) {
		l += "." + n.token()
	}
	if n.r.IntN(5) == 0 {
		l += ".>"
	}
	return l
}

func (n *named) append(count int) {
	n.t.Helper()
	for range count {
		tx := namedTransaction{kind: n.token(), id: fmt.Sprint("id", len(n.all))}
		headers := []string{"Cantus-Kind", tx.kind, "Nats-Msg-Id", tx.id}
		for range n.r.IntN(3) {
			tx.locks = append(tx.locks, n.lock())
		}
		if tx.locks != nil {
			headers = append(headers, "Cantus-Append-Lock", strings.Join(tx.locks, ","))
		}
		n.all = append(n.all, tx)
		if r := appendTx(n.t, n.nc, "cantus.append.0", "x", headers...); r.Txid != uint64(len(n.all)) {
			n.t.Fatalf("append: %+v", r)
		}
	}
}

// ask compares a read by random names with what was appended, from first on.
func (n *named) ask(first uint64) {
	n.t.Helper()
	var items []subjects.QueryItem
	for range 1 + n.r.IntN(2) {
		item := subjects.QueryItem{Locks: []string{n.lock()}}
		if n.r.IntN(2) == 0 {
			item.Locks = append(item.Locks, n.lock())
		}
		if n.r.IntN(2) == 0 {
			item.Kinds = []string{n.token(), n.token()}
		}
		items = append(items, item)
	}
	matches := func(tx namedTransaction) bool {
		return slices.ContainsFunc(items, func(i subjects.QueryItem) bool {
			for _, l := range i.Locks {
				if !slices.ContainsFunc(tx.locks, func(r string) bool { return subjects.Overlap(l, r) }) {
					return false
				}
			}
			return i.Kinds == nil || slices.Contains(i.Kinds, tx.kind)
		})
	}
	q := subjects.ReadRequest{Query: items, Max: 1 + n.r.IntN(30), NewestFirst: n.r.IntN(2) == 0}
	q.From = first + n.r.Uint64N(uint64(len(n.all))-first+1)
	var want []uint64
	for i := q.From; i >= first && i <= uint64(len(n.all)); {
		if matches(n.all[i-1]) {
			want = append(want, i)
		}
		if i++; q.NewestFirst {
			i -= 2
		}
	}
	body, err := json.Marshal(q)
	if err != nil {
		n.t.Fatal(err)
	}
	a := collect(n.t, n.nc, "cantus.read.0", string(body))
	if a.refusal != nil {
		n.t.Fatalf("%s: %s", body, a.refusal.Data)
	}
	whole := len(want) < q.Max
	if ids, _ := txids(n.t, a.transactions); !slices.Equal(ids, want[:min(q.Max, len(want))]) {
		n.t.Fatalf("%s: %v, and not %v", body, ids, want)
	} else if end := a.next > a.mark || q.NewestFirst && a.next < first; whole && !end {
		n.t.Fatalf("%s: all of %v, next %d of %d", body, ids, a.next, a.mark)
	}
	i := first + n.r.Uint64N(uint64(len(n.all))-first+1)
	if m := ask(n.t, n.nc, "cantus.get.0", `{"msg_id":"`+n.all[i-1].id+`"}`); m.Header.Get(subjects.HeaderTxid) != fmt.Sprint(i) {
		n.t.Fatalf("message id of %d: %v %s", i, m.Header, m.Data)
	}
}

// Reads by name find what a look at each transaction finds, whatever the index
// has: level with the log or behind it, after restarts, trims and damage.
func TestReadsByNameTwin(t *testing.T) {
	testkit.NotShort(t, "nodes restart")
	for _, noIndex := range []bool{false, true} {
		dir := t.TempDir()
		n := &named{t: t, r: rand.New(rand.NewPCG(18, 2))}
		first := uint64(1)
		for round := range 4 {
			node, nc := openNode(t, dir, broker.Options{NoIndex: noIndex})
			n.nc = nc
			n.append(150)
			for range 40 {
				n.ask(first)
			}
			if round == 1 {
				first = trim(t, nc, `{"before":100}`).FirstTxid
			}
			if err := node.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

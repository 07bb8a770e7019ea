package judge_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/internal/testkit"
)

// TestCorrectHistories checks that the judge finds nothing in histories without
// an error, before and after they are written and read.
func TestCorrectHistories(t *testing.T) {
	outcomes := map[judge.Outcome]int{}
	for seed := range uint64(testkit.Sized(20, 100, 2000)) {
		h := generate(seed, 1000)
		for _, o := range h.Operations {
			outcomes[o.Outcome]++
		}
		for range 2 {
			if r := judge.Check(h); len(r.Findings) > 0 {
				t.Fatalf("seed %d: %v\n%s", seed, r.Count, r.Findings[0].Text)
			}
			var text bytes.Buffer
			if err := judge.Encode(&text, h); err != nil {
				t.Fatal(err)
			}
			again, err := judge.Decode(&text)
			if err != nil {
				t.Fatal(err)
			}
			a, _ := json.Marshal(h)
			if b, _ := json.Marshal(again); !bytes.Equal(a, b) {
				t.Fatalf("seed %d: the history that was read is not the one that was written", seed)
			}
			h = again
		}
	}
	for _, o := range []judge.Outcome{judge.OK, judge.Refused, judge.Unknown} {
		if outcomes[o] < 100 {
			t.Errorf("%d operations were %s: the test sees little", outcomes[o], o)
		}
	}
}

// TestCorrectHistoriesWithClocks is that for cursors that are set by a clock
// which is ahead of the log's, so that a transaction may move one at a time
// that is later than its own.
func TestCorrectHistoriesWithClocks(t *testing.T) {
	moved := 0
	for seed := range uint64(testkit.Sized(20, 100, 2000)) {
		g := newGenerator(seed, 2)
		g.sessions, g.moves = true, true
		g.h.Header.ClockSkew = 5000
		for _, m := range g.models {
			m.ahead = func() int64 { return g.Int64N(5000) }
		}
		for range 1000 {
			g.step()
		}
		h := g.finish()
		h.Operations = slices.DeleteFunc(h.Operations, func(o *judge.Operation) bool { return o.Info != nil })
		if r := judge.Check(h); len(r.Findings) > 0 {
			t.Fatalf("seed %d: %v\n%s", seed, r.Count, r.Findings[0].Text)
		}
		for _, s := range h.Drains[0].Transactions {
			if s.Move != nil {
				moved++
			}
		}
	}
	if moved < 100 {
		t.Errorf("%d transactions moved a cursor: the test sees little", moved)
	}
}

// TestUnusableInput checks that what is not a history is rejected with the
// number of the line.
func TestUnusableInput(t *testing.T) {
	const head = `{"history":{"version":1,"partitions":1}}` + "\n"
	const drain = `{"drain":{"replica":"n1","partition":0,"first_txid":1,"high_water_mark":0}}` + "\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":                   {"", "it is empty"},
		"no header":               {drain, "the first line"},
		"two headers":             {head + head, "the first line"},
		"another version":         {`{"history":{"version":2,"partitions":1}}`, "version 2"},
		"no JSON":                 {head + "\n" + "hello\n", "line 3"},
		"an unknown field":        {head + `{"operation":{"clint":"c"}}`, `line 2: json: unknown field "clint"`},
		"nothing":                 {head + `{}`, "line 2: it has not exactly one"},
		"two things":              {head + `{"drain":{},"transaction":{"txid":1}}`, "line 2: it has not exactly one"},
		"no partitions":           {`{"history":{"version":1}}`, "0 partitions"},
		"a partition too many":    {head + `{"drain":{"replica":"n1","partition":1}}`, "a drain of partition 1"},
		"an operation elsewhere":  {head + drain + `{"operation":{"partition":1,"append":{},"outcome":"unknown"}}`, "an operation on partition 1"},
		"without a drain":         {head + `{"operation":{"append":{},"outcome":"unknown"}}`, "no replica of partition 0"},
		"a transaction too early": {head + `{"transaction":{"txid":1}}`, "before any drain"},
		"as nobody":               {head + `{"drain":{"replica":"n1","as":"n2"}}`, "has the transactions of n2"},
		"as, and its own":         {head + drain + `{"drain":{"replica":"n2","as":"n1"}}` + `{"transaction":{"txid":1}}`, "those of another"},
		"txid 0":                  {head + drain + `{"transaction":{"txid":0}}`, "line 3: a stored transaction has the txid 0"},
		"no operation":            {head + `{"operation":{"outcome":"ok"}}`, "line 2: an operation is not exactly one"},
		"two operations":          {head + `{"operation":{"append":{},"info":{},"outcome":"unknown"}}`, "line 2: an operation is not exactly one"},
		"back in time":            {head + `{"operation":{"append":{},"outcome":"unknown","start":2,"end":1}}`, "ends before it starts"},
		"no outcome":              {head + `{"operation":{"append":{}}}`, `outcome ""`},
		"refused without error":   {head + `{"operation":{"append":{},"outcome":"refused"}}`, "refused without an error"},
		"ok with an error":        {head + `{"operation":{"append":{},"outcome":"ok","error":{"reason":"busy"}}}`, "with an error"},
		"an unknown reason":       {head + `{"operation":{"append":{},"outcome":"refused","error":{"reason":"tired"}}}`, `reason "tired"`},
		"no txid":                 {head + `{"operation":{"append":{},"outcome":"ok"}}`, "without a txid"},
		"a batch without results": {head + `{"operation":{"batch":[{}],"outcome":"ok"}}`, "without results"},
		"a result too many":       {head + `{"operation":{"batch":[{}],"outcome":"ok","results":[{"outcome":"unknown"},{"outcome":"unknown"}]}}`, "2 results of 1"},
		"a bad result":            {head + `{"operation":{"batch":[{}],"outcome":"ok","results":[{"outcome":"fine"}]}}`, `result 0: outcome "fine"`},
		"a get of nothing":        {head + `{"operation":{"get":{"txid":1},"outcome":"ok"}}`, "without a transaction"},
		"an info without a mark":  {head + `{"operation":{"info":{"first_txid":1},"outcome":"ok"}}`, "without a high-water mark"},
		"a trim without a txid":   {head + `{"operation":{"trim":{"before":1},"outcome":"ok"}}`, "without the first txid"},
		"a read without next":     {head + `{"operation":{"read":{"from":1},"outcome":"ok"}}`, "without its next txid"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := judge.Decode(strings.NewReader(c.text))
			if !errors.Is(err, judge.ErrFormat) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestLineNumbers checks that a bad line far into a long file is named.
func TestLineNumbers(t *testing.T) {
	h := generate(1, 20_000)
	var text bytes.Buffer
	if err := judge.Encode(&text, h); err != nil {
		t.Fatal(err)
	}
	lines := bytes.Count(text.Bytes(), []byte("\n"))
	text.WriteString("{\n")
	if _, err := judge.Decode(&text); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("line %d:", lines+1)) || text.Cap() < 2<<20 {
		t.Errorf("%v: want line %d of %d bytes", err, lines+1, text.Cap())
	}
}

// FuzzCheck checks that no input makes the judge panic.
func FuzzCheck(f *testing.F) {
	var text bytes.Buffer
	if err := judge.Encode(&text, generate(1, 10)); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Fuzz(func(_ *testing.T, text []byte) {
		if h, err := judge.Decode(bytes.NewReader(text)); err == nil {
			judge.Check(h)
		}
	})
}

// BenchmarkJudge reads and checks a history of 20,000 operations.
func BenchmarkJudge(b *testing.B) {
	var text bytes.Buffer
	if err := judge.Encode(&text, generate(1, 20_000)); err != nil {
		b.Fatal(err)
	}
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		for b.Loop() {
			if _, err := judge.Decode(bytes.NewReader(text.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	h, err := judge.Decode(bytes.NewReader(text.Bytes()))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			judge.Check(h)
		}
	})
}

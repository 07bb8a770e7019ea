package lockmgr_test

import (
	"strconv"
	"testing"

	"github.com/cantuslog/cantus/lockmgr"
)

// A session whose mark stays below the floor need not be looked up where its
// own transactions say that nobody else has recorded a name.
func TestWhatASessionKnowsOfItself(t *testing.T) {
	read := func(name string) lockmgr.Lock { return lockmgr.Lock{Mode: lockmgr.Read, Name: name} }
	write := func(name string) lockmgr.Lock { return lockmgr.Lock{Mode: lockmgr.Write, Name: name} }
	record := func(name string) lockmgr.Lock { return lockmgr.Lock{Mode: lockmgr.Append, Name: name} }
	type locks = []lockmgr.Lock
	session := lockmgr.ID{1}
	for name, c := range map[string]struct {
		own   []locks // what the session has committed
		mark  uint64  // with this mark
		asks  string
		knows bool
	}{
		"a name that it wrote":              {own: []locks{{write("a.b")}}, asks: "a.b", knows: true},
		"with a higher mark":                {own: []locks{{write("a.b")}}, mark: 6, asks: "a.b"},
		"another name":                      {own: []locks{{write("a.b")}}, asks: "a.c"},
		"a name that it recorded unchecked": {own: []locks{{record("a.b")}}, asks: "a.b"},
		"a name that it wrote before that":  {own: []locks{{write("a.b")}, {record("a.b")}}, asks: "a.b", knows: true},
		"a name that it read beside that":   {own: []locks{{record("a.b"), read("a.b")}}, asks: "a.b", knows: true},
		"a name that it read only":          {own: []locks{{read("a.b")}}, asks: "a.b"},
		"a subtree that it wrote":           {own: []locks{{write("a.>")}}, asks: "a.>", knows: true},
		"a name in a subtree that it wrote": {own: []locks{{write("a.>")}}, asks: "a.b.c", knows: true},
		"the prefix of one":                 {own: []locks{{write("a.>")}}, asks: "a"},
		"a subtree in which it wrote":       {own: []locks{{write("a.b")}}, asks: "a.>"},
		"and that it read":                  {own: []locks{{write("a.b.c"), read("a.>")}}, asks: "a.>", knows: true},
		"a subtree of that":                 {own: []locks{{write("a.b.c"), read("a.>")}}, asks: "a.b.>", knows: true},
		"a name in that":                    {own: []locks{{record("a.b.c"), read("a.>")}}, asks: "a.b.c", knows: true},
		"more than it read":                 {own: []locks{{write("a.b.c"), read("a.b.>")}}, asks: "a.>"},
		"a subtree that it read before":     {own: []locks{{write("a.b"), read("a.>")}, {record("a.c")}}, asks: "a.>", knows: true},
	} {
		t.Run(name, func(t *testing.T) {
			var log []logged
			for i := range 6 {
				log = append(log, logged{tx: writes(strconv.Itoa(i))})
			}
			for i, locks := range c.own {
				tx := &lockmgr.Transaction{Locks: locks, Session: session, SessionSeq: uint64(i) + 1, HighWaterMark: c.mark, HasHighWaterMark: true}
				tx.Older, tx.Through = make([]lockmgr.Recorder, len(locks)), 6
				log = append(log, logged{tx: tx})
			}
			check := func(m *lockmgr.Manager, how string) {
				t.Helper()
				if m.Floor() == 0 {
					t.Fatalf("%s: nothing is forgotten", how)
				}
				want := m.Floor()
				if c.knows {
					want = 0
				}
				if txid := m.NewestBesides(c.asks, session); txid != want {
					t.Errorf("%s: the newest one of another is at most %d, want %d", how, txid, want)
				}
			}
			m := lockmgr.New(lockmgr.Options{Locks: 4})
			for i, l := range log[:6] {
				m.Record(uint64(i)+1, 0, l.tx)
			}
			for _, l := range log[6:] {
				if v := m.Certify(l.tx, 0); v.Outcome != lockmgr.Pass {
					t.Fatalf("%+v: %+v", *l.tx, v)
				}
			}
			check(m, "in flight")
			m.Certify(&lockmgr.Transaction{Locks: locks{record("a.>")}}, 0)
			m.Rollback(m.Last())
			check(m, "in flight still")
			for range c.own {
				m.Commit()
			}
			check(m, "committed")
			m.Forget(6)
			check(m, "trimmed")
			rebuild(m, log, 0, 6, 6)
			check(m, "rebuilt")
			m = lockmgr.New(lockmgr.Options{Locks: 4})
			for i, l := range log {
				m.Record(uint64(i)+1, 0, l.tx)
			}
			check(m, "recorded")
		})
	}
}

// A rebuild takes nothing from before another one's record, as going forward
// does not.
func TestARebuildStopsAtAnother(t *testing.T) {
	own := func(seq uint64, mode lockmgr.Mode) *lockmgr.Transaction {
		return &lockmgr.Transaction{Locks: []lockmgr.Lock{{Mode: mode, Name: "a.b"}}, Session: lockmgr.ID{1}, SessionSeq: seq, HasHighWaterMark: true}
	}
	log := []logged{{tx: own(1, lockmgr.Write)}, {tx: writes("a.b")}, {tx: own(2, lockmgr.Append)}}
	m := lockmgr.New(lockmgr.Options{})
	for i, l := range log {
		m.Record(uint64(i)+1, 0, l.tx)
	}
	want := lockmgr.StateOf(m)
	rebuild(m, log, 0, 1, 1)
	if got := lockmgr.StateOf(m); !got.Equal(want, false) || got.Locks[0].AloneThrough != 0 {
		t.Errorf("rebuilt\n got %+v\nwant %+v", got, want)
	}
}

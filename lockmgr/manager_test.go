package lockmgr_test

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/cantuslog/cantus/lockmgr"
)

func writes(names ...string) *lockmgr.Transaction {
	tx := &lockmgr.Transaction{}
	for _, name := range names {
		tx.Locks = append(tx.Locks, lockmgr.Lock{Mode: lockmgr.Write, Name: name})
	}
	return tx
}

// Callers reuse the buffers that contain the names.
func TestNamesAreCopied(t *testing.T) {
	long := strings.Repeat("x", 64)
	buffer := []byte("account." + long + ".balance")
	name := unsafe.String(&buffer[0], len(buffer))
	want := strings.Clone(name)
	m := lockmgr.New(lockmgr.Options{})
	m.Record(1, 0, writes(name))
	m.Certify(&lockmgr.Transaction{Locks: writes(name).Locks, HighWaterMark: 1, HasHighWaterMark: true}, 0)
	v := m.Certify(writes(name), 0)
	for i := range buffer {
		buffer[i] = '!'
	}
	if len(v.Conflicts) != 1 || v.Conflicts[0].Name != want {
		t.Errorf("verdict %+v, want a conflict of %s", v, want)
	}
	if v := m.Certify(writes(want), 0); v.DependsOn != 2 {
		t.Errorf("in flight: %+v, want it to depend on 2", v)
	}
	if txid, exact := m.Newest(want); txid != 1 || !exact {
		t.Errorf("newest %d, %v, want 1, true", txid, exact)
	}
	if err := lockmgr.Check(m); err != nil {
		t.Error(err)
	}
}

// Tokens of every length are found again, as point and as prefix, and after
// others have reused the space of forgotten ones.
func TestTokenLengths(t *testing.T) {
	m := lockmgr.New(lockmgr.Options{Locks: 300})
	txid := uint64(0)
	for _, letter := range []string{"a", "b", "é"} {
		for n := 1; n*len(letter) <= 255; n++ {
			token := strings.Repeat(letter, n)
			txid++
			m.Record(txid, 0, writes(token, token+"."+token, token+".>"))
			for _, name := range []string{token, token + "." + token, token + ".>"} {
				if got, exact := m.Newest(name); got != txid || !exact {
					t.Fatalf("newest of %s: %d, %v, want %d", name, got, exact, txid)
				}
			}
			if err := lockmgr.Check(m); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A deep name takes a prefix for each token, and frees all of them.
func TestDeepNames(t *testing.T) {
	m := lockmgr.New(lockmgr.Options{Locks: 1})
	deep := strings.Repeat("deep.", 15) + "end"
	for txid := uint64(1); txid <= 10; txid++ {
		m.Record(txid, 0, writes([]string{deep, "end"}[txid%2]))
		if err := lockmgr.Check(m); err != nil {
			t.Fatal(err)
		}
	}
	if txid, exact := m.Newest("deep.deep.>"); txid != 10 || !exact {
		t.Errorf("newest %d, %v, want 10, true", txid, exact)
	}
}

// In a table of many names all are found while it grows, and its space is
// reused.
func TestManyNames(t *testing.T) {
	const n = 50_000
	m := lockmgr.New(lockmgr.Options{Locks: n / 2})
	name := func(i uint64) string { return shapes[1].of(int(i)) }
	for i := uint64(1); i <= n; i++ {
		m.Record(i, 0, writes(name(i)))
	}
	for i := uint64(1); i <= n; i++ {
		want := max(i, n/2)
		if txid, exact := m.Newest(name(i)); txid != want || exact != (i > n/2) {
			t.Fatalf("newest of %s: %d, %v, want %d", name(i), txid, exact, want)
		}
	}
	if err := lockmgr.Check(m); err != nil {
		t.Fatal(err)
	}
	m.Forget(n + 1)
	if err := lockmgr.Check(m); err != nil {
		t.Fatal(err)
	}
	if got := m.Stats(); got.Locks != 0 || got.Floor != n {
		t.Errorf("after forgetting all: %+v", got)
	}
}

// Among 300,000 keys some ten pairs share a whole 32-bit hash, whatever the
// seed: names of one parent, names of one last token, prefixes, and ids. What
// tells them apart is the key itself.
func TestHashCollisions(t *testing.T) {
	const n = 300_000
	for _, of := range []func(i int) string{shapes[0].of, shapes[1].of} {
		m := lockmgr.New(lockmgr.Options{})
		tx := writes("")
		for i := range n {
			tx.Locks[0].Name = of(i)
			tx.ID = lockmgr.ID{0: byte(i), 1: byte(i >> 8), 15: byte(i >> 16), 14: 1}
			m.Record(uint64(i)+1, 0, tx)
		}
		if got := m.Stats(); got.Locks != n || got.IDs != n {
			t.Fatalf("%+v, want %d locks and ids", got, n)
		}
		for i := range n {
			if txid, _ := m.Newest(of(i)); txid != uint64(i)+1 {
				t.Fatalf("newest of %s: %d, want %d", of(i), txid, i+1)
			}
		}
		if err := lockmgr.Check(m); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPassAllocatesNothing(t *testing.T) {
	m := lockmgr.New(lockmgr.Options{})
	tx := writes("account.1", "account.2", "account.>")
	tx.HasHighWaterMark = true
	step := func() {
		tx.HighWaterMark = m.Last()
		if v := m.Certify(tx, 0); v.Outcome != lockmgr.Pass {
			t.Fatalf("%+v", v)
		}
		m.Commit()
	}
	for range 100 {
		step()
	}
	if allocs := testing.AllocsPerRun(1000, step); allocs != 0 {
		t.Errorf("certify and commit allocate %v times", allocs)
	}
}

func TestBrokenInvariantsPanic(t *testing.T) {
	tx := writes("a")
	for name, run := range map[string]func(m *lockmgr.Manager){
		"record of a gap":              func(m *lockmgr.Manager) { m.Record(3, 9, tx) },
		"record again":                 func(m *lockmgr.Manager) { m.Record(1, 9, tx) },
		"record of an earlier time":    func(m *lockmgr.Manager) { m.Record(2, 0, tx) },
		"older outside a rebuild":      func(m *lockmgr.Manager) { m.RecordOlder(1, 1, tx) },
		"rebuilt outside a rebuild":    func(m *lockmgr.Manager) { m.Rebuilt(1) },
		"record beside one in flight":  func(m *lockmgr.Manager) { m.Certify(writes("b"), 1); m.Record(2, 1, tx) },
		"commit of nothing":            func(m *lockmgr.Manager) { m.Commit() },
		"commit in a rebuild":          func(m *lockmgr.Manager) { m.Reset(1, 1); m.Commit() },
		"certify in a rebuild":         func(m *lockmgr.Manager) { m.Reset(1, 1); m.Certify(tx, 1) },
		"record in a rebuild":          func(m *lockmgr.Manager) { m.Reset(1, 1); m.Record(2, 1, tx) },
		"forget in a rebuild":          func(m *lockmgr.Manager) { m.Reset(1, 1); m.Forget(1) },
		"rollback in a rebuild":        func(m *lockmgr.Manager) { m.Reset(1, 1); m.Rollback(1) },
		"older than the first":         func(m *lockmgr.Manager) { m.Reset(0, 0); m.RecordOlder(0, 0, tx) },
		"older out of turn":            func(m *lockmgr.Manager) { m.Reset(2, 1); m.RecordOlder(1, 1, tx) },
		"older of a later time":        func(m *lockmgr.Manager) { m.Reset(2, 1); m.RecordOlder(2, 2, tx) },
		"a token that is far too long": func(m *lockmgr.Manager) { m.Record(2, 1, writes(strings.Repeat("x", 256))) },
	} {
		t.Run(name, func(t *testing.T) {
			m := lockmgr.New(lockmgr.Options{})
			m.Record(1, 1, tx)
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			run(m)
		})
	}
}

func TestHashID(t *testing.T) {
	if id := lockmgr.HashID(""); id != (lockmgr.ID{}) {
		t.Errorf("no id is %x", id)
	}
	// SHA-256 of "abc", from FIPS 180-2.
	if id := lockmgr.HashID("abc"); id != (lockmgr.ID{0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23}) {
		t.Errorf("abc is %x", id)
	}
}

func TestFingerprint(t *testing.T) {
	f := lockmgr.Fingerprint([]byte("abc"))
	if again := lockmgr.Fingerprint([]byte("abc")); again != f {
		t.Errorf("fingerprints of one payload are %x and %x", f, again)
	}
	for _, other := range []string{"", "ab", "abd", "abc\x00"} {
		if lockmgr.Fingerprint([]byte(other)) == f {
			t.Errorf("abc and %q have one fingerprint", other)
		}
	}
}

// Ids are added and forgotten many times, in a table that keeps a few: those
// that are remembered are found, and no others.
func TestIDsComeAndGo(t *testing.T) {
	const keep, n = 3000, 200_000
	id := func(i int) *lockmgr.Transaction {
		return &lockmgr.Transaction{ID: lockmgr.ID{0: byte(i), 1: byte(i >> 8), 15: byte(i >> 16), 14: 1}}
	}
	m := lockmgr.New(lockmgr.Options{IDs: keep})
	outcome := func(i int) lockmgr.Outcome { return m.Repeat(id(i), 0).Outcome }
	for i := range n {
		if i%5 == 4 { // some pass, and are taken back
			for j := range 3 {
				m.Certify(id(n+i+j), 0)
			}
			m.Rollback(m.Committed() + 1)
		}
		m.Certify(id(i), 0)
		m.Commit()
		if old := max(0, i+1-keep); outcome(i) != lockmgr.Duplicate || outcome(old) != lockmgr.Duplicate {
			t.Fatalf("at %d: the newest or the oldest is not found", i)
		}
		if i >= keep && outcome(i-keep) != lockmgr.Pass || outcome(n+i) != lockmgr.Pass {
			t.Fatalf("at %d: what was forgotten, or taken back, is found", i)
		}
	}
	if got := m.Stats().IDs; got != keep {
		t.Errorf("%d ids, want %d", got, keep)
	}
	if err := lockmgr.Check(m); err != nil {
		t.Error(err)
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]string{
		"read":      lockmgr.Read.String(),
		"write":     lockmgr.Write.String(),
		"append":    lockmgr.Append.String(),
		"pass":      lockmgr.Pass.String(),
		"duplicate": lockmgr.Duplicate.String(),
		"id_reused": lockmgr.IDReused.String(),
		"ahead":     lockmgr.Ahead.String(),
		// Named as on the wire.
		"wrong_last": lockmgr.WrongLast.String(),
		"conflict":   lockmgr.Conflicted.String(),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

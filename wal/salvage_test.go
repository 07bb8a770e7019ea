package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// salvaged is what Salvage returns of a directory.
type salvaged struct {
	survivors []wal.Survivors
	payloads  map[uint32]map[uint64]string // by group and txid
	problems  []error
}

func salvage(t *testing.T, dir string) salvaged {
	t.Helper()
	s := salvaged{payloads: map[uint32]map[uint64]string{}}
	var err error
	s.problems, err = wal.Salvage(dir, t.TempDir(), func(group uint32, tx *wal.Transaction) error {
		if s.payloads[group] == nil {
			s.payloads[group] = map[uint64]string{}
		}
		if _, twice := s.payloads[group][tx.Txid]; twice {
			t.Errorf("group %d: txid %d comes twice", group, tx.Txid)
		}
		s.payloads[group][tx.Txid] = string(tx.Payload)
		return nil
	}, func(r wal.Survivors) { s.survivors = append(s.survivors, r) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkSalvaged checks that everything that was salvaged is what was written,
// and that the reports say what was and what was not. It returns how many
// transactions are missing. With extra there may be one that was truncated.
func (s salvaged) check(t *testing.T, want map[uint32][]string, extra bool) (missing int) {
	t.Helper()
	if len(s.survivors) != len(want) {
		t.Fatalf("%d groups, there were %d", len(s.survivors), len(want))
	}
	for _, r := range s.survivors {
		all := want[r.Group]
		left := map[uint64]bool{}
		for _, w := range r.Whole {
			for txid := w.First; txid <= w.Last; txid++ {
				left[txid] = true
			}
		}
		for i, payload := range all {
			txid := uint64(i + 1)
			got, ok := s.payloads[r.Group][txid]
			switch {
			case ok != left[txid]:
				t.Errorf("group %d: txid %d is there: %v, and said to be: %v", r.Group, txid, ok, left[txid])
			case ok && got != payload:
				t.Errorf("group %d: txid %d is %.40q, want %.40q", r.Group, txid, got, payload)
			case !ok:
				missing++
				inRange := slices.ContainsFunc(r.Missing, func(m wal.TxidRange) bool { return m.First <= txid && txid <= m.Last })
				if !inRange && !r.LostEnd {
					t.Errorf("group %d: nothing says that txid %d is missing", r.Group, txid)
				}
			}
		}
		if n := len(s.payloads[r.Group]); n > len(all) && !(extra && n == len(all)+1) {
			t.Errorf("group %d: %d transactions, there were %d", r.Group, len(s.payloads[r.Group]), len(all))
		}
	}
	return missing
}

// toSalvage returns the directory of a closed store with small and large
// transactions, a truncated and replaced entry and a void batch, and the
// payloads of its groups.
func toSalvage(t *testing.T) (dir string, want map[uint32][]string) {
	t.Helper()
	dir, want = t.TempDir(), map[uint32][]string{}
	s := openStore(t, dir, small())
	for round := range 2 {
		for group := range uint32(2) {
			l := s.Log(group)
			var entries []wal.Entry
			index := l.LastIndex()
			for i := range 120 {
				index++
				payload := fmt.Sprintf("group %d, round %d, number %d ", group, round, i)
				if i%3 > 0 {
					payload += strings.Repeat("large ", 300)
				}
				entries = append(entries, wal.Entry{Index: index, Term: 1, Data: batch(uint64(len(want[group])+1), 1, payload)})
				want[group] = append(want[group], fmt.Sprint(payload, "-", len(want[group])+1)) // see batch
			}
			index++
			entries = append(entries, wal.Entry{Index: index, Term: 1, Data: batch(3, 1, "void")})
			index++
			entries = append(entries, wal.Entry{Index: index, Term: 1, Data: batch(uint64(len(want[group])+1), 1, "truncated "+strings.Repeat("x", 2000))})
			if err := errors.Join(l.Append(entries...), l.Void(index-1), l.TruncateSuffix(index)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.WaitApplied()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, want
}

func TestSalvageOfAWholeDirectory(t *testing.T) {
	dir, want := toSalvage(t)
	s := salvage(t, dir)
	if n := s.check(t, want, false); n > 0 || len(s.problems) > 0 {
		t.Errorf("%d are missing, problems %v", n, s.problems)
	}
	for _, r := range s.survivors {
		if !r.Complete() || r.Transactions != uint64(len(want[r.Group])) {
			t.Errorf("report %+v", r)
		}
	}
	open := openStore(t, dir, small())
	if _, err := wal.Salvage(dir, t.TempDir(), func(uint32, *wal.Transaction) error { return nil }, func(wal.Survivors) {}); !errors.Is(err, wal.ErrInUse) {
		t.Errorf("of a directory in use: %v", err)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
}

// Whatever single file is damaged, what is salvaged is right, and it is said
// what is not.
func TestSalvageWhateverFileIsDamaged(t *testing.T) {
	t.Parallel()
	r := chance(t)
	dir, want := toSalvage(t)
	lost := map[string]int{}
	for _, d := range damages(t, r, dir) {
		if strings.HasSuffix(d.file, ".json") && strings.HasPrefix(d.what, "bit") && d.file == "cantus.json" {
			continue // a bit of the number of partitions may pass for another
		}
		t.Run(d.file+" "+d.what, func(t *testing.T) {
			victim := t.TempDir()
			for _, part := range []string{".", "store", "journal"} {
				copyFiles(t, filepath.Join(dir, part), filepath.Join(victim, part))
			}
			if err := d.do(filepath.Join(victim, d.file)); err != nil {
				t.Fatal(err)
			}
			// Without the checkpoint nothing says that the last entry was
			// truncated.
			n := salvage(t, victim).check(t, want, d.file == "checkpoint.json")
			lost[filepath.Ext(d.file)] += n
			if name := filepath.Base(d.file); n > 0 && (name == "MANIFEST" || name == "KEYREGISTRY" || name == "DISCARD" || strings.HasPrefix(d.file, "journal")) {
				t.Errorf("%d transactions are missing", n)
			}
		})
	}
	t.Log("lost", lost)
}

// Of a value log with a flipped bit one entry is lost, and of a damaged table
// what is small and in it.
func TestSalvageLosesOnlyWhatIsDamaged(t *testing.T) {
	dir, want := toSalvage(t)
	logs, err := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	frames, err := filepath.Glob(filepath.Join(dir, "journal", "*")) // some may have the entry too
	for _, name := range frames {
		err = errors.Join(err, os.Remove(name))
	}
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), "number 40 ")
	if err := flip("", int64(at), 2).do(logs[0]); err != nil {
		t.Fatal(err)
	}
	s := salvage(t, dir)
	if n := s.check(t, want, false); n != 1 {
		t.Errorf("%d are missing", n)
	}
	if !slices.ContainsFunc(s.problems, func(err error) bool { return strings.Contains(err.Error(), logs[0]) }) {
		t.Errorf("the problems do not name %s: %v", logs[0], s.problems)
	}
	testkit.NotShort(t, "the rest removes everything but the value logs")
	for _, name := range []string{"MANIFEST", "KEYREGISTRY"} {
		if err := os.Remove(filepath.Join(dir, "store", name)); err != nil {
			t.Fatal(err)
		}
	}
	if n := salvage(t, dir).check(t, want, false); n != 1 {
		t.Errorf("without manifest and registry %d are missing", n)
	}
}

// TestSalvageOfALostEnd leaves only an entry without a transaction behind those
// that are lost.
func TestSalvageOfALostEnd(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	want := map[uint32][]string{0: nil, 1: nil}
	const number = "number 1"
	for i := range uint64(9) {
		payload := number + strings.Repeat(" large", 300)
		if err := s.Log(0).Append(wal.Entry{Index: i + 1, Term: 1, Data: batch(i+1, 1, payload)}); err != nil {
			t.Fatal(err)
		}
		want[0] = append(want[0], fmt.Sprint(payload, "-", i+1)) // see batch
	}
	if err := errors.Join(s.Log(0).Append(wal.Entry{Index: 10, Term: 1, Data: batch(3, 1, "void")}), s.Log(0).Void(10), s.Close()); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
	for _, name := range logs {
		err = errors.Join(err, os.Remove(name))
	}
	segments, err2 := filepath.Glob(filepath.Join(dir, "journal", "*.seg"))
	if err = errors.Join(err, err2); err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	for _, name := range segments {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(name, bytes.ReplaceAll(b, []byte(number), []byte("damage 1")), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := salvage(t, dir).check(t, want, false); n != 9 {
		t.Errorf("%d transactions are missing, want 9", n)
	}
}

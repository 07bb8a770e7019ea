package broker

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// A batch that was certified in another term than its entry's is void; one that
// does not name a term is not.
func TestABatchOfAnotherTermIsVoid(t *testing.T) {
	s, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var chain digests
	damage := func(err error) { t.Error(err) }
	r := newPartitionState(s.Log(0), testStateOptions, time.Now, damage, &chain)
	write := func(term, txid uint64) []byte {
		var w wal.BatchWriter
		if w.Begin(wal.Transactions, txid, 1, 0); term > 0 {
			w.BeginIn(term, txid, 1, 0)
		}
		w.Add(&wal.Transaction{Kind: defaultKind})
		return w.Finish()
	}
	entries := []raftstore.Committed{
		{Index: 1, Term: 2, Data: write(2, 1)},
		{Index: 2, Term: 4, Data: write(2, 2)}, // its tenure is over
		{Index: 3, Term: 4, Data: write(5, 2)}, // its tenure is yet to come
		{Index: 4, Term: 4, Data: write(0, 2)}, // an old version's
		{Index: 5, Term: 4, Data: write(4, 3)},
	}
	for _, e := range entries {
		if err := s.Log(0).Append(wal.Entry{Index: e.Index, Term: e.Term, Data: e.Data}); err != nil {
			t.Fatal(err)
		}
	}
	for i, result := range r.Apply(entries) {
		if got, want := result.(applied).void, i == 1 || i == 2; got != want {
			t.Errorf("entry %d is void: %v", i+1, got)
		}
	}
	if mark := r.position().mark; mark != 3 {
		t.Errorf("the high-water mark is %d", mark)
	}
	if v := s.Log(0).Voids(); len(v) != 2 || v[0] != 2 || v[1] != 3 {
		t.Errorf("void are %v", v)
	}
	if report := wal.VerifyLog(s.Log(0), wal.Base{}, wal.Base{Txid: 3, Digest: r.digest}); report.Err != nil || report.Transactions != 3 {
		t.Errorf("verified: %+v", report)
	}
}

// A replica with another history than its leader gets batches that follow a
// transaction that it does not have, and may be older than its last one. They
// are void: the digests reveal the divergence.
func TestABatchFromThePastIsVoid(t *testing.T) {
	s, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var chain digests
	r := newPartitionState(s.Log(0), testStateOptions, time.Now, func(err error) { t.Error(err) }, &chain)
	write := func(txid uint64, time int64) []byte {
		var w wal.BatchWriter
		w.BeginIn(2, txid, time, 0)
		w.Add(&wal.Transaction{Kind: defaultKind})
		w.Add(&wal.Transaction{Kind: defaultKind})
		return w.Finish()
	}
	var entries []raftstore.Committed
	for i, data := range [][]byte{write(1, 100), write(3, 50), write(3, 100), write(3, math.MaxInt64-1), write(3, 101)} {
		e := raftstore.Committed{Index: uint64(i + 1), Term: 2, Data: data}
		if err := s.Log(0).Append(wal.Entry{Index: e.Index, Term: e.Term, Data: e.Data}); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	for i, result := range r.Apply(entries) {
		if got, want := result.(applied).void, i > 0 && i < 4; got != want {
			t.Errorf("entry %d is void: %t, want %t", i+1, got, want)
		}
	}
}

func TestChainsAreComparedByTxidAndEntry(t *testing.T) {
	point := func(txid uint64, digest byte, index uint64) chainPoint {
		return chainPoint{wal.Base{Txid: txid, Digest: wal.Digest{digest}}, index}
	}
	var d digests
	d.begin(wal.Base{Txid: 10, Digest: wal.Digest{1}}, 20)
	d.add(point(15, 2, 22))
	d.setApplied(22)
	d.setApplied(23) // it did not count
	d.add(point(18, 3, 24))
	d.setApplied(24)
	for what, c := range map[string]struct {
		theirs []chainPoint
		want   comparison
		txid   uint64
	}{
		"the same":                                {[]chainPoint{point(18, 3, 24), point(15, 2, 22)}, equal, 0},
		"further":                                 {[]chainPoint{point(30, 9, 40), point(18, 3, 24)}, equal, 0},
		"another digest":                          {[]chainPoint{point(18, 4, 24)}, different, 18},
		"the same batch in another entry":         {[]chainPoint{point(18, 3, 25)}, different, 18},
		"a batch in an entry that is void here":   {[]chainPoint{point(16, 8, 23)}, different, 16},
		"another batch in an entry of one":        {[]chainPoint{point(17, 8, 24)}, different, 17},
		"only what is not applied here":           {[]chainPoint{point(30, 9, 25)}, nothing, 0},
		"only what is older than what is known":   {[]chainPoint{point(7, 9, 19)}, nothing, 0},
		"the snapshot's point":                    {[]chainPoint{point(10, 1, 19)}, equal, 0},
		"another at the snapshot's point":         {[]chainPoint{point(10, 2, 19)}, different, 10},
		"one that does not say in which entry":    {[]chainPoint{point(17, 9, 0)}, nothing, 0},
		"the same, without saying in which entry": {[]chainPoint{point(18, 3, 0)}, equal, 0},
	} {
		if got, txid := d.compare(c.theirs); got != c.want || txid != c.txid {
			t.Errorf("%s: %d at %d, want %d at %d", what, got, txid, c.want, c.txid)
		}
	}
	for i := range uint64(3 * digestPoints) { // it stays bounded, and knows what it has dropped
		d.add(point(100+i, 5, 100+i))
		d.setApplied(100 + i)
	}
	if len(d.points) > digestPoints {
		t.Errorf("%d points", len(d.points))
	}
	if got, _ := d.compare([]chainPoint{point(50, 7, 101)}); got != nothing {
		t.Errorf("of an entry that was dropped it says %d", got)
	}
}

// The voters decide, not any single report.
func TestOnlyVotersSayWhichReplicaIsWrong(t *testing.T) {
	group := func(voters string, others string) (all []raftstore.Replica) {
		for _, v := range voters {
			all = append(all, raftstore.Replica{Name: string(v), Voter: true})
		}
		for _, o := range others {
			all = append(all, raftstore.Replica{Name: string(o)})
		}
		return all
	}
	for what, c := range map[string]struct {
		replicas []raftstore.Replica
		equal    string
		differ   string
		want     tally
	}{
		"all agree":                      {group("abc", ""), "bc", "", tally{agree: 3, majority: 2}},
		"one differs, one is away":       {group("abc", ""), "", "b", tally{agree: 1, differ: 1, majority: 2, other: "b", leader: true}},
		"the other one differs":          {group("abc", ""), "", "c", tally{agree: 1, differ: 1, majority: 2, other: "c"}},
		"both differ":                    {group("abc", ""), "", "bc", tally{agree: 1, differ: 2, majority: 2, other: "b", leader: true}},
		"those outside the group differ": {group("abc", ""), "b", "xyz", tally{agree: 2, majority: 2}},
		"followers without vote differ":  {group("abc", "de"), "b", "de", tally{agree: 2, majority: 2}},
		"this one has no vote":           {group("bcd", "a"), "b", "cd", tally{agree: 1, differ: 2, majority: 2, other: "c"}},
	} {
		var v comparisons
		for _, name := range c.equal {
			v.set(string(name), comparedAt{comparison: equal})
		}
		for _, name := range c.differ {
			v.set(string(name), comparedAt{comparison: different})
			v.set(string(name), comparedAt{comparison: nothing}) // which says nothing new
		}
		if got := v.count("a", "b", c.replicas); got != c.want {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
	}
}

// A replica is rebuilt after a restart only if an operator has asked for it.
func TestAFenceThatIsLoaded(t *testing.T) {
	for name, c := range map[string]struct {
		fenced, ordered       string
		interrupted, diverged bool
	}{
		"not fenced":                {},
		"of another log":            {fenced: "its log differs", diverged: true},
		"of another log, ordered":   {fenced: "its log differs", ordered: toBeRebuilt, interrupted: true, diverged: true},
		"ordered":                   {ordered: toBeRebuilt, interrupted: true},
		"ordered, as it once began": {fenced: toBeRebuilt, interrupted: true},
	} {
		s, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}})
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{metaFenced: c.fenced, metaOrdered: c.ordered} {
			if value != "" {
				err = errors.Join(err, s.Log(0).SetMeta(wal.Meta{Name: name, Value: []byte(value)}))
			}
		}
		f := fencing{store: s.Log(0)}
		halted := f.load()
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		if f.interrupted != c.interrupted || f.diverged() != c.diverged || (halted != nil) != c.diverged || (f.barred() != "") != (c.fenced+c.ordered != "") {
			t.Errorf("%s: rebuilt %v, diverged %v, halted because %v, barred because %q", name, f.interrupted, f.diverged(), halted, f.barred())
		}
	}
}

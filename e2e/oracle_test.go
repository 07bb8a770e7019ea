package e2e_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/workload"
)

// lockHistory knows for each lock which transactions recorded it, and derives
// from that what a refusal must say. It is the rule of the contract, spelled
// out over the whole log.
type lockHistory struct {
	byLock map[string][]uint64 // rising
}

func newLockHistory(log []*nats.Msg) *lockHistory {
	h := &lockHistory{byLock: map[string][]uint64{}}
	for _, m := range log {
		for _, key := range []string{"Cantus-Write-Lock", "Cantus-Append-Lock"} {
			if list := m.Header.Get(key); list != "" {
				for lock := range strings.SplitSeq(list, ",") {
					h.byLock[lock] = append(h.byLock[lock], workload.Txid(m))
				}
			}
		}
	}
	return h
}

// newest returns the newest transaction up to and including limit that recorded
// a lock overlapping the given one; 0 is none.
func (h *lockHistory) newest(lock string, limit uint64) uint64 {
	if !strings.HasSuffix(lock, ">") {
		found := newestUpTo(h.byLock[lock], limit)
		for i := range lock {
			if lock[i] == '.' {
				found = max(found, newestUpTo(h.byLock[lock[:i]+".>"], limit))
			}
		}
		return max(found, newestUpTo(h.byLock[">"], limit))
	}
	var found uint64
	for other, recorded := range h.byLock {
		if overlap(lock, other) {
			found = max(found, newestUpTo(recorded, limit))
		}
	}
	return found
}

func newestUpTo(recorded []uint64, limit uint64) uint64 {
	i, found := slices.BinarySearch(recorded, limit)
	switch {
	case found:
		return limit
	case i == 0:
		return 0
	}
	return recorded[i-1]
}

// overlap compares token by token, unlike the node, which compares prefixes.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; ; i++ {
		switch {
		case i == len(x) || i == len(y):
			return len(x) == len(y)
		case x[i] == ">" || y[i] == ">":
			return true
		case x[i] != y[i]:
			return false
		}
	}
}

// checkRefusal checks a conflict against the log. The node knew at least the
// transactions that it named. So up to the newest of these, its list must be
// the one that follows from the log.
func (h *lockHistory) checkRefusal(t *testing.T, r workload.Refusal, mark uint64, mode string, locks []string) {
	t.Helper()
	var want []workload.Conflict
	var newest workload.Conflict
	for _, lock := range locks {
		if id := h.newest(lock, r.Txid); id > mark {
			c := workload.Conflict{Lock: lock, Mode: mode, Txid: id}
			want = append(want, c)
			if id > newest.Txid {
				newest = c
			}
		}
	}
	got := slices.Clone(r.Conflicts)
	byLock := func(a, b workload.Conflict) int { return strings.Compare(a.Lock, b.Lock) }
	slices.SortFunc(got, byLock)
	slices.SortFunc(want, byLock)
	if r.Code != 409 || len(want) == 0 || !slices.Equal(got, want) || r.Txid != newest.Txid {
		t.Errorf("at mark %d refused with txid %d and\n%v\nthe log says\n%v", mark, r.Txid, got, want)
	}
	if !slices.ContainsFunc(want, func(c workload.Conflict) bool { return c.Lock == r.Lock && c.Txid == r.Txid }) {
		t.Errorf("lock %q and txid %d are not those of the newest of %v", r.Lock, r.Txid, want)
	}
}

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a.b", false}, {"a", "a.>", false},
		{"a.b", "a.>", true}, {"a.b.c", "a.>", true}, {"a.b.>", "a.>", true}, {"a.b.>", "a.c.>", false},
		{">", "x.y", true}, {">", ">", true}, {"ab.c", "a.>", false}, {"a.b.>", "a.b", false},
	} {
		if overlap(c.a, c.b) != c.want || overlap(c.b, c.a) != c.want {
			t.Errorf("overlap of %s and %s is not %t", c.a, c.b, c.want)
		}
	}
}

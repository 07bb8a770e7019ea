package lockmgr_test

import (
	"cmp"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/lockmgr"
)

// twin computes a Manager's results from a list of everything that ever
// happened. It has no table: it computes what is still known from the list each
// time, and decides overlap token by token.
type twin struct {
	opts     lockmgr.Options
	log      []logged // txid 1 first; forgotten ones too
	inFlight []logged
	first    uint64 // what is below is forgotten
	time     int64  // of the newest advance
}

func (w *twin) committed() uint64 { return uint64(len(w.log)) }
func (w *twin) last() uint64      { return w.committed() + uint64(len(w.inFlight)) }

// at returns a transaction that is committed or in flight.
func (w *twin) at(txid uint64) logged {
	if txid <= w.committed() {
		return w.log[txid-1]
	}
	return w.inFlight[txid-w.committed()-1]
}

// locks returns the committed locks that are known, newest first, and the
// floor.
func (w *twin) locks() (known []lockmgr.TrackedLock, floor uint64) {
	for txid := w.committed(); txid >= w.first; txid-- {
		locks := w.log[txid-1].tx.Locks
		for i := len(locks) - 1; i >= 0; i-- {
			if locks[i].Mode == lockmgr.Read || slices.ContainsFunc(known, func(t lockmgr.TrackedLock) bool { return t.Name == locks[i].Name }) {
				continue
			}
			if len(known) == w.opts.Locks {
				return known, txid
			}
			known = append(known, lockmgr.TrackedLock{Name: locks[i].Name, Txid: txid})
		}
	}
	return known, w.first - 1
}

// now is the partition's time.
func (w *twin) now() int64 {
	if len(w.log) == 0 {
		return w.time
	}
	return max(w.time, w.log[len(w.log)-1].time)
}

// oldestID returns the oldest committed transaction whose id counts.
func (w *twin) oldestID(now int64) (txid uint64) {
	for _, id := range w.ids() {
		if id.Time >= now-int64(w.opts.IDWindow) {
			txid = id.Txid
		}
	}
	return txid
}

// ids returns the committed ids that are remembered, newest first.
func (w *twin) ids() (known []lockmgr.TrackedID) {
	for txid := w.committed(); txid >= w.first && len(known) < w.opts.IDs; txid-- {
		l := w.log[txid-1]
		if l.time < w.now()-int64(w.opts.IDWindow) {
			break
		}
		known = addID(known, txid, l)
	}
	return known
}

func addID(known []lockmgr.TrackedID, txid uint64, l logged) []lockmgr.TrackedID {
	if l.tx.ID == (lockmgr.ID{}) || slices.ContainsFunc(known, func(t lockmgr.TrackedID) bool { return t.ID == l.tx.ID }) {
		return known
	}
	return append(known, lockmgr.TrackedID{ID: l.tx.ID, Txid: txid, Time: l.time, Fingerprint: l.tx.Fingerprint})
}

// certify computes a verdict and changes nothing.
func (w *twin) certify(tx *lockmgr.Transaction, now int64) lockmgr.Verdict {
	if v := w.duplicate(tx, now); v.Outcome != lockmgr.Pass {
		return v
	}
	if tx.HasNotAfter && now > tx.NotAfter {
		return lockmgr.Verdict{Outcome: lockmgr.Expired}
	}
	if tx.HasHighWaterMark && tx.HighWaterMark > w.last() {
		return lockmgr.Verdict{Outcome: lockmgr.Ahead}
	}
	if tx.HasExpectedLast && tx.ExpectedLast != w.last() {
		v := lockmgr.Verdict{Outcome: lockmgr.WrongLast}
		if tx.ExpectedLast >= w.committed() && tx.ExpectedLast < w.last() {
			v.DependsOn = tx.ExpectedLast + 1
		}
		return v
	}
	known, floor := w.locks()
	v := lockmgr.Verdict{Outcome: lockmgr.Pass, Txid: w.last() + 1}
	for _, l := range tx.Locks {
		txid, forgotten := w.newest(l.Name, known, floor)
		if l.Mode != lockmgr.Append && txid > tx.HighWaterMark {
			v.Outcome, v.Txid = lockmgr.Conflicted, 0
			v.Conflicts = append(v.Conflicts, lockmgr.Conflict{Name: l.Name, Mode: l.Mode, Txid: txid, Forgotten: forgotten})
			if txid > w.committed() {
				v.DependsOn = max(v.DependsOn, txid)
			}
		}
	}
	slices.SortStableFunc(v.Conflicts, func(a, b lockmgr.Conflict) int { return -cmp.Compare(a.Txid, b.Txid) })
	return v
}

func (w *twin) duplicate(tx *lockmgr.Transaction, now int64) lockmgr.Verdict {
	if tx.ID == (lockmgr.ID{}) {
		return lockmgr.Verdict{}
	}
	var known []lockmgr.TrackedID
	for txid := w.last(); txid > w.committed(); txid-- {
		known = addID(known, txid, w.at(txid))
	}
	for _, id := range append(known, w.ids()...) {
		if id.ID != tx.ID || id.Time < now-int64(w.opts.IDWindow) {
			continue
		}
		v := lockmgr.Verdict{Outcome: lockmgr.Duplicate, Txid: id.Txid, Time: id.Time}
		if id.Fingerprint != tx.Fingerprint {
			v.Outcome = lockmgr.IDReused
		}
		if id.Txid > w.committed() {
			v.DependsOn = id.Txid
		}
		return v
	}
	return lockmgr.Verdict{}
}

// newest tries the transactions in flight, then the known locks, then the
// floor.
func (w *twin) newest(name string, known []lockmgr.TrackedLock, floor uint64) (txid uint64, forgotten bool) {
	if txid := w.ever(name, w.committed()); txid > 0 {
		return txid, false
	}
	for _, t := range known {
		if overlap(t.Name, name) {
			return t.Txid, false
		}
	}
	return floor, true
}

// ever returns the newest transaction past txid after, committed or in flight,
// that recorded a lock overlapping name: the truth, with nothing ever
// forgotten.
func (w *twin) ever(name string, after uint64) uint64 {
	for txid := w.last(); txid > after; txid-- {
		for _, l := range w.at(txid).tx.Locks {
			if l.Mode != lockmgr.Read && overlap(l.Name, name) {
				return txid
			}
		}
	}
	return 0
}

// overlap decides token by token, once for each pair.
func overlap(a, b string) bool {
	pair := [2]string{a, b}
	yes, ok := overlaps[pair]
	if !ok {
		yes = overlapTokens(strings.Split(a, "."), strings.Split(b, "."))
		overlaps[pair] = yes
	}
	return yes
}

var overlaps = map[[2]string]bool{}

func overlapTokens(a, b []string) bool {
	for i := 0; ; i++ {
		switch {
		case i == len(a) || i == len(b):
			return len(a) == len(b)
		case a[i] == ">" || b[i] == ">":
			return true
		case a[i] != b[i]:
			return false
		}
	}
}

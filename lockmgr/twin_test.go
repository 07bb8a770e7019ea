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
	kept     uint64 // the first transaction that a trim has left
	time     int64  // of the newest advance
	walked   uint64 // the last rebuild has read the log from here on
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
				return w.withOwners(known, txid), txid
			}
			known = append(known, lockmgr.TrackedLock{Name: locks[i].Name, Txid: txid})
		}
	}
	return w.withOwners(known, w.first-1), w.first - 1
}

// withOwners adds to locks whose newest recorder is of a session the newest one
// that is not, and where the session was alone, as far as transactions above
// the floor say so.
func (w *twin) withOwners(locks []lockmgr.TrackedLock, floor uint64) []lockmgr.TrackedLock {
	for i := range locks {
		l := &locks[i]
		if l.Session = w.at(l.Txid).tx.Session; l.Session == (lockmgr.ID{}) {
			continue
		}
		for txid := l.Txid; txid > floor && l.Other == 0; txid-- {
			switch tx := w.at(txid).tx; {
			case !records(tx, l.Name):
			case tx.Session != l.Session:
				l.Other = txid
			case l.AloneThrough == 0 && checks(tx, l.Name):
				l.AloneAfter, l.AloneThrough = tx.HighWaterMark, txid
			}
		}
	}
	return locks
}

// records reports whether a transaction records a name itself.
func records(tx *lockmgr.Transaction, name string) bool {
	return slices.ContainsFunc(tx.Locks, func(l lockmgr.Lock) bool { return l.Name == name && l.Mode != lockmgr.Read })
}

// checks reports whether a transaction checks all that a name stands for, by
// one lock.
func checks(tx *lockmgr.Transaction, name string) bool {
	return slices.ContainsFunc(tx.Locks, func(l lockmgr.Lock) bool { return l.Mode != lockmgr.Append && contains(l.Name, name) })
}

// besides computes the newest recorder of locks that overlap name other than of
// a session. If none is known above the floor it is at most txid.
//
// That is the floor, or what the session's own transactions say: the newest
// that has recorded a lock which holds name, and has checked it, has met no
// other since its mark. If name is a subtree, so has the newest that has
// recorded anything in it and has checked all of it.
func (w *twin) besides(name string, locks []lockmgr.TrackedLock, floor uint64, session lockmgr.ID) (txid uint64, known bool) {
	if session == (lockmgr.ID{}) {
		txid, forgotten := w.newest(name, locks, floor)
		return txid, !forgotten
	}
	if txid := w.ever(name, floor, session); txid > 0 {
		return txid, true
	}
	most := floor
	var seen []string
	for txid := w.last(); txid > floor; txid-- {
		tx := w.at(txid).tx
		if tx.Session != session {
			continue
		}
		evidence := func(key, checked string) {
			if !slices.Contains(seen, key) && checks(tx, checked) {
				seen, most = append(seen, key), min(most, tx.HighWaterMark)
			}
		}
		for _, l := range tx.Locks {
			if l.Mode != lockmgr.Read && contains(l.Name, name) {
				evidence("lock "+l.Name, l.Name)
			}
			if l.Mode != lockmgr.Read && contains(name, l.Name) && strings.HasSuffix(name, ">") {
				evidence("prefix", name)
			}
		}
	}
	return most, false
}

// sessions returns the committed sessions that are known, newest first, and
// their floor.
func (w *twin) sessions() (known []lockmgr.TrackedSession, floor uint64) {
	first := max(w.first, w.walked)
	for txid := w.committed(); txid >= first; txid-- {
		tx := w.log[txid-1].tx
		if tx.Session == (lockmgr.ID{}) || slices.ContainsFunc(known, func(s lockmgr.TrackedSession) bool { return s.Session == tx.Session }) {
			continue
		}
		if len(known) == w.opts.Sessions {
			return known, txid
		}
		known = append(known, lockmgr.TrackedSession{Session: tx.Session, Seq: tx.SessionSeq, Txid: txid})
	}
	return known, first - 1
}

// inFlightSessions returns the sessions of the transactions in flight, newest
// first.
func (w *twin) inFlightSessions() (known []lockmgr.TrackedSession) {
	for txid := w.last(); txid > w.committed(); txid-- {
		tx := w.at(txid).tx
		if tx.Session != (lockmgr.ID{}) && !slices.ContainsFunc(known, func(s lockmgr.TrackedSession) bool { return s.Session == tx.Session }) {
			known = append(known, lockmgr.TrackedSession{Session: tx.Session, Seq: tx.SessionSeq, Txid: txid})
		}
	}
	return known
}

// session computes whether a transaction is the next one of its session.
func (w *twin) session(tx *lockmgr.Transaction) lockmgr.Verdict {
	known, floor := w.sessions()
	for _, s := range append(w.inFlightSessions(), known...) {
		switch {
		case s.Session != tx.Session:
			continue
		case tx.SessionSeq == s.Seq+1:
			return lockmgr.Verdict{}
		}
		v := lockmgr.Verdict{Outcome: lockmgr.WrongSeq, SessionSeq: s.Seq, HasSessionSeq: true}
		if s.Txid > w.committed() {
			v.DependsOn = s.Txid
		}
		return v
	}
	if tx.SessionSeq == 1 && tx.HighWaterMark >= floor {
		return lockmgr.Verdict{}
	}
	return lockmgr.Verdict{Outcome: lockmgr.WrongSeq, HasSessionSeq: floor == 0}
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
	if tx.HasHighWaterMark && tx.HighWaterMark > w.last() {
		return lockmgr.Verdict{Outcome: lockmgr.Ahead}
	}
	if tx.Session != (lockmgr.ID{}) {
		if v := w.session(tx); v.Outcome != lockmgr.Pass {
			return v
		}
	}
	if tx.HasNotAfter && now > tx.NotAfter {
		return lockmgr.Verdict{Outcome: lockmgr.Expired}
	}
	if tx.HasExpectedLast && tx.ExpectedLast != w.last() {
		v := lockmgr.Verdict{Outcome: lockmgr.WrongLast}
		if tx.ExpectedLast >= w.committed() && tx.ExpectedLast < w.last() {
			v.DependsOn = tx.ExpectedLast + 1
		}
		return v
	}
	locks, floor := w.locks()
	v := lockmgr.Verdict{Outcome: lockmgr.Pass, Txid: w.last() + 1}
	for i, l := range tx.Locks {
		txid, known := w.besides(l.Name, locks, floor, tx.Session)
		forgotten := !known
		if forgotten && txid > tx.HighWaterMark && tx.Older != nil && tx.Through >= floor {
			txid, forgotten = tx.Older[i].Txid, tx.Older[i].Forgotten
		}
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
	known = append(known, w.ids()...)
	if w.opts.IDsInLog && tx.Session == (lockmgr.ID{}) {
		if u := w.use(tx.ID, w.committed()); u.Txid > 0 {
			known = append(known, lockmgr.TrackedID{ID: tx.ID, Txid: u.Txid, Time: u.Time, Fingerprint: u.Fingerprint})
		}
	}
	for _, id := range known {
		if id.ID != tx.ID || id.Time < now-int64(w.opts.IDWindow) && !w.opts.IDsInLog {
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

// use returns the newest use of an id up to a transaction in the log that a
// trim has left, the zero Use if there is none.
func (w *twin) use(id lockmgr.ID, through uint64) lockmgr.Use {
	for txid := through; txid >= w.kept; txid-- {
		if l := w.log[txid-1]; l.tx.ID == id {
			return lockmgr.Use{Txid: txid, Time: l.time, Fingerprint: l.tx.Fingerprint}
		}
	}
	return lockmgr.Use{}
}

// newest tries the transactions in flight, then the known locks, then the
// floor.
func (w *twin) newest(name string, known []lockmgr.TrackedLock, floor uint64) (txid uint64, forgotten bool) {
	if txid := w.ever(name, w.committed(), lockmgr.ID{}); txid > 0 {
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
// that recorded a lock overlapping name and is not of a session: the truth,
// with nothing ever forgotten.
func (w *twin) ever(name string, after uint64, session lockmgr.ID) uint64 {
	return w.newestOf(name, after, w.last(), session)
}

// newestOf is ever up to a txid.
func (w *twin) newestOf(name string, after, through uint64, session lockmgr.ID) uint64 {
	for txid := through; txid > after; txid-- {
		if session != (lockmgr.ID{}) && w.at(txid).tx.Session == session {
			continue
		}
		for _, l := range w.at(txid).tx.Locks {
			if l.Mode != lockmgr.Read && overlap(l.Name, name) {
				return txid
			}
		}
	}
	return 0
}

// contains reports whether a name stands for all that another one stands for.
func contains(all, name string) bool {
	return all == name || strings.HasSuffix(all, ">") && strings.HasPrefix(name, strings.TrimSuffix(all, ">"))
}

// lastOwn returns the last transaction of a session that has recorded a name
// and checked it, 0 if none has.
func (w *twin) lastOwn(name string, session lockmgr.ID) uint64 {
	for txid := w.last(); txid > 0; txid-- {
		if tx := w.at(txid).tx; tx.Session == session && records(tx, name) && checks(tx, name) {
			return txid
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

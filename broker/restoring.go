package broker

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// A log is restored from a backup in steps, each of which is an entry: the
// beginning, which sets the point at which the backup begins; the batches of
// the backup, as they were; its cursors; and the end, which says at which txid
// and digest the log must be. In between the partition is restoring: a part of
// the replicated state, like the high-water mark. It makes batches of other
// entries void, and cursor writes and trims too.
//
// A mirror is restored for as long as it follows its source. It is read
// meanwhile, under the source's id: until the end, a reader can go on at either
// side. Cursors are then those of the source, and a trim is the mirror's own.
//
// Every step may come twice or late, from a leader that was replaced: one that
// does not fit the state changes nothing, on every replica alike.

// restoring is the state of a log that is being restored.
type restoring struct {
	Cluster string `json:"cluster"` // from which the backup was taken
	Txid    uint64 `json:"txid"`    // where the backup begins
	Digest  []byte `json:"digest"`
	Mirror  bool   `json:"mirror,omitempty"`
}

// isRestoring reports whether the log is being restored. The caller is Apply,
// or holds mu.
func (s *partitionState) isRestoring() bool { return s.restoring != nil }

// hides reports whether reads are refused: the log is being restored and is not
// a mirror.
func (s *restoring) hides() bool { return s != nil && !s.Mirror }

// source returns the id of the cluster that the log mirrors, "" if it is no
// mirror.
func (s *restoring) source() string {
	if s == nil || !s.Mirror {
		return ""
	}
	return s.Cluster
}

// restoresFrom reports whether the log is being restored from a backup that
// begins like this.
func (s *restoring) restoresFrom(b *wal.RestoreBegin) bool {
	return s != nil && s.Cluster == b.Cluster && s.Txid == b.Base.Txid && slices.Equal(s.Digest, b.Base.Digest[:]) && s.Mirror == b.Mirror
}

// mayBegin returns why a log can't be restored into this one, nil if it can. mu
// is held.
func (s *partitionState) mayBegin(b *wal.RestoreBegin) error {
	switch mark := s.mark.Load(); {
	case s.restoring.restoresFrom(b):
		return nil
	case s.restoring.source() != "":
		return subjects.Errorf(subjects.WrongLast,
			"the partition is a mirror of cluster %s, whose log began after txid %d: go on with that one, or use a new cluster",
			s.restoring.Cluster, s.restoring.Txid)
	case s.isRestoring() && strings.HasPrefix(s.restoring.Cluster, "import-"):
		return subjects.Errorf(subjects.WrongLast, "the partition has an incomplete import (--keep) of another file, or under another --name: "+
			"run that import again, with its file or with a copy that ends after line %d or later, which gives up the rest", max(mark-s.restoring.Txid, 1))
	case s.isRestoring():
		return subjects.Errorf(subjects.WrongLast,
			"the partition is being restored from another backup, of cluster %s, which begins after txid %d: go on with that one, "+
				"up to txid %d (--to-txid) if the rest is given up, or restore into a new cluster",
			s.restoring.Cluster, s.restoring.Txid, max(mark, s.restoring.Txid+1))
	case mark > 0 || len(s.history) > 0:
		return subjects.Errorf(subjects.WrongLast, "the partition has transactions, or was restored before (its last txid is %d): use a new cluster", mark)
	case len(s.cursors) > 0:
		return subjects.Errorf(subjects.WrongLast, "the partition has %s: remove them, or use a new cluster", count(len(s.cursors), "cursor"))
	}
	return nil
}

// applyRestores applies the steps of a restore. A batch is void if one of its
// steps does not fit.
func (s *partitionState) applyRestores(e raftstore.Committed, b wal.Batch) (applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	void := false
	var step wal.RestoreStep
	records := b.Read()
	for !void && records.NextRestore(&step) {
		switch {
		case step.Begin != nil:
			if void = s.isRestoring() || s.mayBegin(step.Begin) != nil; !void {
				s.beginRestore(step.Begin, e.Index)
			}
		case step.Cursor != nil:
			if void = !s.isRestoring(); !void {
				s.restoreCursor(step.Cursor)
			}
		case step.End != nil:
			if void = s.mayEnd(step.End) != nil; !void {
				s.restoring, s.history = nil, step.End.History
			}
		case step.Recovered != nil:
			s.recovered(step.Recovered)
		}
	}
	s.countOther(e)
	if err := records.Err(); err != nil {
		return applied{}, fmt.Errorf("%w: %w", wal.ErrDamaged, err)
	}
	if void {
		return applied{void: true}, s.log.Void(e.Index)
	}
	return applied{}, nil
}

// recovered notes which transactions are those of a cluster that was lost: the
// ones that its node knew to be committed. Those after them count here, but
// another node of that cluster may have committed others under their txids. A
// log that is being restored has nothing from there. mu is held.
func (s *partitionState) recovered(how *wal.LogRecovered) {
	if s.isRestoring() {
		return
	}
	last := how.Committed
	if n := len(s.history); n > 0 {
		last = max(last, s.history[n-1].LastTxid)
	}
	s.history = append(slices.Clip(s.history), wal.PastCluster{ID: how.Cluster, LastTxid: last})
}

// beginRestore sets the state to that of a log whose transactions up to a base
// were trimmed. mu is held.
func (s *partitionState) beginRestore(b *wal.RestoreBegin, index uint64) {
	s.restoring = &restoring{Cluster: b.Cluster, Txid: b.Base.Txid, Digest: b.Base.Digest[:], Mirror: b.Mirror}
	s.history, s.mirrored = b.History, b.Mirror
	s.first, s.base, s.digest = b.Base.Txid+1, b.Base, b.Base.Digest
	s.lastTime, s.baseTime = b.Time, b.Time
	// Without a walk the rebuilt table is empty, and its floor is at the base.
	_ = s.certifier.rebuild(b.Base.Txid, b.Time, s.first, func(func(*wal.Transaction) bool) error { return nil })
	s.mark.Store(b.Base.Txid)
	if b.Base.Txid > 0 {
		s.chain.add(chainPoint{b.Base, index})
	}
}

// restoreCursor sets a cursor as it was. A mirror keeps one that was set later.
// mu is held.
func (s *partitionState) restoreCursor(c *wal.RestoredCursor) {
	name := string(c.Name)
	if s.restoring.Mirror && c.Time < s.cursors[name].Time {
		return
	}
	if s.dirty[name] = true; c.Txid > 0 {
		s.cursors[name] = cursor{Txid: c.Txid, Time: c.Time}
	} else {
		delete(s.cursors, name)
	}
}

// mayEnd returns why a restore can't end now, nil if it can. mu is held.
func (s *partitionState) mayEnd(end *wal.RestoreEnd) error {
	mark := s.mark.Load()
	switch {
	case !s.isRestoring():
		return subjects.Errorf(subjects.WrongLast, "the partition is not being restored, nor a mirror: its last txid is %d", mark)
	case mark != end.Base.Txid:
		return subjects.Errorf(subjects.WrongLast, "the partition has the transactions up to %d, and not %d: load the others first", mark, end.Base.Txid)
	case s.digest != end.Base.Digest:
		return subjects.Errorf(subjects.WrongLast,
			"at txid %d the partition has the digest %x, and the backup %x: what was loaded is not what was backed up; restore into a new cluster", mark, s.digest[:], end.Base.Digest[:])
	}
	for name, c := range s.cursors {
		if c.Txid > mark {
			return subjects.Errorf(subjects.Ahead, "cursor %q is at %d, and the log ends at %d", name, c.Txid, mark)
		}
	}
	return nil
}

// hasEnded reports whether a restore has ended like this before.
func (s *partitionState) hasEnded(end *wal.RestoreEnd) bool {
	return !s.isRestoring() && len(end.History) > 0 && slices.Equal(s.history, end.History)
}

// maxPast bounds the past clusters of a log.
const maxPast = 256

// checkHistory returns an error unless past are the clusters of a log that
// ended at a txid, the last of them source.
func checkHistory(past []wal.PastCluster, source string, last uint64) error {
	if len(past) == 0 {
		return subjects.Errorf(subjects.BadRequest, "end.history: it has 0 clusters: 1 to %d are allowed, the last of them that of the backup", maxPast)
	}
	if err := checkPast("end.history", past); err != nil {
		return err
	}
	if p := past[len(past)-1]; p.ID != source || p.LastTxid != last {
		return subjects.Errorf(subjects.BadRequest, "end.history: it ends with cluster %s and txid %d: the backup is of cluster %s and ends at %d", p.ID, p.LastTxid, source, last)
	}
	return nil
}

// checkPast returns an error unless past are the clusters of a log, the oldest
// first.
func checkPast(field string, past []wal.PastCluster) error {
	bad := func(format string, args ...any) error {
		return subjects.Errorf(subjects.BadRequest, field+": "+format, args...)
	}
	if len(past) > maxPast {
		return bad("it has %d clusters: at most %d are allowed", len(past), maxPast)
	}
	seen := map[string]bool{}
	before := uint64(0)
	for _, p := range past {
		if err := checkClusterID(p.ID); err != nil {
			return err
		}
		if seen[p.ID] || p.LastTxid < before {
			return bad("cluster %s is in it twice, or its last txid is less than that of the one before", p.ID)
		}
		seen[p.ID], before = true, p.LastTxid
	}
	return nil
}

// checkClusterID refuses what can't be a cluster's id.
func checkClusterID(id string) error {
	const most = 128
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f {
			return subjects.Errorf(subjects.BadRequest, "cluster %q is not a cluster's id", clip([]byte(id)))
		}
	}
	if id == "" || len(id) > most {
		return subjects.Errorf(subjects.BadRequest, "a cluster's id has 1 to %d bytes, and %q has %d", most, clip([]byte(id)), len(id))
	}
	return nil
}

// checkRestored returns an error unless a replica can apply a batch that
// follows on a transaction, and readers can get it. Replicas take a batch
// without a look into it, and one that they could not read would stop them all.
func checkRestored(data []byte, after wal.Base, lastTime int64) (last uint64, at int64, err error) {
	bad := func(format string, args ...any) (uint64, int64, error) {
		return 0, 0, subjects.Errorf(subjects.BadRequest, "batch after txid %d: "+format, append([]any{after.Txid}, args...)...)
	}
	b, err := wal.ParseBatch(data)
	switch {
	case err != nil:
		return bad("%v", err)
	case b.Kind != wal.Transactions || b.Count == 0:
		return bad("it has no transactions")
	case b.First != after.Txid+1:
		return bad("it begins with txid %d", b.First)
	case b.Time < lastTime:
		return bad("its time, %d, is out of range: the last one is %d", b.Time, lastTime)
	case b.Time >= maxRestoredTime:
		return bad("its time, %d, is out of range: it is after the year 2261", b.Time)
	}
	var t wal.Transaction
	records := b.Read()
	for records.Next(&t) {
		err := checkStored(&t)
		if err == nil {
			err = checkFingerprint(&t, records)
		}
		if err != nil {
			return bad("txid %d: %v", t.Txid, err)
		}
	}
	if err := records.Err(); err != nil {
		return bad("%v", err)
	}
	return b.Last(), b.Time + int64(b.Count) - 1, nil
}

// checkFingerprint compares the fingerprint of an atomic batch with the
// payloads of its transactions, of which t is the first. rest are those that
// follow.
func checkFingerprint(t *wal.Transaction, rest wal.BatchReader) error {
	if t.Atomic.Size == 0 || t.Atomic.Index > 0 || len(t.MsgID)+len(t.Session) == 0 {
		return nil
	}
	payloads := func(yield func([]byte) bool) {
		more := yield(t.Payload)
		var u wal.Transaction
		for n := t.Atomic.Size - 1; n > 0 && more && rest.Next(&u); n-- {
			more = yield(u.Payload)
		}
	}
	if wal.PayloadsHash(payloads) != t.Atomic.Fingerprint {
		return fmt.Errorf("the fingerprint of the atomic batch %d-%d is not that of its payloads", t.First(), t.Last())
	}
	return nil
}

// checkStored checks a transaction of a batch as an append would be checked.
func checkStored(t *wal.Transaction) error {
	if err := subjects.CheckKind(text(t.Kind)); err != nil {
		return err
	}
	if len(t.MsgID) > 0 {
		if err := subjects.CheckMsgID(text(t.MsgID)); err != nil {
			return err
		}
		if t.Atomic.Index > 0 {
			return fmt.Errorf("message id %q is not on the first transaction of its atomic batch", clip(t.MsgID))
		}
	}
	if t.SessionSeq > 0 {
		if err := subjects.CheckSession(text(t.Session)); err != nil {
			return err
		}
		if t.SessionSeq == math.MaxUint64 {
			return fmt.Errorf("number %d of session %q: none can follow", t.SessionSeq, t.Session)
		}
		if len(t.MsgID) > 0 {
			return fmt.Errorf("message id %q beside session %q", clip(t.MsgID), t.Session)
		}
	}
	if len(t.Cursor) > 0 {
		if err := subjects.CheckCursor(text(t.Cursor)); err != nil {
			return err
		}
		if t.Atomic.Index > 0 {
			return fmt.Errorf("cursor %q is not on the first transaction of its atomic batch", t.Cursor)
		}
	}
	if t.Atomic.Size > 0 {
		if err := subjects.CheckAtomic(t.First(), t.Last(), t.Txid); err != nil {
			return err
		}
	}
	if len(t.Locks) > subjects.MaxLocks {
		return fmt.Errorf("%d locks", len(t.Locks))
	}
	for _, l := range t.Locks {
		if err := subjects.CheckLock(text(l.Name)); err != nil {
			return err
		}
	}
	if len(t.Header) == 0 {
		return nil
	}
	block := append(subjects.AppendBlockStart(nil), t.Header...)
	return subjects.ScanBlock(subjects.AppendBlockEnd(block), func(key, _ []byte) error {
		verdict, err := subjects.CheckOtherHeader(text(key))
		if err == nil && verdict != subjects.Stored {
			err = fmt.Errorf("header %q is not stored", clip(key))
		}
		return err
	})
}

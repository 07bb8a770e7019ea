package wal

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Digest is an element of the digest chain over a log's batches of
// transactions: digest(n) = SHA-256(digest(n-1) ‖ batch n), and digest(0) is 32
// zero bytes.
type Digest [sha256.Size]byte

// Next returns the digest after one more batch.
func (d Digest) Next(batch []byte) Digest {
	h := sha256.New()
	h.Write(d[:])
	h.Write(batch)
	var next Digest
	h.Sum(next[:0])
	return next
}

// The names under which a node stores points of a log's digest chain with
// [Log.SetMeta], each encoded by [EncodeBase].
const (
	// MetaDigestBase is the point before the oldest batch that is kept. Without
	// it the chain starts at txid 0.
	MetaDigestBase = "digest.base"
	// MetaDigestMark is the newest point that the node has stored.
	MetaDigestMark = "digest.mark"
)

// Base is a point of a log's digest chain: the digest after the batch that
// ends in Txid. The zero value is the chain's beginning.
type Base struct {
	Txid   uint64
	Digest Digest
}

const baseSize = 8 + sha256.Size

// EncodeBase returns b encoded for a log's small state: the txid as 8
// big-endian bytes, and the digest.
func EncodeBase(b Base) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, baseSize), b.Txid), b.Digest[:]...)
}

// DecodeBase decodes the result of EncodeBase. Without bytes it returns the
// zero Base. The error wraps [ErrDamaged].
func DecodeBase(b []byte) (Base, error) {
	if b == nil {
		return Base{}, nil
	}
	if len(b) != baseSize {
		return Base{}, fmt.Errorf("%w: a point of the digest chain has %d bytes, not %d", ErrDamaged, len(b), baseSize)
	}
	return Base{Txid: binary.BigEndian.Uint64(b), Digest: Digest(b[8:])}, nil
}

// PartitionReport is the result of [Verify] for one group's log.
type PartitionReport struct {
	Group uint32
	// FirstTxid and LastTxid are the oldest and the newest transaction that is
	// kept. If there are none LastTxid is where the chain starts, 0 for a log
	// that was never trimmed, and FirstTxid is the one after it.
	FirstTxid, LastTxid uint64
	Transactions        uint64
	Entries             uint64
	// Bytes is the size of the entries' data.
	Bytes uint64
	// Digest is the digest at LastTxid.
	Digest Digest
	// Compared is the txid at which the node last stored its own digest, which
	// was compared with Digest's chain; 0 for never.
	Compared uint64
	// Err wraps [ErrDamaged] if the log is not whole.
	Err error
}

// Verify reads the whole data directory dir and calls report for each
// partition, in order. It opens the directory as a node does: no other process
// may have it open, and frames that a crash has left in the journal are
// replayed. Its error is one of those of [Open], or fs.ErrNotExist if there is
// no data directory; an error of a partition is in its report.
func Verify(dir string, report func(PartitionReport)) error {
	if _, err := ReadIdentity(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("verify: %s is not a data directory: %w", dir, err)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		return err
	}
	for group := range uint32(s.Identity().Partitions) {
		report(verifyGroup(s.Log(group)))
	}
	return s.Close()
}

func verifyGroup(l *Log) PartitionReport {
	base, err := DecodeBase(l.Meta(MetaDigestBase))
	mark, markErr := DecodeBase(l.Meta(MetaDigestMark))
	if err = errors.Join(err, markErr); err != nil {
		return PartitionReport{Group: l.group, Err: fmt.Errorf("group %d: %w", l.group, err)}
	}
	if mark.Txid == 0 {
		return VerifyLog(l, base)
	}
	return VerifyLog(l, base, mark)
}

// VerifyLog reads the whole log l, checks every entry and record, and computes
// the digest chain from base on. Each of marks after base must be a point of
// the chain; those before base can't be checked.
func VerifyLog(l *Log, base Base, marks ...Base) PartitionReport {
	v := verification{
		report: PartitionReport{Group: l.group, FirstTxid: base.Txid + 1, LastTxid: base.Txid, Digest: base.Digest},
		marks:  slices.SortedFunc(slices.Values(marks), func(a, b Base) int { return cmp.Compare(a.Txid, b.Txid) }),
		voids:  l.Voids(),
	}
	for len(v.marks) > 0 && v.marks[0].Txid < base.Txid {
		v.marks = v.marks[1:]
	}
	first, last := l.ends()
	v.trimmed = first > 1
	v.restoring.known = !v.trimmed
	err := v.compare()
	if last != 0 && err == nil {
		for e, readErr := range l.Entries(first, last) {
			if err = readErr; err == nil {
				err = v.entry(&e)
			}
			if err != nil {
				break
			}
		}
	}
	if err == nil && len(v.marks) > 0 {
		err = fmt.Errorf("%w: the log ends at txid %d, the node wrote down %d", ErrDamaged, v.report.LastTxid, v.marks[0].Txid)
	}
	if err != nil {
		v.report.Err = fmt.Errorf("group %d: %w", l.group, err)
	}
	return v.report
}

// verification is the state of VerifyLog.
type verification struct {
	report PartitionReport
	marks  []Base // not compared yet, in order
	voids  []uint64
	record Transaction
	// trimmed is true if the beginning of the log was trimmed.
	trimmed   bool
	restoring restoring
}

func (v *verification) entry(e *Entry) error {
	r := &v.report
	r.Entries++
	r.Bytes += uint64(len(e.Data))
	if e.Type != 0 {
		return nil
	}
	b, err := ParseBatch(e.Data)
	if err == nil {
		err = checkRecords(b, &v.record)
	}
	if err != nil {
		return fmt.Errorf("%w: entry %d: %w", ErrDamaged, e.Index, err)
	}
	if b.Kind == Restores {
		v.restore(e.Index, b)
	}
	if b.Kind != Transactions || b.Count == 0 {
		return nil
	}
	if e.outOfTerm(&b) {
		return nil
	}
	if b.First != r.LastTxid+1 {
		return v.void(e.Index, b)
	}
	void := slices.Contains(v.voids, e.Index)
	if !v.restoring.counts(e) || void && !v.restoring.known {
		return nil
	}
	if void {
		return fmt.Errorf("%w: entry %d continues the txids with %d, yet is marked as void", ErrDamaged, e.Index, b.First)
	}
	r.Digest = r.Digest.Next(e.Data)
	r.LastTxid = b.Last()
	r.Transactions += uint64(b.Count)
	return v.compare()
}

// restore follows the steps by which a log is restored. A log that is restored
// begins at the base of the backup, unless it was trimmed since.
func (v *verification) restore(index uint64, b Batch) {
	if slices.Contains(v.voids, index) {
		return
	}
	r := &v.report
	if begin := v.restoring.step(b); begin != nil && r.LastTxid == 0 {
		r.FirstTxid, r.LastTxid, r.Digest = begin.Base.Txid+1, begin.Base.Txid, begin.Base.Digest
	}
}

// void checks a batch that does not continue the txids. The node may not have
// marked it yet. If it skips txids that exist, batches are missing.
func (v *verification) void(index uint64, b Batch) error {
	if slices.Contains(v.voids, index) || b.First <= v.report.LastTxid {
		return nil
	}
	if len(v.marks) > 0 || v.report.LastTxid == 0 && v.trimmed {
		return fmt.Errorf("%w: entry %d begins at txid %d, the one before ends at %d", ErrDamaged, index, b.First, v.report.LastTxid)
	}
	return nil
}

// compare compares the chain with the marks up to its end.
func (v *verification) compare() error {
	r := &v.report
	for ; len(v.marks) > 0 && v.marks[0].Txid <= r.LastTxid; v.marks = v.marks[1:] {
		m := v.marks[0]
		if m.Txid < r.LastTxid {
			return fmt.Errorf("%w: no batch ends at txid %d, where the node wrote down its digest", ErrDamaged, m.Txid)
		}
		if m.Digest != r.Digest {
			return fmt.Errorf("%w: the digest at txid %d is %x, the node wrote down %x", ErrDamaged, m.Txid, r.Digest, m.Digest)
		}
		r.Compared = m.Txid
	}
	return nil
}

func checkRecords(b Batch, t *Transaction) error {
	r := b.Read()
	switch b.Kind {
	case Transactions:
		for r.Next(t) {
		}
	case CursorWrites:
		for c := (Cursor{}); r.NextCursor(&c); {
		}
	case Restores:
		for s := (RestoreStep{}); r.NextRestore(&s); {
		}
	default:
		for _, ok := r.NextRaw(); ok; _, ok = r.NextRaw() {
		}
	}
	return r.Err()
}

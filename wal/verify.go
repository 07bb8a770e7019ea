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

// Digest is the chain over a log's batches of transactions:
// digest(n) = SHA-256(digest(n-1) ‖ batch n), from 32 zero bytes on.
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

// The names under which a node writes down points of a log's digest chain
// with [Log.SetMeta], each as [EncodeBase] gives it.
const (
	// MetaDigestBase is the point before the oldest batch kept; without it the
	// chain starts at txid 0.
	MetaDigestBase = "digest.base"
	// MetaDigestMark is the newest point that the node wrote down.
	MetaDigestMark = "digest.mark"
)

// Base is a point of a log's digest chain: the digest after the batch that
// ends in Txid. The zero value is the chain's beginning.
type Base struct {
	Txid   uint64
	Digest Digest
}

const baseSize = 8 + sha256.Size

// EncodeBase returns b as it is kept in a log's small state: the txid as 8
// big-endian bytes, and the digest.
func EncodeBase(b Base) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, baseSize), b.Txid), b.Digest[:]...)
}

// DecodeBase reads what EncodeBase made; nil gives the zero Base. The error
// wraps [ErrDamaged].
func DecodeBase(b []byte) (Base, error) {
	if b == nil {
		return Base{}, nil
	}
	if len(b) != baseSize {
		return Base{}, fmt.Errorf("%w: a point of the digest chain has %d bytes, not %d", ErrDamaged, len(b), baseSize)
	}
	return Base{Txid: binary.BigEndian.Uint64(b), Digest: Digest(b[8:])}, nil
}

// PartitionReport is what [Verify] found in one group's log.
type PartitionReport struct {
	Group uint32
	// FirstTxid and LastTxid are the oldest and the newest transaction kept.
	// If there are none LastTxid is where the chain starts, 0 for a log that
	// was never trimmed, and FirstTxid the one after it.
	FirstTxid, LastTxid uint64
	Transactions        uint64
	Entries             uint64
	// Bytes is the size of the entries' data.
	Bytes uint64
	// Digest is the chain at LastTxid.
	Digest Digest
	// Marker is the txid at which the node last wrote its own digest down,
	// 0 for never. It was compared.
	Marker uint64
	// Err wraps [ErrDamaged] if the log is not whole.
	Err error
}

// Verify reads the data directory dir whole and calls report for each
// partition, in order. It opens the directory as a node does, so that no
// other process may have it open, and replays the journal if a crash left
// something there. Its own error is as [Open] gives it, or
// fs.ErrNotExist where there is no data directory; what is wrong with a
// partition stands in its report.
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

// VerifyLog reads the whole log of l, checks every entry and every record and
// computes the digest chain from base on. Each of marks from base on must be a
// point of the chain; those before it are past checking.
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

// verification is VerifyLog under way.
type verification struct {
	report PartitionReport
	marks  []Base // not met yet, in order
	voids  []uint64
	record Transaction
	// trimmed says that the log does not go back to its beginning.
	trimmed bool
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
	if b.Kind != Transactions || b.Count == 0 {
		return nil
	}
	if b.OutOfTerm(e.Term) {
		return nil
	}
	if b.First != r.LastTxid+1 {
		return v.void(e.Index, b)
	}
	if slices.Contains(v.voids, e.Index) {
		return fmt.Errorf("%w: entry %d continues the txids with %d, yet is marked as void", ErrDamaged, e.Index, b.First)
	}
	r.Digest = r.Digest.Next(e.Data)
	r.LastTxid = b.Last()
	r.Transactions += uint64(b.Count)
	return v.compare()
}

// void looks at a batch that does not continue the txids. A node may not have
// got to marking it; but where txids are skipped that are known to exist,
// batches are missing.
func (v *verification) void(index uint64, b Batch) error {
	if slices.Contains(v.voids, index) || b.First <= v.report.LastTxid {
		return nil
	}
	if len(v.marks) > 0 || v.report.LastTxid == 0 && v.trimmed {
		return fmt.Errorf("%w: entry %d begins at txid %d, the one before ends at %d", ErrDamaged, index, b.First, v.report.LastTxid)
	}
	return nil
}

// compare compares the chain with the marks that it has come to.
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
		r.Marker = m.Txid
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
	default:
		for _, ok := r.NextRaw(); ok; _, ok = r.NextRaw() {
		}
	}
	return r.Err()
}

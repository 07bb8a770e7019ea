package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"time"

	"github.com/cantuslog/cantus/wal"
)

const (
	keptBatchBytes = 512 << 10
	keptBatchCount = 4096
	// keptYear is the last one of which every time has a number of Unix
	// nanoseconds. Later transactions need a time too.
	keptYear = 2261
)

// keptEncoder makes batches of lines. The i-th transaction of a batch has the
// time of the first and i nanoseconds, so a batch ends where the next line's
// time is another one. An export has the times of its log's batches.
type keptEncoder struct {
	log   *keptLog
	w     wal.BatchWriter
	first uint64 // of the batch, 0 if there is none
	at    int64  // the time of its first transaction
	next  uint64 // the next txid
	last  int64  // the time of the last line

	// An atomic batch is in one batch: its lines are added once all have come.
	part  *transaction // one of them, nil outside an atomic batch
	parts []*wal.Transaction
	began int64 // the time of the first
	bytes int   // of their payloads
}

// batches reads the file and returns its batches. Once all were returned, log
// describes them. An error is the last value.
func (k *keptImport) batches() iter.Seq2[keptBatch, error] {
	return func(yield func(keptBatch, error) bool) {
		if _, err := k.file.Seek(0, io.SeekStart); err != nil {
			yield(keptBatch{}, err)
			return
		}
		lines, err := newLines(k.file, k.cmd.Name)
		if err != nil {
			yield(keptBatch{}, err)
			return
		}
		k.id = lines.id()
		e := &keptEncoder{log: &keptLog{}}
		for {
			line, err := lines.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				yield(keptBatch{}, err)
				return
			}
			t, err := decodeTransaction(line)
			var done *keptBatch
			if err == nil {
				done, err = e.add(t)
			}
			if err != nil {
				yield(keptBatch{}, usagef("line %d: %w", lines.n, plain(err)))
				return
			}
			if done != nil && !yield(*done, nil) {
				return
			}
		}
		if err := e.checkEnd(); err != nil {
			yield(keptBatch{}, usagef("line %d: %w", lines.n, err))
			return
		}
		done := e.finish()
		k.log = *e.log
		if done != nil {
			yield(*done, nil)
		}
	}
}

// add adds a line. It returns the batch that the line is no part of.
func (e *keptEncoder) add(t *transaction) (done *keptBatch, err error) {
	at, err := e.checkPosition(t)
	if err == nil {
		err = e.checkPart(t, at)
	}
	if err != nil {
		return nil, err
	}
	stored, err := storedTransaction(t)
	if err != nil {
		return nil, err
	}
	if len(e.parts) == 0 {
		e.began, e.bytes = at, 0
	}
	e.parts, e.bytes = append(e.parts, stored), e.bytes+t.size()
	e.next++
	e.last = at
	e.log.lines++
	if e.part = nil; t.Atomic != nil {
		stored.Atomic.Index, stored.Atomic.Size = uint32(len(e.parts)-1), uint32(t.Atomic.size())
		if uint64(len(e.parts)) < t.Atomic.size() {
			e.part = t
			return nil, nil
		}
	}
	return e.addParts(), nil
}

// addParts adds a transaction, or all of an atomic batch, to the batch or to
// another one, and returns the one that is finished then.
func (e *keptEncoder) addParts() (done *keptBatch) {
	first := e.parts[0]
	if len(e.parts) > 1 && len(first.MsgID)+len(first.Session) > 0 {
		first.Atomic.Fingerprint = wal.PayloadsHash(func(yield func([]byte) bool) {
			for _, t := range e.parts {
				if !yield(t.Payload) {
					return
				}
			}
		})
	}
	txid := e.next - uint64(len(e.parts))
	if n := e.w.Count(); e.first == 0 || e.began != e.at+int64(n) || n+len(e.parts) > keptBatchCount || e.w.Size()+e.bytes > keptBatchBytes {
		done = e.finishBefore(txid)
		e.first, e.at = txid, e.began
		e.w.Begin(wal.Transactions, e.first, e.at, 0)
	}
	for _, t := range e.parts {
		e.w.Add(t)
	}
	clear(e.parts)
	e.parts = e.parts[:0]
	return done
}

// checkPart checks the place of a line, which has a time, in its atomic batch.
func (e *keptEncoder) checkPart(t *transaction, at int64) error {
	switch {
	case e.part != nil && !t.sameAtomic(e.part):
		return e.checkEnd()
	case t.Atomic == nil:
		return nil
	case e.part == nil && t.Atomic.First != e.next:
		return fmt.Errorf("its atomic batch begins with transaction %d, which is missing: with --keep an atomic batch is whole, as in an export from %d on",
			t.Atomic.First, t.Atomic.First)
	case e.part == nil:
		return nil
	case t.MsgID != "":
		return fmt.Errorf("it has a msg_id: that of an atomic batch is at its first transaction, %d", t.Atomic.First)
	case t.Move != "":
		return fmt.Errorf("it has move: that of an atomic batch is at its first transaction, %d", t.Atomic.First)
	case t.Session != e.part.Session || t.SessionSeq != e.part.SessionSeq:
		return errors.New("its session or session_seq is not that of the line before, which is in the same atomic batch: an atomic batch has one number as a whole")
	case at != e.last+1:
		return fmt.Errorf("its time is not one nanosecond after that of the line before, which is in the same atomic batch: write %s, or leave out atomic in all of them",
			time.Unix(0, e.last+1).UTC().Format(time.RFC3339Nano))
	}
	return nil
}

// checkEnd returns an error inside an atomic batch.
func (e *keptEncoder) checkEnd() error {
	if e.part == nil {
		return nil
	}
	return fmt.Errorf("the atomic batch %s is not whole: its line with transaction %d is missing", e.part.Atomic, e.next)
}

// checkPosition checks the txid of a line, and returns its time.
func (e *keptEncoder) checkPosition(t *transaction) (at int64, err error) {
	if t.Time.IsZero() {
		return 0, errors.New(`it has no time, which --keep keeps: write one, such as "time":"2026-11-01T08:30:00Z", or import without --keep, which gives it a new one`)
	}
	if year := t.Time.UTC().Year(); year < 1970 || year > keptYear || t.Time.UnixNano() <= 0 {
		return 0, fmt.Errorf("its time is %s: from 1970 to 2261 is allowed", t.Time.Format(time.RFC3339Nano))
	}
	at = t.Time.UnixNano()
	if e.next == 0 {
		e.next, e.last = max(t.Txid, 1), at-1
		if e.next > 1 {
			e.log.base = wal.Base{Txid: e.next - 1, Digest: sha256.Sum256([]byte("what came before an import"))}
			e.log.time = e.last
		}
		e.log.end = e.log.base
	}
	switch {
	case t.Txid != 0 && t.Txid != e.next || e.next > math.MaxUint64/2:
		return 0, fmt.Errorf("its txid is %d, and %d comes next: with --keep there are no gaps, as in an export without --kind and --lock", t.Txid, e.next)
	case at > e.last:
		return at, nil
	}
	// Times rise within a partition.
	e.log.moved++
	if !t.hasHeader(headerOriginalTime) {
		t.Headers = append(t.Headers, header{headerOriginalTime, t.Time.UTC().Format(time.RFC3339Nano)})
	}
	return e.last + 1, nil
}

// finish returns the batch, nil if it has no transaction.
func (e *keptEncoder) finish() *keptBatch { return e.finishBefore(e.next - uint64(len(e.parts))) }

// finishBefore is finish where the next batch begins with a txid.
func (e *keptEncoder) finishBefore(txid uint64) *keptBatch {
	if e.first == 0 {
		return nil
	}
	b := &keptBatch{data: e.w.Finish(), first: e.first, last: txid - 1}
	e.log.end = wal.Base{Txid: b.last, Digest: e.log.end.Digest.Next(b.data)}
	e.first = 0
	return b
}

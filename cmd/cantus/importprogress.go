package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// importProgress is how far an import is.
type importProgress struct {
	line uint64   // the last line that is in the log, 0 for none
	tag  chainTag // of that line, if it was read from the log
	txid uint64   // of that line; 0 for none
	// found is the transaction that has that line's message id: it, or the
	// first one of its atomic batch, which is atomic. The cursor is there.
	found  uint64
	atomic *atomicRange
	// headers is how many headers that line's transaction has, if it was read
	// from the log.
	headers int
	// cursor is where the cursor is, 0 if there is none, and wanted where it
	// was last to be moved: it is there if an answer was lost.
	cursor, wanted uint64
	empty          bool // the partition has no transaction, and so no cursor
	begins         bool // no line was in the log when the cursor was set or read
}

func (i *importer) cursor() string { return "import-" + i.id }

// locate finds out which lines are in the log. It sets the cursor before the
// first line is appended, unless the partition is empty.
func (i *importer) locate(ctx context.Context) error {
	p := int(i.cmd.Partition)
	var info subjects.PartitionInfo
	var cursor subjects.CursorReply
	err := i.conn.ask(ctx, i.conn.names.PartitionInfo(p), nil, &info)
	if err == nil {
		err = i.conn.ask(ctx, i.conn.names.Cursor(p, i.cursor()), nil, &cursor)
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return i.conn.noLeader(ctx, p)
	}
	if err != nil {
		return err
	}
	if hasPast(info, i.cursor()) {
		return usagef("partition %d was made of this file, or of its beginning, by an import with --keep: without --keep every line would be appended once more; give --name if that is meant", p)
	}
	if i.located && cursor.Txid != i.progress.cursor && cursor.Txid != i.progress.wanted {
		return errAnotherImport
	}
	i.located, i.progress.cursor, i.progress.empty = true, cursor.Txid, false
	mark := max(info.HighWaterMark, i.progress.found, cursor.Txid)
	switch {
	case mark == 0:
		i.progress.empty = true
		return nil
	case cursor.Txid == 0:
		if err := i.searchWithoutCursor(ctx, &info); err != nil || i.progress.line > 0 {
			return errors.Join(err, i.searchOn(ctx, i.progress.found, mark))
		}
	case cursor.Txid > 0:
		if err := i.searchOn(ctx, max(cursor.Txid, i.progress.found), mark); err != nil || i.progress.line > 0 || i.progress.begins {
			return err
		}
		return i.searchBack(ctx, cursor.Txid-1, len(info.History) > 0)
	}
	i.progress.begins = true
	return i.setCursor(ctx, mark)
}

// searchWithoutCursor searches the log where lines may be although there is no
// cursor. The import has not begun; or it began in an empty partition, with the
// first transaction; or in another cluster, of which the partition has the
// transactions, while the cursor came to be there too late: a backup's cursors
// are of a moment before its end, and so are a mirror's.
func (i *importer) searchWithoutCursor(ctx context.Context, info *subjects.PartitionInfo) error {
	last := uint64(1)
	if n := len(info.History); n > 0 {
		last = max(last, info.History[n-1].LastTxid)
	}
	if last < info.FirstTxid {
		return nil
	}
	if last > 1 {
		i.p.note("the transactions up to %d are from another cluster: looking for lines of this import in them", last)
	}
	return i.search(ctx, info.FirstTxid, last)
}

// searchBack searches the log before the cursor, if no line is there or after
// it. Then the import has not begun, or the cursor is past its last line: a
// restore up to an earlier end sets cursors back to that end. moved is true if
// a restore may have done so.
func (i *importer) searchBack(ctx context.Context, to uint64, moved bool) error {
	i.p.note("transaction %d, where the cursor %s is, is no line of this import: looking for its lines from the beginning of the log", to+1, i.cursor())
	err := i.search(ctx, 1, to)
	trimmed, ok := errors.AsType[*subjects.Error](err)
	if ok = ok && trimmed.Reason == subjects.Trimmed; ok {
		err = i.search(ctx, trimmed.FirstTxid, to)
	}
	switch {
	case err != nil || i.progress.line > 0:
		return err
	case ok && moved:
		return failf(exitFailed, "which lines are in the log is not known: the partition was restored, the import's cursor is at transaction %d, "+
			"no line is in what is kept of the log, and the transactions up to %d were trimmed. If some lines were among those, import the others from a file of their own, "+
			"under another --name; if none was, remove the cursor: nats req %s '{\"txid\":0}'",
			to+1, trimmed.FirstTxid-1, i.conn.names.Cursor(int(i.cmd.Partition), i.cursor()))
	}
	i.progress.begins = true
	return nil
}

// searchOn searches the log for lines from a txid on. If the transaction there
// was trimmed and none comes after it, nothing is known.
func (i *importer) searchOn(ctx context.Context, from, to uint64) error {
	err := i.search(ctx, from, to)
	if e, ok := errors.AsType[*subjects.Error](err); ok && e.Reason == subjects.Trimmed {
		return failf(exitFailed, "which lines are in the log is not known any more: its transactions were trimmed up to %d, and the import had come to %d. "+
			"Import what is missing from a file of its own, under another --name", e.FirstTxid-1, from)
	}
	return err
}

// search searches the log for lines of the import, between two txids.
func (i *importer) search(ctx context.Context, from, to uint64) error {
	if from > to {
		return nil
	}
	r := &reader{
		cmd: &readCmd{Partition: i.cmd.Partition, HeadersOnly: true, connection: i.cmd.connection},
		p:   i.p, conn: i.conn, out: bufio.NewWriter(io.Discard), next: from, last: to, bulk: true,
	}
	r.visit = func(t *transaction) error {
		if i.progress.atomic != nil && t.Atomic != nil && *t.Atomic == *i.progress.atomic {
			i.progress.headers = len(t.Headers) // the last one's are those of the line
		}
		n, tag, ok := parseLineID(t.MsgID, i.id)
		if !ok {
			return nil
		}
		lines, last := uint64(1), t.Txid
		if t.Atomic != nil { // it has the message id of its last line
			lines, last = t.Atomic.size(), t.Atomic.Last
		}
		if i.progress.line > 0 && t.Txid != from && n != i.progress.line+lines {
			return failf(exitFailed, "%w: transaction %d is line %d of the import, and line %d was before it; import what is missing from a file of its own, under another --name",
				errDisorder, t.Txid, n, i.progress.line)
		}
		i.progress.line, i.progress.tag, i.progress.txid = n, tag, last
		i.progress.found, i.progress.atomic = t.Txid, t.Atomic
		i.progress.headers = len(t.Headers)
		return nil
	}
	for done := false; !done; {
		var err error
		if done, err = r.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// errDisorder is returned if the log has lines more than once, or not in their
// order. An import can't go on with that.
var errDisorder = errors.New("the log does not have the lines in their order")

// cursorEvery is how often an import moves its cursor.
const cursorEvery = time.Second

// moveCursor moves the cursor to the last line, from time to time. If it can't
// be moved now, the import takes a little longer to go on. The only error is
// errAnotherImport.
func (i *importer) moveCursor(ctx context.Context) error {
	if time.Since(i.moved) < cursorEvery {
		return nil
	}
	i.moved = time.Now()
	if err := i.setCursor(ctx, i.progress.found); errors.Is(err, errAnotherImport) {
		return err
	}
	return nil
}

// leaveCursor moves the cursor to the last line at the end, also of an import
// that is interrupted.
func (i *importer) leaveCursor(ctx context.Context) {
	if i.progress.found > i.progress.cursor {
		_ = i.setCursor(context.WithoutCancel(ctx), i.progress.found)
	}
}

// errAnotherImport is returned if the cursor is not where this import has left
// it.
var errAnotherImport = failf(exitConflict, "another process imports the same file under the same name: it has moved the import's cursor")

// setCursor moves the cursor, unless another process has moved it.
func (i *importer) setCursor(ctx context.Context, txid uint64) error {
	before := i.progress.wanted
	i.progress.wanted = txid
	body, err := json.Marshal(subjects.CursorRequest{Txid: &txid, Expected: &i.progress.cursor})
	if err != nil {
		return err
	}
	answer, err := i.conn.request(ctx, &nats.Msg{Subject: i.conn.names.Cursor(int(i.cmd.Partition), i.cursor()), Data: body})
	if err != nil {
		return err
	}
	var reply subjects.CursorReply
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return err
	}
	switch {
	case reply.Error == nil, reply.Error.Reason == subjects.WrongLast && reply.Txid == txid:
		i.progress.cursor = txid
		return nil
	case reply.Error.Reason == subjects.WrongLast && reply.Txid == before && before != i.progress.cursor:
		i.progress.cursor = reply.Txid
		return i.setCursor(ctx, txid)
	case reply.Error.Reason == subjects.WrongLast:
		return errAnotherImport
	}
	return refusal(reply.Error)
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type importCmd struct {
	Partition partition `arg:"" name:"P" help:"Partition to append to, from 0."`
	File      string    `arg:"" name:"FILE" help:"File with a JSON object a line, as \"cantus export\" writes it; - reads standard input."`

	Name  string `placeholder:"NAME" help:"Name of this import. A file that was imported is imported once more under another name."`
	Plain bool   `xor:"as" help:"Add no headers for the original time, txid and message id."`
	Keep  bool   `xor:"as" help:"Import into an empty partition and keep txids, times, message ids, sessions, locks and atomic batches as they are."`
	JSON  bool   `name:"json" help:"Print the result as JSON."`

	connection
}

func (*importCmd) Help() string {
	return `Appends the transactions of a file to a partition, in the order of the lines. The partition may be in use: other
transactions may come between them. docs/import.md has the form of a line.

Start it again with the same file after it was interrupted, in whatever way: it goes on where it ended, and no line is
missing or appended twice. The cursor import-… of the partition shows how far the import is.

Each transaction gets a txid, a time and a message id of this log. The original ones are in the headers Original-Txid,
Original-Time and Original-Msg-Id. Write locks become append locks: they were certified in another history, and a
high-water mark of that one means nothing here. Read locks and the high-water mark are left out: they were checked when
the transaction committed, and recorded nothing. The session is left out too: it says what came after what in its own
log. Lines of an atomic batch are appended as one: together, or none of them.

With --keep all of that stays as it is, in a partition that is empty and that nobody else uses: it is restored from the
file. The txids of the file must have no gaps. A time that is not later than the one before is moved on, and the original
one is in the header Original-Time. A file is needed: standard input can't be read twice.

Examples:

  cantus import 0 orders.jsonl
  zcat orders.jsonl.gz | cantus import 0 -
  cantus import 0 orders.jsonl --keep

All lines of a file are of one partition, or name none.

Exit status: 1 if it was interrupted or failed; 2 if a line is not a transaction (without --keep those before it are
appended), or the lines are of several partitions; 3 if another process imports the same file; 4 if nobody answered for a
minute. After 1 and 4 the same command goes on.`
}

// importer appends lines to a partition. One message is in flight at a time:
// with more, one could be lost and the next one be appended, around a change of
// leader, and the lines would be out of order.
//
// Each line's transaction has a message id that consists of the import's id,
// the line's number and a hash of the file up to there. What is in the log of
// an import is therefore a beginning of the file, and the last of its
// transactions says how far it goes and whether the file is the same. The
// cursor is a txid before which nothing has to be looked for. So an import that
// goes on, or has lost an answer, reads the log from the cursor to the
// high-water mark that the leader has confirmed, and continues after the last
// line found. That does not depend on how long message ids are remembered.
// They make up for a message that was still on its way when the log was read.
type importer struct {
	cmd   *importCmd
	p     *program
	conn  *natsConn
	lines *lines
	id    string

	progress importProgress
	located  bool      // the progress was found once
	appended uint64    // lines that this run has appended
	first    uint64    // txid of the first of them
	moved    time.Time // when the cursor was last moved
	since    time.Time // when an attempt last succeeded
	noted    bool      // that attempts fail was reported
	sent     bool      // something was sent that changes the partition
}

// importResult is the output of --json.
type importResult struct {
	Partition int    `json:"partition"`
	Lines     uint64 `json:"lines"`
	Appended  uint64 `json:"appended"`
	// FirstTxid and LastTxid are those of the first line that was appended now
	// and of the last line.
	FirstTxid uint64 `json:"first_txid,omitempty"`
	LastTxid  uint64 `json:"last_txid,omitempty"`
	Cursor    string `json:"cursor,omitempty"`
}

// Run imports a file.
func (c *importCmd) Run(ctx context.Context, p *program) error {
	if c.Keep {
		return c.keep(ctx, p)
	}
	in := p.in
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return usagef("%w", err)
		}
		defer f.Close()
		if err := c.checkPartitions(ctx, f); err != nil {
			return (&importer{}).failed(ctx, err)
		}
		in = f
	}
	lines, err := newLines(in, c.Name)
	if err != nil {
		return err
	}
	if lines.first == nil {
		return usagef("%s is empty: there is nothing to import", c.File)
	}
	i := &importer{cmd: c, p: p, lines: lines, id: lines.id(), since: time.Now()}
	if i.conn, err = c.open(ctx, "import"); err != nil {
		return i.failed(ctx, err)
	}
	defer i.conn.close()
	if err := i.run(ctx); err != nil {
		return i.failed(ctx, err)
	}
	return i.print(p)
}

// checkPartitions reads a file before anything is sent, and returns an error if
// its lines name several partitions. It leaves the file at its beginning. What
// can be read only once is checked as it is sent.
func (c *importCmd) checkPartitions(ctx context.Context, f *os.File) error {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return err
	}
	lines := &lines{in: bufio.NewReaderSize(f, 1<<20)}
	for ctx.Err() == nil {
		line, err := lines.read()
		if errors.Is(err, io.EOF) {
			_, err = f.Seek(0, io.SeekStart)
			return err
		}
		if len(line) > 0 && err == nil {
			lines.n++
			err = lines.checkPartition(line)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// failed returns the failure that err ends an import with: it says what is in
// the log. An interrupt is exitFailed, whatever it has interrupted.
func (i *importer) failed(ctx context.Context, err error) error {
	status, exact := exitStatus(err), exitStatus(err) == exitUsage
	switch {
	case ctx.Err() != nil && status != exitUsage && status != exitConflict:
		status, err = exitFailed, errors.New("interrupted")
	case i.conn != nil:
		err = i.conn.explain(err)
	}
	switch lines := i.progress.line; {
	case errors.Is(err, errDisorder):
		return failf(status, "%w", err)
	case lines > 0 && exact && i.sent:
		return failf(status, "%w; lines 1 to %d are in the log: the same command goes on after them", err, lines)
	case lines > 0 && !exact:
		return failf(status, "%w; at least lines 1 to %d are in the log: the same command goes on after the last", err, lines)
	case !i.sent:
		return failf(status, "%w; nothing was sent", err)
	case exact:
		return failf(status, "%w", err)
	}
	return failf(status, "%w; the same command goes on with what is missing", err)
}

func (i *importer) print(p *program) error {
	r := importResult{
		Partition: int(i.cmd.Partition), Lines: i.progress.line, Appended: i.appended, FirstTxid: i.first, LastTxid: i.progress.txid,
	}
	if !i.cmd.Keep {
		r.Cursor = i.cursor()
	}
	if i.cmd.JSON {
		return printJSON(p.out, r)
	}
	_, err := fmt.Fprintf(p.out, "%s in partition %d, the last as transaction %d; %d appended now\n", plural(int(r.Lines), "line"), r.Partition, r.LastTxid, r.Appended)
	return err
}

// run appends all lines that are not in the log.
func (i *importer) run(ctx context.Context) error {
	if err := i.retry(ctx, func() error { return i.locate(ctx) }); err != nil {
		return err
	}
	if i.progress.line > 0 {
		i.p.note("lines 1 to %d are in the log, up to transaction %d: going on after them", i.progress.line, i.progress.txid)
	}
	last, err := i.lines.skip(i.progress.line, i.progress.tag)
	if err == nil && last != nil {
		err = i.checkPlain(last)
	}
	if err != nil {
		return err
	}
	defer i.leaveCursor(ctx)
	stop := make(chan struct{})
	defer close(stop)
	report := newProgress(i.p, "imported")
	defer func() { report.done(int(i.appended)) }()
	payload := int(i.conn.nc.MaxPayload())
	encoder := &lineEncoder{id: i.id, plain: i.cmd.Plain, count: min(subjects.MaxBatch, payload/160-1), most: payload - 512, largest: min(subjects.MaxTransaction, payload-1024)}
	for b := range encoder.batches(i.lines, stop) {
		if err := i.append(ctx, b); err != nil {
			return err
		}
		report.at(int(i.appended), func() string { return fmt.Sprintf("up to line %d", i.progress.line) })
		switch {
		case errors.Is(b.err, io.EOF):
			return nil
		case b.err != nil:
			return b.err
		}
	}
	return ctx.Err()
}

// checkPlain returns an error if the import was begun with --plain and is to go
// on without, or the other way round. line is the last one that is in the log.
// A line that has nothing to keep in headers does not tell.
func (i *importer) checkPlain(line []byte) error {
	t, err := decodeTransaction(line)
	if err != nil {
		return usagef("line %d: %w", i.progress.line, plain(err))
	}
	if !t.hasOriginals() {
		return nil
	}
	switch begun := i.progress.headers == len(t.Headers); {
	case begun && !i.cmd.Plain:
		return usagef("the import was begun with --plain: give it again, or --name for another import")
	case !begun && i.cmd.Plain:
		return usagef("the import was begun without --plain: leave it out, or give --name for another import")
	}
	return nil
}

// append appends the lines of a batch, and returns when all of them are in the
// log.
func (i *importer) append(ctx context.Context, b *importBatch) error {
	for len(b.ends) > 0 {
		if i.progress.empty { // the first of all
			first := b
			if b.header == nil {
				first = &importBatch{first: b.first, data: b.data[:b.ends[0]], ends: b.ends[:1]}
			}
			if err := i.appendFirst(ctx, first); err != nil {
				return err
			}
			b = b.after(i.progress.line)
			continue
		}
		suspect := false // some of it may be in the log, or all
		err := i.retry(ctx, func() error {
			if suspect {
				if err := i.locate(ctx); err != nil {
					return err
				}
				if b = b.after(i.progress.line); len(b.ends) == 0 {
					return nil
				}
			}
			err := i.send(ctx, b)
			suspect = suspect || exitStatus(err) == exitUnknown
			return err
		})
		if err != nil {
			return err
		}
		return i.moveCursor(ctx)
	}
	return nil
}

// send sends a batch once. If it returns nil, all of it is in the log. An error
// with the status exitUnknown means that some of it may be; one with
// exitUnavailable that nothing is.
func (i *importer) send(ctx context.Context, b *importBatch) error {
	i.sent = true
	answer, err := i.conn.request(ctx, &nats.Msg{Subject: i.conn.names.Batch(int(i.cmd.Partition)), Header: b.header, Data: b.data})
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return i.conn.noAppends(ctx, int(i.cmd.Partition))
	case errors.Is(err, nats.ErrMaxPayload):
		return err
	case err != nil:
		return failf(exitUnknown, "%w", err)
	}
	var reply subjects.BatchReply
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return fmt.Errorf("the reply is no JSON that this version knows: %w", err)
	}
	if reply.Error != nil {
		if reply.Error.Reason == subjects.Internal {
			return failf(exitUnknown, "%w", reply.Error)
		}
		err := refusal(reply.Error)
		if b.header != nil {
			return failf(exitStatus(err), "%s are refused: %w", b.lines(), err)
		}
		return err
	}
	return i.take(b, &reply)
}

// take notes the outcomes of a batch's lines.
func (i *importer) take(b *importBatch, reply *subjects.BatchReply) error {
	next := 0
	for _, r := range reply.Results {
		if r.Index != next || r.Count < 1 || next+r.Count > len(b.ends) {
			break
		}
		if r.Error != nil {
			if status := exitStatus(refusal(r.Error)); status == exitUsage || status == exitConflict {
				return failf(status, "line %d is refused: %w", b.first+uint64(next), r.Error)
			}
			return failf(exitUnknown, "%w", r.Error)
		}
		if next += r.Count; !r.Duplicate {
			i.appended += uint64(r.Count)
			if i.first == 0 {
				i.first = r.Txid
			}
		}
		i.progress.line, i.progress.txid = b.first+uint64(next)-1, r.Txid+uint64(r.Count)-1
		if i.progress.found = i.progress.txid; b.header != nil {
			i.progress.found = r.Txid
		}
	}
	if next != len(b.ends) {
		return failf(exitUnknown, "the answer has no outcome for some of the lines")
	}
	return nil
}

// appendFirst appends the first line of all to an empty partition, in which no
// cursor can be set: the line must become its first transaction, where an
// import that goes on looks for it. If another transaction is there first, the
// progress is found anew.
func (i *importer) appendFirst(ctx context.Context, b *importBatch) error {
	one := b.expectingNothing()
	return i.retry(ctx, func() error {
		err := i.send(ctx, one)
		switch exitStatus(err) {
		case exitDone:
			i.progress.empty = false
			return i.moveCursor(ctx)
		case exitUnknown, exitConflict: // the latter: it is no longer empty
			if found := i.locate(ctx); found != nil || !i.progress.empty {
				return found
			}
		}
		return err
	})
}

// importPatience is how long an import tries again while nobody answers.
const importPatience = time.Minute

// retry calls do until it returns nil, an error that does not pass, or errors
// for too long.
func (i *importer) retry(ctx context.Context, do func() error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := do()
		status := exitStatus(err)
		if err == nil {
			i.since, i.noted = time.Now(), false
			return nil
		}
		if status != exitUnavailable && status != exitUnknown && !isTransient(err) || ctx.Err() != nil {
			return err
		}
		wait := pause
		if limited := min(retryDelay(err), importPatience); limited > 0 { // a leader has answered, and says when to go on
			wait += limited
			i.since = time.Now().Add(wait)
		}
		if time.Since(i.since) > importPatience {
			return failf(exitUnavailable, "%w", i.conn.explain(err))
		}
		if !i.noted {
			i.noted = true
			i.p.note("%v; trying again", i.conn.explain(err))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

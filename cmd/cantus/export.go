package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type exportCmd struct {
	Partition partition `arg:"" name:"P" help:"Partition to export, from 0."`
	File      string    `arg:"" optional:"" name:"FILE" help:"File to write, which must not exist; - or nothing writes to standard output."`

	From  position  `placeholder:"TXID|TIME" default:"1" help:"First transaction: its txid, or the first one at or after a time, such as 2026-11-01."`
	To    *position `placeholder:"TXID|TIME" help:"Last transaction: its txid, or the last one at or before a time. [default: the last one at the start]"`
	Kinds []token   `name:"kind" sep:"none" placeholder:"KIND" help:"Only transactions of this kind; repeatable."`
	Lock  lockName  `placeholder:"LOCK" help:"Only transactions that recorded a lock overlapping this one."`

	connection
}

func (*exportCmd) Help() string {
	return `Writes a JSON object a line for each transaction, as "cantus read --json" does: nothing of a transaction is lost.
docs/import.md has the form. Progress and rate are on standard error.

With FILE it writes to FILE.part, and renames that to FILE once everything is in it and synced: FILE is whole, or is not
there. An export that was interrupted goes on where FILE.part ends, if it is given the same flags: FILE.part.flags has them.

Examples:

  cantus export 0 orders.jsonl
  cantus export 0 --from 2026-11-01 --to 2026-12-01 november.jsonl
  cantus export 0 | gzip >orders.jsonl.gz

Exit status: 1 if the export is not whole: it was interrupted, --to is past the last transaction, the disk is full; 4 if
nobody answered for a minute. The same command then goes on. It is 1, too, if a transaction was trimmed: the error says which
--from exports what is kept.`
}

// Run exports a partition.
func (c *exportCmd) Run(ctx context.Context, p *program) error {
	if c.From == (position{}) || c.To != nil && *c.To == (position{}) {
		return usagef("there is no transaction 0: txids begin at 1")
	}
	l, err := c.open(ctx, "export")
	if err != nil {
		return err
	}
	defer l.close()
	last, err := c.last(ctx, l)
	if err != nil {
		return l.explain(err)
	}
	if c.File == "" || c.File == "-" {
		return c.export(ctx, p, l, p.out, uint64(c.From.txid), last)
	}
	return c.toFile(ctx, p, l, last)
}

// last returns the txid of the last transaction to export, 0 if there is none.
func (c *exportCmd) last(ctx context.Context, l *natsConn) (uint64, error) {
	var request any
	if c.To != nil && !c.To.at.IsZero() {
		request = subjects.InfoRequest{At: c.To.at}
	}
	var info subjects.PartitionInfo
	err := l.ask(ctx, l.names.PartitionInfo(int(c.Partition)), request, &info)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return 0, l.noLeader(ctx, int(c.Partition))
	case err != nil:
		return 0, err
	case c.To == nil:
		return info.HighWaterMark, nil
	case info.AsOf != nil:
		return *info.AsOf, nil
	case uint64(c.To.txid) > info.HighWaterMark:
		return 0, failf(exitFailed, "--to %d is past the last transaction, which is %d", c.To.txid, info.HighWaterMark)
	}
	return uint64(c.To.txid), nil
}

// export writes the transactions from txid from to txid last.
func (c *exportCmd) export(ctx context.Context, p *program, l *natsConn, out io.Writer, from, last uint64) (err error) {
	r := &reader{
		cmd: &readCmd{Partition: c.Partition, From: position{at: c.From.at}, Kinds: c.Kinds, Lock: c.Lock, JSON: true, connection: c.connection},
		p:   p, conn: l, out: bufio.NewWriterSize(out, 1<<20), next: max(from, 1), last: last, bulk: true, succeeded: time.Now(),
	}
	report, written := newProgress(p, "exported"), 0
	r.progress = func(printed int, txid uint64) {
		written = printed
		report.step(printed, func() string { return fmt.Sprintf("transaction %d of %d", txid, last) })
	}
	for done := r.next > last; !done && err == nil; {
		done, err = r.step(ctx)
	}
	err = errors.Join(l.explain(err), r.out.Flush())
	report.done(written)
	if err == nil {
		return nil
	}
	where := fmt.Sprintf("it ends before transaction %d", r.next)
	if r.next <= 1 && !c.From.at.IsZero() { // its txid is not known yet
		where = "it has nothing from " + c.From.at.Format(time.RFC3339) + " on"
	}
	if first := oldestKept(err); first > 0 {
		return failf(exitStatus(err), "the export is not whole: %s: %w; --from %d exports what is kept", where, err, first)
	}
	return failf(exitStatus(err), "the export is not whole: %s: %w", where, err)
}

// oldestKept returns the oldest transaction that is kept if err says that the
// wanted one was trimmed, otherwise 0.
func oldestKept(err error) uint64 {
	if e, ok := errors.AsType[*subjects.Error](err); ok && e.Reason == subjects.Trimmed {
		return e.FirstTxid
	}
	return 0
}

// toFile exports to a file, which is there at the end if it is whole.
func (c *exportCmd) toFile(ctx context.Context, p *program, l *natsConn, last uint64) (err error) {
	if _, err := os.Lstat(c.File); !errors.Is(err, fs.ErrNotExist) {
		return usagef("%s exists already: name another file", c.File)
	}
	part := c.File + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return usagef("%w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	from := uint64(c.From.txid)
	t, err := resumeExport(f)
	if err == nil {
		err = c.rememberFlags(part, t == nil)
	}
	switch {
	case exitStatus(err) == exitUsage:
		return err
	case err != nil:
		return failf(exitFailed, "%s: %w; delete it to begin anew", part, err)
	case t != nil && t.Partition != int(c.Partition):
		return usagef("%s has transactions of partition %d: delete it to begin anew", part, t.Partition)
	case t != nil && (t.Txid < from || t.Time.Before(c.From.at) || t.Txid > last):
		return usagef("%s ends with transaction %d, which is not among those asked for: give the same flags, or delete it to begin anew", part, t.Txid)
	case t != nil:
		p.note("%s ends with transaction %d: going on after it", part, t.Txid)
		from = t.Txid + 1
	}
	if t != nil {
		err = c.checkLast(ctx, p, l, t, part)
	}
	if err == nil {
		err = c.export(ctx, p, l, f, from, last)
	}
	switch {
	case exitStatus(err) == exitUsage:
		return err
	case oldestKept(err) > 0:
		return failf(exitStatus(err), "%w, to another file: this one can't be completed; delete %s, or keep what it has", err, part)
	case err != nil:
		return failf(exitStatus(err), "%w; the same command goes on after what is in %s", err, part)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(part, c.File); err != nil {
		return err
	}
	if err := os.Remove(part + flagsSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(c.File))
}

// checkLast returns an error unless the log has the last transaction of a part.
// An export that goes on at another cluster would make a file of two logs.
func (c *exportCmd) checkLast(ctx context.Context, p *program, l *natsConn, t *transaction, part string) error {
	var has *transaction
	r := &reader{
		cmd: &readCmd{Partition: c.Partition, connection: c.connection}, p: p, conn: l, out: bufio.NewWriter(io.Discard),
		next: t.Txid, last: t.Txid, bulk: true, succeeded: time.Now(),
		visit: func(t *transaction) error { has = t; return nil },
	}
	for done := false; !done; {
		var err error
		if done, err = r.step(ctx); err != nil {
			return l.explain(err)
		}
	}
	var line, want bytes.Buffer
	if has != nil {
		if err := errors.Join(printTransaction(&line, has), printTransaction(&want, t)); err != nil {
			return err
		}
	}
	if has == nil || !bytes.Equal(line.Bytes(), want.Bytes()) {
		return usagef("%s ends with transaction %d, and the log has another one there: the export was begun at another cluster; go on there, or delete %s to begin anew", part, t.Txid, part)
	}
	return nil
}

// flagsSuffix is the suffix of the file that records the flags of FILE.part.
const flagsSuffix = ".flags"

// rememberFlags records the flags of an export beside its part, or checks that
// an export that goes on has the same: with others, the file would be complete
// for neither.
func (c *exportCmd) rememberFlags(part string, begins bool) error {
	path, flags := part+flagsSuffix, c.flags()
	if begins {
		return errors.Join(writeSynced(path, flags+"\n"), syncDir(filepath.Dir(path)))
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return usagef("%s says what %s was asked for, and is missing: delete %s to begin anew", path, part, part)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return err
	}
	if before := strings.TrimSuffix(string(text), "\n"); before != flags {
		return usagef("%s was begun by %q, and this is %q: give the same flags, or delete %s to begin anew", part, before, flags, part)
	}
	return nil
}

// flags returns the command with the flags that say what is exported. A time is
// the one that was meant, also if it was given as one ago.
func (c *exportCmd) flags() string {
	words := []string{"cantus export", strconv.Itoa(int(c.Partition)), "--from " + c.From.String()}
	if c.To != nil {
		words = append(words, "--to "+c.To.String())
	}
	for _, k := range c.Kinds {
		words = append(words, "--kind "+string(k))
	}
	if c.Lock != "" {
		words = append(words, "--lock "+string(c.Lock))
	}
	return strings.Join(words, " ")
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrInvalid) {
		return err
	}
	return nil
}

// maxLine is the most bytes of a line of JSON: a transaction of the largest
// size, of which every byte is escaped.
const maxLine = 6*subjects.MaxTransaction + 1<<16

// resumeExport cuts an unfinished last line off a file and returns the last
// whole one, nil if there is none. The next write continues the file.
func resumeExport(f *os.File) (last *transaction, err error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return nil, err
	}
	at := max(size-2*maxLine, 0)
	tail := make([]byte, size-at)
	if _, err := f.ReadAt(tail, at); err != nil {
		return nil, err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	if end == 0 && at > 0 {
		return nil, errors.New("its last line is longer than a transaction can be")
	}
	if end > 0 {
		line := tail[:end-1]
		if last, err = decodeTransaction(line[bytes.LastIndexByte(line, '\n')+1:]); err != nil {
			return nil, fmt.Errorf("its last line: %w", err)
		}
	}
	if err := f.Truncate(at + int64(end)); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekEnd)
	return last, err
}

// progress reports on standard error how far a command is.
type progress struct {
	p           *program
	what        string // was done
	begun, next time.Time
}

// progressEvery is how often progress is reported.
const progressEvery = 5 * time.Second

func newProgress(p *program, what string) *progress {
	debug.SetGCPercent(400) // what is done in bulk makes garbage, and keeps little
	now := time.Now()
	return &progress{p: p, what: what, begun: now, next: now.Add(progressEvery)}
}

// step reports, if it is time, that n transactions are done.
func (r *progress) step(n int, where func() string) {
	if n%1024 == 0 { // not more often: the clock is slow
		r.at(n, where)
	}
}

func (r *progress) at(n int, where func() string) {
	if now := time.Now(); now.After(r.next) {
		r.next = now.Add(progressEvery)
		r.p.note("%s, %s", r.summary(n), where())
	}
}

// done reports that n transactions were done in all.
func (r *progress) done(n int) { r.p.note("%s", r.summary(n)) }

func (r *progress) summary(n int) string {
	took := time.Since(r.begun)
	return fmt.Sprintf("%s %s in %v, %s a second", r.what, transactions(n), took.Round(time.Millisecond),
		humanize.Comma(int64(float64(n)/max(took.Seconds(), 1e-3))))
}

// transactions formats a number of transactions.
func transactions(n int) string {
	if n == 1 {
		return "1 transaction"
	}
	return humanize.Comma(int64(n)) + " transactions"
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/wal"
)

type backupCmd struct {
	Run    backupRunCmd    `cmd:"" default:"withargs" help:"Bring a backup up to date: what \"cantus backup --to\" does."`
	Verify backupVerifyCmd `cmd:"" help:"Read a backup, and check every byte."`
	Show   backupShowCmd   `cmd:"" help:"Show what is in a backup."`
}

func (*backupCmd) Help() string {
	return `"cantus backup --to" makes a backup, or brings it up to date: "cantus backup run --help" lists its flags.
docs/backup.md explains the rest, such as a nightly run and a restore that is only a drill.

Examples:

  cantus backup --to /mnt/backup
  cantus backup verify /mnt/backup
  cantus backup show /mnt/backup`
}

// storageHelp explains where a backup may be.
const storageHelp = `A backup is in a directory, or in a bucket: s3://NAME (and what speaks like S3, with ?endpoint=URL&use_path_style=true),
gs://NAME or azblob://NAME; ?prefix=TEXT/ puts it below a prefix. Credentials are those of the vendor's own tools,
such as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT
and AZURE_STORAGE_KEY.`

type backupRunCmd struct {
	To         string       `required:"" placeholder:"DIR|URL" env:"CANTUS_BACKUP_TO" help:"Where the backup is; a new one begins there if there is none."`
	Every      duration     `placeholder:"TIME" env:"CANTUS_BACKUP_EVERY" help:"Go on, and bring it up to date this often, until interrupted. [default: once]"`
	Cursor     token        `placeholder:"NAME" env:"CANTUS_BACKUP_CURSOR" help:"Move this cursor of each partition to the last transaction that is backed up, for retention policies."`
	TakeCursor bool         `help:"With --cursor: take it over from what moved it before, such as a backup that is given up."`
	Partitions []partition  `name:"partition" placeholder:"P" help:"Only this partition; repeatable. [default: all]"`
	HTTP       optionalAddr `name:"http" placeholder:"HOST:PORT" default:"off" env:"CANTUS_BACKUP_HTTP" help:"With --every: where /healthz and /metrics are; port 0 takes a free one."`
	JSON       bool         `name:"json" help:"Print a JSON object for each run that found something new."`
	Quiet      bool         `short:"q" help:"No progress on standard error."`

	connection
}

func (*backupRunCmd) Help() string {
	return `Copies what is new in the logs and the cursors, while the cluster is used, and checks it against the cluster's own digests.
A backup may be interrupted at any time: what was read is in it, and the next one goes on from there. Two of them may
write to one place. A log is refused if it does not continue the backup: it is another cluster's (a restored cluster is
another one), or it was trimmed past the backup's end.

With --cursor a retention policy can keep what is not backed up yet: see "cantus retention". The cursor itself is not part
of the backup. Give each backup a cursor of its own: one that moved elsewhere keeps its cursor, and another one is refused.

` + storageHelp + `

Examples:

  cantus backup --to /mnt/backup
  cantus backup --to 's3://bank-log?prefix=prod/' --every 10s --http 127.0.0.1:8223
  cantus backup --to /mnt/backup --cursor archive
  cantus backup verify /mnt/backup

Exit status: 1 if the backup is damaged or of another log, 4 if a partition has no leader; the others are backed up.`
}

// backupResult is the output of --json for a run.
type backupResult struct {
	Generation   uint64        `json:"generation"`
	Taken        time.Time     `json:"taken"`
	Transactions uint64        `json:"transactions"`
	Bytes        int64         `json:"bytes"`
	Stored       int64         `json:"stored"`
	Seconds      float64       `json:"seconds"`
	Partitions   []backedUpLog `json:"partitions"`
}

type backedUpLog struct {
	Partition int    `json:"partition"`
	LastTxid  uint64 `json:"last_txid"`
	Digest    string `json:"digest"`
}

// Run brings a backup up to date, once or again and again.
func (c *backupRunCmd) Run(ctx context.Context, p *program) error {
	switch {
	case c.HTTP != "" && c.Every == 0:
		return usagef("--http is for a backup that goes on: give --every, such as --every 10s")
	case c.TakeCursor && c.Cursor == "":
		return usagef("--take-cursor needs the cursor: give --cursor NAME")
	case c.TakeCursor && c.Every > 0:
		return usagef("--take-cursor is for a single run, and not for --every: of two such backups each would take it from the other")
	}
	logger := slog.New(slog.NewTextHandler(p.errOut, nil))
	repository, err := backup.Open(ctx, c.To, backup.Options{Version: buildVersion(), Logger: logger})
	if err != nil {
		return usagef("--to: %w", err)
	}
	defer repository.Close()
	if err := repository.CheckPlace(ctx); err != nil {
		return usagef("--to: %w", err)
	}
	l, err := c.open(ctx, "backup")
	if err != nil {
		return err
	}
	defer l.close()
	if err := c.checkPartitions(ctx, l); err != nil {
		return err
	}
	if err := l.watchLeaders(); err != nil {
		return err
	}
	source := newBackupSource(l)
	source.cursor = string(c.Cursor)
	a := archiver{cmd: c, p: p, repository: repository, source: source, log: logger, metrics: newBackupMetrics()}
	if c.Cursor != "" {
		a.cursor = &backupCursor{name: string(c.Cursor), source: source, repository: repository, take: c.TakeCursor, ours: map[int]cursorPlace{}}
	}
	if c.Every == 0 {
		return a.once(ctx)
	}
	stop, err := serveMetrics(a.metrics.registry, string(c.HTTP), p)
	if err != nil {
		return usagef("--http: %w", err)
	}
	defer stop()
	a.run(ctx)
	return nil
}

// checkPartitions fails if a partition that is named does not exist.
func (c *backupRunCmd) checkPartitions(ctx context.Context, l *natsConn) error {
	if len(c.Partitions) == 0 {
		return nil
	}
	info, err := newBackupSource(l).info(ctx)
	if last := int(slices.Max(c.Partitions)); err == nil && last >= info.Partitions {
		err = usagef("partition %d does not exist: this cluster has %d (0 to %d)", last, info.Partitions, info.Partitions-1)
	}
	return err
}

// archiver brings a backup up to date.
type archiver struct {
	cmd        *backupRunCmd
	p          *program
	repository *backup.Repository
	source     *backupSource
	log        *slog.Logger
	metrics    *backupMetrics
	cursor     *backupCursor // nil for none

	shown time.Time // when progress was last shown
}

// run archives again and again, until ctx ends.
func (a *archiver) run(ctx context.Context) {
	every := time.Duration(a.cmd.Every)
	for {
		began := time.Now()
		err := a.once(ctx)
		took := time.Since(began)
		if ctx.Err() != nil {
			return // an interrupt is the normal end
		}
		a.metrics.ran(err)
		switch {
		case err != nil:
			a.log.Error("backup failed; it is tried again", "err", errorText(err))
		case took > every:
			a.log.Warn(slowRun(took, every, a.source.waited()))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every - took):
		}
	}
}

// slowRun returns the text about a run that took longer than the time between
// two, and why it had to wait, if it had.
func slowRun(took, every time.Duration, trouble error) string {
	text := fmt.Sprintf("a run took %v, longer than --every %v", took.Round(time.Millisecond), every)
	if trouble != nil {
		text += "; it had to wait: " + errorText(trouble)
	}
	return text
}

// once brings the backup up to date, and prints what was new.
func (a *archiver) once(ctx context.Context) error {
	began := time.Now()
	a.shown, a.source.trouble = began, nil
	var partitions []int
	for _, n := range a.cmd.Partitions {
		partitions = append(partitions, int(n))
	}
	slices.Sort(partitions)
	partitions = slices.Compact(partitions)
	if a.cursor != nil {
		if err := a.cursor.begin(ctx, partitions); err != nil {
			return backupFailure(err)
		}
	}
	result, err := a.repository.Run(ctx, a.source, backup.RunOptions{Partitions: partitions, Progress: a.progress})
	a.metrics.added(result)
	if a.cursor != nil && ctx.Err() == nil {
		err = errors.Join(err, a.cursor.move(ctx, partitions, result, err))
	}
	if result.Wrote || a.cmd.Every == 0 && result.Manifest.Generation > 0 && err == nil {
		moved := ""
		if a.cursor != nil && err == nil {
			moved = fmt.Sprintf("; the cursor %s is at its end", a.cursor.name)
		}
		err = errors.Join(err, a.print(result, time.Since(began), moved))
	}
	if ctx.Err() != nil && result.Wrote {
		return failf(exitFailed, "interrupted: the backup has what was read up to then")
	}
	return backupFailure(err)
}

// backupFailure returns an error of a backup with its exit status.
func backupFailure(err error) error {
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted")
	}
	return err
}

// progress shows how far the backup has got, every few seconds.
func (a *archiver) progress(at backup.Progress) {
	a.metrics.progress(at)
	if a.cmd.Quiet || time.Since(a.shown) < 2*time.Second {
		return
	}
	a.shown = time.Now()
	a.p.note("partition %d: txid %d of %d", at.Partition, at.Txid, at.Last)
}

// print prints what a run has added, and on standard error which logs the
// backup does not have from their first transaction on.
func (a *archiver) print(r backup.Result, took time.Duration, moved string) error {
	m := r.Manifest
	for _, n := range r.Begun {
		if log, ok := m.Find(n); ok && log.Base.Txid > 0 {
			a.p.note("partition %d: the backup begins at transaction %d, the oldest one that the cluster has", n, log.Base.Txid+1)
		}
	}
	if a.cmd.JSON {
		out := backupResult{
			Generation: m.Generation, Taken: m.Taken, Transactions: r.Transactions, Bytes: r.Bytes, Stored: r.Stored,
			Seconds: took.Seconds(), Partitions: []backedUpLog{},
		}
		for _, p := range m.Partitions {
			out.Partitions = append(out.Partitions, backedUpLog{p.Partition, p.Last.Txid, p.Last.Digest})
		}
		return json.NewEncoder(a.p.out).Encode(out)
	}
	_, err := fmt.Fprintf(a.p.out, "generation %d: %s, %s in batches, %s written, in %v%s\n", m.Generation, plural(int(r.Transactions), "new transaction"),
		humanize.IBytes(uint64(r.Bytes)), humanize.IBytes(uint64(r.Stored)), took.Round(time.Millisecond), moved)
	return err
}

// backupInput is a backup that a command reads.
type backupInput struct {
	From       string `arg:"" name:"DIR|URL" help:"Where the backup is."`
	Generation count  `placeholder:"N" help:"Generation of the manifest to use. [default: the newest]"`
	JSON       bool   `name:"json" help:"Print JSON."`
}

// open returns the repository and the manifest.
func (i *backupInput) open(ctx context.Context) (*backup.Repository, *backup.Manifest, error) {
	r, err := backup.Open(ctx, i.From, backup.Options{})
	if err != nil {
		return nil, nil, usagef("%w", err)
	}
	read := r.Newest
	if i.Generation > 0 {
		read = func(ctx context.Context) (*backup.Manifest, error) { return r.Manifest(ctx, uint64(i.Generation)) }
	}
	m, err := read(ctx)
	switch {
	case errors.Is(err, backup.ErrNone):
		err = usagef("%s: %w", i.From, err)
	case errors.Is(err, fs.ErrNotExist):
		err = usagef("%s has no generation %d", i.From, i.Generation)
	case errors.Is(err, backup.ErrDamaged):
		err = i.older(ctx, r, err)
	}
	if err != nil {
		_ = r.Close()
		return nil, nil, err
	}
	return r, m, nil
}

// older adds to the error about a damaged manifest which older one is whole.
func (i *backupInput) older(ctx context.Context, r *backup.Repository, damaged error) error {
	all, err := r.Generations(ctx)
	if err != nil {
		return damaged
	}
	for _, g := range slices.Backward(all) {
		if _, err := r.Manifest(ctx, g); err == nil {
			return fmt.Errorf("%w; generation %d is whole: see --generation %d", damaged, g, g)
		}
	}
	return damaged
}

type backupVerifyCmd struct{ backupInput }

func (*backupVerifyCmd) Help() string {
	return `Reads every segment, checks its hash, every batch and every record, and that the digests lead from the beginning to the end.

` + storageHelp + `

Exit status: 0 if all is whole, 1 if anything is damaged or missing, 2 if there is no backup.`
}

// verifiedLog is the output of --json for a partition.
type verifiedLog struct {
	Partition    int    `json:"partition"`
	FirstTxid    uint64 `json:"first_txid"`
	LastTxid     uint64 `json:"last_txid"`
	Transactions uint64 `json:"transactions"`
	Digest       string `json:"digest"`
	Damaged      string `json:"damaged,omitempty"`
}

// Run verifies a backup.
func (c *backupVerifyCmd) Run(ctx context.Context, p *program) error {
	r, m, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	t := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(t, "PARTITION\tFIRST TXID\tLAST TXID\tTRANSACTIONS\tDIGEST\tSTATE")
	}
	shown, damaged := time.Now(), 0
	for _, log := range m.Partitions {
		v := verifiedLog{Partition: log.Partition, FirstTxid: log.Base.Txid + 1, LastTxid: log.Last.Txid, Digest: log.Last.Digest}
		err := r.Verify(ctx, m, log.Partition, func(b wal.Batch) {
			if v.Transactions += uint64(b.Count); time.Since(shown) > 2*time.Second {
				shown = time.Now()
				p.note("partition %d: txid %d of %d", log.Partition, b.Last(), log.Last.Txid)
			}
		})
		if ctx.Err() != nil {
			return backupFailure(ctx.Err())
		}
		state := "whole"
		if err != nil { // also what the storage itself finds to be damaged
			damaged++
			v.Damaged = strings.TrimPrefix(err.Error(), backup.ErrDamaged.Error()+": ")
			state = "DAMAGED: " + v.Damaged
		}
		if c.JSON {
			err = json.NewEncoder(p.out).Encode(v)
		} else {
			_, err = fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%.12s\t%s\n", v.Partition, v.FirstTxid, v.LastTxid, v.Transactions, v.Digest, state)
		}
		if err != nil {
			return err
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if damaged > 0 {
		return failf(exitFailed, "%d of %s damaged: begin another backup in an empty directory, while the cluster still has its log, and keep this one; "+
			"an earlier manifest may not need what is damaged: --generation checks and restores it", damaged, plural(len(m.Partitions), "partition"))
	}
	return nil
}

type backupShowCmd struct{ backupInput }

func (*backupShowCmd) Help() string {
	return `Prints what the manifest says; "cantus backup verify" checks it. --json prints the manifest.

` + storageHelp
}

// Run shows a backup.
func (c *backupShowCmd) Run(ctx context.Context, p *program) error {
	r, m, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if c.JSON {
		return json.NewEncoder(p.out).Encode(m)
	}
	fmt.Fprintf(p.out, "cluster %s (%s), %s; generation %d, taken %s\n\n",
		m.Cluster.Name, m.Cluster.ID, plural(m.Cluster.Partitions, "partition"), m.Generation, m.Taken.Format(time.RFC3339))
	t := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PARTITION\tFIRST TXID\tLAST TXID\tLAST TIME\tSEGMENTS\tSIZE\tSTORED\tCURSORS\tDIGEST")
	for _, log := range m.Partitions {
		size, stored := log.Sizes()
		last := "-"
		if !log.Last.Time.IsZero() {
			last = log.Last.Time.Format(time.RFC3339Nano)
		}
		fmt.Fprintf(t, "%d\t%d\t%d\t%s\t%d\t%s\t%s\t%d\t%.12s\n", log.Partition, log.Base.Txid+1, log.Last.Txid, last, len(log.Segments),
			humanize.IBytes(uint64(size)), humanize.IBytes(uint64(stored)), len(log.Cursors), log.Last.Digest)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range belongingsIn(m).namespaces() {
		made := "not all of its partitions are known"
		if n.Partitions != nil {
			made = commandToMake(n)
		}
		fmt.Fprintf(p.out, "\nnamespace %s: %s\n", n.Name, made)
	}
	if missing := m.Cluster.Partitions - len(m.Partitions); missing > 0 {
		p.note("%s not in the backup", plural(missing, "partition"))
	}
	return nil
}

package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
)

type restoreCmd struct {
	From       string         `required:"" placeholder:"DIR|URL" help:"Where the backup is."`
	Generation count          `placeholder:"N" help:"Generation of the manifest to use. [default: the newest]"`
	ToTxid     []restoreLimit `name:"to-txid" placeholder:"P=TXID" xor:"to" help:"Up to this transaction of partition P; repeatable. The other partitions are restored whole."`
	ToTime     moment         `name:"to-time" placeholder:"TIME" xor:"to" help:"Up to this time, in every partition."`
	Partitions []partition    `name:"partition" placeholder:"P" help:"Only this partition; repeatable. [default: all in the backup]"`
	DryRun     bool           `help:"Change nothing, and ask no cluster: print where each partition would end."`
	JSON       bool           `name:"json" help:"Print a JSON object for each partition."`
	Quiet      bool           `short:"q" help:"No progress on standard error."`

	connection
}

func (*restoreCmd) Help() string {
	return `Brings the logs of a backup into a new, empty cluster, which has as many partitions as the one that was backed up, and any
number of nodes: the same transaction ids, times, message ids, cursors and digests. Until a partition is complete, nothing
is appended to it or read. A restore that was interrupted, on either side, goes on when it is started again.

Consumers that have applied more than the backup holds are told so when they connect, and stop. Cursors past the end are
set to the end. A partition that was restored before is left as it is, if its digest is the backup's. If one is in use, or was
restored to another end, nothing is restored.

--dry-run prints which transaction would be the last one in each partition, with its time and the digest after it: with
--to-time, the last one that was committed up to then.

` + storageHelp + `

A time is a date, a date and a time, or how long ago: 2026-11-01, 2026-11-01T08:30, 90m.

Examples:

  cantus restore --from /mnt/backup
  cantus restore --from 's3://bank-log?prefix=prod/' --to-time 2026-11-01T08:30
  cantus restore --from /mnt/backup --to-time 2026-11-01T08:30 --dry-run
  cantus restore --from /mnt/backup --to-txid 0=812 --to-txid 1=640

Exit status: 1 if the backup is damaged, 3 if a partition is not empty, 4 if it has no leader: start it again then.`
}

// restoreLimit is the last transaction of a partition that is restored.
type restoreLimit struct {
	partition partition
	txid      txid
}

func (u *restoreLimit) UnmarshalText(text []byte) error {
	p, n, ok := strings.Cut(string(text), "=")
	if !ok {
		return fmt.Errorf("%q is not a partition and a transaction id, such as 0=812", text)
	}
	if err := errors.Join(u.partition.UnmarshalText([]byte(p)), u.txid.UnmarshalText([]byte(n))); err != nil {
		return err
	}
	if u.txid == 0 {
		return errors.New("there is no transaction 0: txids begin at 1")
	}
	return nil
}

// restoredLog is the output of --json for a partition.
type restoredLog struct {
	Partition    int     `json:"partition"`
	FirstTxid    uint64  `json:"first_txid"`
	LastTxid     uint64  `json:"last_txid"`
	Digest       string  `json:"digest"`
	Transactions uint64  `json:"transactions"` // by this run
	Bytes        int64   `json:"bytes"`
	Seconds      float64 `json:"seconds"`
	// Already is true if an earlier run has restored it, with this digest.
	Already bool `json:"already_restored,omitempty"`
	// Moved are the cursors that were past the end.
	Moved []movedCursor `json:"moved_cursors,omitempty"`
}

type movedCursor struct {
	Name string `json:"name"`
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// restoreAtOnce is how many partitions are restored at a time.
const restoreAtOnce = 4

// Run restores a cluster.
func (c *restoreCmd) Run(ctx context.Context, p *program) error {
	from := backupInput{From: c.From, Generation: c.Generation}
	repository, m, err := from.open(ctx)
	if err != nil {
		return err
	}
	defer repository.Close()
	if err := c.checkFlags(m); err != nil {
		return err
	}
	logs, err := c.logs(ctx, p, repository, m)
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.printPlan(p, logs)
	}
	l, err := c.open(ctx, "restore")
	if err != nil {
		return err
	}
	defer l.close()
	if err := c.checkCluster(ctx, l, m); err != nil {
		return err
	}
	if err := checkRestorable(ctx, l, logs); err != nil {
		return err
	}
	var partitions []int
	for _, r := range logs {
		partitions = append(partitions, r.log.Partition)
	}
	has, err := l.belongings(ctx, partitions)
	if err != nil {
		return err
	}
	if err := compareNamespaces(p, "the cluster that was backed up", belongingsIn(m), partitions, has); err != nil {
		return err
	}
	if err := l.watchLeaders(); err != nil {
		return err
	}
	for _, r := range logs {
		r.conn = l
	}
	return c.restore(ctx, p, logs)
}

// logs returns the logs that are to be restored, after a look at all of them.
func (c *restoreCmd) logs(ctx context.Context, p *program, repository *backup.Repository, m *backup.Manifest) (all []*logRestore, err error) {
	for _, log := range m.Partitions {
		if len(c.Partitions) > 0 && !slices.Contains(c.Partitions, partition(log.Partition)) {
			continue
		}
		r := &logRestore{repository: repository, manifest: m, log: log, note: p.note, quiet: c.Quiet, patience: restorePatience}
		r.loader = loader{partition: log.Partition, moved: r.show}
		if err := r.plan(ctx, c.end(log.Partition), time.Time(c.ToTime)); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, c.checkTime(p, all)
}

// checkTime returns an error if nothing in the logs was committed up to the
// time that is asked for. It notes which of them are empty then, if only some
// are.
func (c *restoreCmd) checkTime(p *program, logs []*logRestore) error {
	if time.Time(c.ToTime).IsZero() {
		return nil
	}
	var begin time.Time // of the log that begins first
	var empty []*logRestore
	for _, r := range logs {
		if len(r.log.Segments) == 0 {
			continue
		}
		if first := r.log.Segments[0].FirstTime; begin.IsZero() || first.Before(begin) {
			begin = first
		}
		if r.end == r.log.Base.Txid {
			empty = append(empty, r)
		}
	}
	at := time.Time(c.ToTime).UTC().Format(time.RFC3339Nano)
	if !begin.IsZero() && begin.After(time.Time(c.ToTime)) && len(empty) > 0 {
		return usagef("--to-time: the backup begins at %s, and has nothing of %s or before", begin.Format(time.RFC3339Nano), at)
	}
	for _, r := range empty {
		p.note("partition %d has nothing of %s or before: it begins at %s, and is empty at that time",
			r.log.Partition, at, r.log.Segments[0].FirstTime.Format(time.RFC3339Nano))
	}
	return nil
}

// plannedLog is the output of --dry-run --json for a partition.
type plannedLog struct {
	Partition int       `json:"partition"`
	FirstTxid uint64    `json:"first_txid"`
	LastTxid  uint64    `json:"last_txid"`
	Time      time.Time `json:"time,omitzero"`
	Digest    string    `json:"digest"`
}

// printPlan prints where the logs would end.
func (c *restoreCmd) printPlan(p *program, logs []*logRestore) error {
	for _, r := range logs {
		l := plannedLog{r.log.Partition, r.log.Base.Txid + 1, r.end, r.time, hex.EncodeToString(r.digest[:])}
		var err error
		switch {
		case c.JSON:
			err = json.NewEncoder(p.out).Encode(l)
		case l.Time.IsZero():
			_, err = fmt.Fprintf(p.out, "partition %d: would be restored without a transaction, up to txid %d, digest %.12s\n", l.Partition, l.LastTxid, l.Digest)
		default:
			_, err = fmt.Fprintf(p.out, "partition %d: would be restored up to txid %d, committed at %s, digest %.12s\n",
				l.Partition, l.LastTxid, l.Time.Format(time.RFC3339Nano), l.Digest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// restore restores logs, several at a time.
func (c *restoreCmd) restore(ctx context.Context, p *program, logs []*logRestore) error {
	var printing sync.Mutex
	var failed []error
	var group errgroup.Group
	group.SetLimit(restoreAtOnce)
	for _, r := range logs {
		group.Go(func() error {
			done, err := r.run(ctx)
			printing.Lock()
			defer printing.Unlock()
			if err != nil {
				err = r.conn.explain(err)
				p.note("partition %d is not restored: %s", r.log.Partition, errorText(err))
				failed = append(failed, err)
				return nil
			}
			return c.print(p, done)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(failed) > 0 {
		return failf(exitStatus(failed[0]), "%s not restored", plural(len(failed), "partition"))
	}
	return nil
}

// end returns the last transaction of a partition that is asked for, 0 for all.
func (c *restoreCmd) end(p int) uint64 {
	for _, u := range c.ToTxid {
		if int(u.partition) == p {
			return uint64(u.txid)
		}
	}
	return 0
}

// checkCluster compares the cluster with the backup.
func (c *restoreCmd) checkCluster(ctx context.Context, l *natsConn, m *backup.Manifest) error {
	info, err := newBackupSource(l).info(ctx)
	switch {
	case err != nil:
		return err
	case info.Namespace != "":
		return l.checkWhole(info)
	case info.Partitions != m.Cluster.Partitions:
		return usagef("this cluster has %s, and the backup is of a cluster with %d: keys would lead elsewhere; found one with --partitions %d",
			plural(info.Partitions, "partition"), m.Cluster.Partitions, m.Cluster.Partitions)
	case info.ID == m.Cluster.ID:
		return usagef("the backup is of this cluster: restore it into a new one, and name that with --server")
	}
	for _, log := range m.Partitions {
		if slices.ContainsFunc(log.History, func(p subjects.PastCluster) bool { return p.Cluster == info.ID }) {
			return usagef("the backup is of a cluster that was itself made from this one: restore it into a new one")
		}
	}
	return nil
}

// checkFlags compares the flags with the backup.
func (c *restoreCmd) checkFlags(m *backup.Manifest) error {
	var named []partition
	for _, u := range c.ToTxid {
		switch {
		case slices.Contains(named, u.partition):
			return usagef("--to-txid names partition %d twice: give one end for it", u.partition)
		case len(c.Partitions) > 0 && !slices.Contains(c.Partitions, u.partition):
			return usagef("--to-txid names partition %d, and --partition others: add --partition %d, or leave this --to-txid out", u.partition, u.partition)
		}
		named = append(named, u.partition)
	}
	for _, p := range append(named, c.Partitions...) {
		if _, ok := m.Find(int(p)); !ok {
			return usagef("the backup has no partition %d", p)
		}
	}
	return nil
}

func (c *restoreCmd) print(p *program, r restoredLog) error {
	if c.JSON {
		return json.NewEncoder(p.out).Encode(r)
	}
	for _, k := range r.Moved {
		p.note("partition %d: cursor %q was at %d and is at %d now, where the log ends", r.Partition, k.Name, k.From, k.To)
	}
	if r.Already {
		_, err := fmt.Fprintf(p.out, "partition %d: already restored up to txid %d, digest %.12s: the same as the backup's\n", r.Partition, r.LastTxid, r.Digest)
		return err
	}
	_, err := fmt.Fprintf(p.out, "partition %d: restored up to txid %d, digest %.12s; %s in %v\n",
		r.Partition, r.LastTxid, r.Digest, plural(int(r.Transactions), "transaction"), time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond))
	return err
}

// historyOf returns the log history of a partition that is restored up to a
// txid.
func historyOf(m *backup.Manifest, log backup.Partition, end uint64) (all []subjects.PastCluster) {
	for _, p := range log.History {
		all = append(all, subjects.PastCluster{Cluster: p.Cluster, LastTxid: min(p.LastTxid, end)})
	}
	return append(all, subjects.PastCluster{Cluster: m.Cluster.ID, LastTxid: end})
}

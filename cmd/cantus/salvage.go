package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

type salvageCmd struct {
	Dir string `arg:"" name:"DIR" type:"path" help:"Data directory of a node that is stopped."`
	To  string `placeholder:"FILE" help:"Write every whole transaction to this file, which must not exist. [default: only say what is left]"`

	Partition *partition `placeholder:"P" help:"Only this partition, so that \"cantus import\" takes the file. [default: all]"`
}

func (*salvageCmd) Help() string {
	return `Reads every whole transaction out of a directory that a node refuses to open, whatever is damaged there, and changes
nothing. It prints which transactions of each partition are left, and which are missing.

FILE has a JSON object a line, as "cantus read --json" prints it, the partitions one after the other and each in the order of
its txids. "cantus import" takes a file of one partition: write one for each, with --partition. What was trimmed is in
neither list. Of a replica of a cluster the last transactions may be ones that the cluster has never committed: compare them
with another replica.

Exit status: 0 if nothing is missing, 1 if anything is, 2 if DIR can't be read or FILE can't be written: DIR is no data
directory, or a node has it open.`
}

// Run reads what is left in a data directory and prints a line for each
// partition.
func (c *salvageCmd) Run(p *program) (err error) {
	if info, err := os.Stat(c.Dir); err != nil {
		return usagef("data directory: %w", err)
	} else if !info.IsDir() {
		return usagef("data directory: %s is a file", c.Dir)
	}
	temp, out := os.TempDir(), (*salvageFile)(nil)
	each := func(uint32, *wal.Transaction) error { return nil }
	if c.To != "" {
		if out, err = createSalvageFile(c.To); err != nil {
			return usagef("%w", err)
		}
		temp, each = filepath.Dir(c.To), out.write
	}
	var all []wal.Survivors
	problems, err := wal.Salvage(c.Dir, temp, c.only(each), func(s wal.Survivors) {
		if c.wants(s.Group) {
			all = append(all, s)
		}
	})
	if out != nil {
		err = errors.Join(err, out.close())
	}
	if err == nil && c.Partition != nil && len(all) == 0 {
		if err = usagef("%s has nothing of partition %d", c.Dir, *c.Partition); out != nil {
			_ = os.Remove(c.To) // it is empty
		}
	}
	switch {
	case errors.Is(err, wal.ErrInUse):
		return failf(exitUsage, "%w", inUse(c.Dir))
	case errors.Is(err, fs.ErrNotExist):
		return failf(exitUsage, "%w", err)
	case err != nil:
		return err
	}
	for _, problem := range problems {
		p.note("%s", errorText(problem))
	}
	if out != nil {
		p.note("%s in %s", transactions(out.n), c.To)
	}
	return c.print(p, all, len(problems) > 0)
}

// wants reports whether a partition was asked for.
func (c *salvageCmd) wants(group uint32) bool {
	return c.Partition == nil || *c.Partition == partition(group)
}

// only returns each for the transactions that were asked for.
func (c *salvageCmd) only(each func(uint32, *wal.Transaction) error) func(uint32, *wal.Transaction) error {
	return func(group uint32, t *wal.Transaction) error {
		if !c.wants(group) {
			return nil
		}
		return each(group, t)
	}
}

func (c *salvageCmd) print(p *program, all []wal.Survivors, damaged bool) error {
	t := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PARTITION\tTRANSACTIONS\tLEFT\tMISSING")
	incomplete := 0
	for _, s := range all {
		missing := ranges(s.Missing)
		if s.LostEnd {
			missing = strings.TrimPrefix(missing+", what came last", "none, ")
		}
		if s.Err != nil {
			missing = errorText(s.Err)
		}
		if !s.Complete() {
			incomplete++
		}
		fmt.Fprintf(t, "%d\t%d\t%s\t%s\n", s.Group, s.Transactions, ranges(s.Whole), missing)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	switch {
	case incomplete > 0:
		return failf(exitFailed, "transactions of %s are missing", plural(incomplete, "partition"))
	case damaged:
		p.note("no transaction is known to be missing")
	}
	return nil
}

// ranges formats ranges of txids, the first of them if there are many.
func ranges(all []wal.TxidRange) string {
	const most = 8
	var words []string
	for i, r := range all {
		if i == most {
			words = append(words, fmt.Sprintf("and %s more", plural(len(all)-most, "range")))
			break
		}
		if r.First == r.Last {
			words = append(words, fmt.Sprint(r.First))
		} else {
			words = append(words, fmt.Sprintf("%d-%d", r.First, r.Last))
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

// salvageFile is the file that transactions are written to.
type salvageFile struct {
	f *os.File
	w *bufio.Writer
	n int // transactions written
}

func createSalvageFile(path string) (*salvageFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &salvageFile{f: f, w: bufio.NewWriterSize(f, 1<<20)}, nil
}

func (s *salvageFile) close() error { return errors.Join(s.w.Flush(), s.f.Sync(), s.f.Close()) }

func (s *salvageFile) write(group uint32, stored *wal.Transaction) error {
	t := transaction{
		Partition: int(group), Txid: stored.Txid, Time: time.Unix(0, stored.Time).UTC(), Kind: string(stored.Kind),
	}
	t.setMsgID(string(stored.MsgID))
	t.Session, t.SessionSeq = string(stored.Session), stored.SessionSeq
	if len(stored.Cursor) > 0 {
		t.Move = subjects.Move{Cursor: string(stored.Cursor), Txid: stored.CursorTxid}.String()
	}
	t.setHeaders(headersOf(stored.Header))
	if t.Kind == "" {
		t.Kind = "tx"
	}
	if stored.HasHighWaterMark {
		t.HighWaterMark = &stored.HighWaterMark
	}
	if stored.Atomic.Size > 0 {
		t.Atomic = &atomicRange{stored.First(), stored.Last()}
	}
	for _, l := range stored.Locks {
		switch name := string(l.Name); l.Mode {
		case wal.WriteLock:
			t.WriteLocks = append(t.WriteLocks, name)
		case wal.ReadLock:
			t.ReadLocks = append(t.ReadLocks, name)
		default:
			t.AppendLocks = append(t.AppendLocks, name)
		}
	}
	t.setPayload(stored.Payload)
	s.n++
	return printTransaction(s.w, &t)
}

// surveyed is the size of a directory up to which a failed start reads what is
// left in it: some seconds' work.
const surveyed = 2 << 30

// leftIn says which transactions are left in a damaged directory, and how to
// save them.
func leftIn(dir string) string {
	how := fmt.Sprintf("\"cantus salvage %s --to FILE\" writes every whole transaction to a file", dir)
	size := int64(0)
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if info, err := e.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil //nolint:nilerr // what can't be read is not counted
	})
	if size > surveyed {
		return how
	}
	var left []string
	_, err := wal.Salvage(dir, os.TempDir(), func(uint32, *wal.Transaction) error { return nil }, func(s wal.Survivors) {
		text := fmt.Sprintf("partition %d: %s", s.Group, ranges(s.Whole))
		if !s.Complete() {
			text += ", and some are missing"
		}
		left = append(left, text)
	})
	if err != nil {
		return how
	}
	const most = 16
	if len(left) > most {
		left = append(left[:most], "…")
	}
	return how + "; left are the transactions of " + strings.Join(left, "; ")
}

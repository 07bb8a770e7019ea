package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type cursorCmd struct {
	List    cursorListCmd    `cmd:"" help:"List the cursors of a partition."`
	Get     cursorGetCmd     `cmd:"" help:"Show where a cursor is, and whose."`
	Set     cursorSetCmd     `cmd:"" help:"Set a cursor to a transaction."`
	Give    cursorGiveCmd    `cmd:"" help:"Give a cursor to a session, whose transactions move it from then on."`
	Release cursorReleaseCmd `cmd:"" help:"Take a cursor from its owner."`
	Remove  cursorRemoveCmd  `cmd:"" help:"Remove a cursor."`
}

// cursorAt names a cursor.
type cursorAt struct {
	Partition partition `arg:"" name:"P" help:"Partition of the cursor, from 0."`
	Name      token     `arg:"" name:"NAME" help:"The cursor."`
}

// cursorWrite has the flags of commands that write a cursor.
type cursorWrite struct {
	cursorAt
	Owner    ownerName `placeholder:"OWNER" help:"Whose the cursor is, if it has an owner: a cursor of another one stays as it is."`
	Expected *txid     `placeholder:"TXID" help:"Where the cursor has to be, 0 if it does not exist: elsewhere it stays as it is."`
	JSON     bool      `name:"json" help:"Print the cursor as a JSON object."`
	connection
}

type cursorListCmd struct {
	Partition partition `arg:"" name:"P" help:"Partition to look in, from 0."`
	JSON      bool      `name:"json" help:"Print a JSON object for each cursor."`
	connection
}

func (*cursorListCmd) Help() string {
	return `Of each cursor: the last transaction that its consumer has applied, the partition's high-water mark, when the cursor was set,
and its owner: a session, whose transactions move it, or the backup that does.`
}

// Run lists the cursors of a partition.
func (c *cursorListCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "cursor list")
	if err != nil {
		return err
	}
	defer l.close()
	var all []subjects.CursorReply
	for r := (subjects.CursorsRequest{}); ; {
		var page subjects.CursorsReply
		err := l.ask(ctx, l.names.Cursors(int(c.Partition)), r, &page)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return l.noLeader(ctx, int(c.Partition))
		case err != nil:
			return l.explain(err)
		}
		for _, at := range page.Cursors {
			all = append(all, subjects.CursorReply{
				Partition: page.Partition, Name: at.Name, Txid: at.Txid, Time: at.Time, Owner: at.Owner, HighWaterMark: page.HighWaterMark,
			})
		}
		if page.Next <= r.After { // the last page; a node that does not advance would keep this up for ever
			return printCursors(p.out, c.JSON, all...)
		}
		r.After = page.Next
	}
}

type cursorGetCmd struct {
	cursorAt
	JSON bool `name:"json" help:"Print the cursor as a JSON object."`
	connection
}

func (*cursorGetCmd) Help() string {
	return `What is printed includes each write of the cursor that was answered before.

Exit status: 1 if there is no such cursor.`
}

// Run shows a cursor.
func (c *cursorGetCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "cursor get")
	if err != nil {
		return err
	}
	defer l.close()
	at, err := l.cursor(ctx, c.cursorAt, nil)
	if err == nil && at.Time.IsZero() {
		err = c.missing()
	}
	if err != nil {
		return err
	}
	return printCursors(p.out, c.JSON, at)
}

type cursorSetCmd struct {
	cursorWrite
	Txid txid `arg:"" name:"TXID" help:"The last transaction that its consumer has applied, from 1."`
}

func (*cursorSetCmd) Help() string {
	return `The cursor is made if it does not exist. It may go back. It stays its owner's.

Examples:

  cantus cursor set 0 billing 812 --expected 800
  cantus cursor set 0 billing 812 --owner session:w7f2c

Exit status: 3 if the cursor is elsewhere than --expected, or is not --owner's.`
}

// Run sets a cursor.
func (c *cursorSetCmd) Run(ctx context.Context, p *program) error {
	if c.Txid == 0 {
		return usagef(`0 is no transaction: "cantus cursor remove" removes a cursor`)
	}
	to := uint64(c.Txid)
	return c.write(ctx, p, "cursor set", subjects.CursorRequest{Txid: &to, Owner: c.owner()})
}

type cursorGiveCmd struct {
	cursorWrite
	Session sessionName `required:"" placeholder:"NAME" help:"The session. Its transactions move the cursor by append --move."`
}

func (*cursorGiveCmd) Help() string {
	return `The cursor stays where it is. It is made if it does not exist, for a consumer that has read nothing yet.
To take a cursor over from an instance that has ended, name the session of that by --owner: none of its transactions
moves the cursor afterwards.

What is printed has the high-water mark for the first transaction of the session, and the TXID after which to read.

Examples:

  cantus cursor give 0 billing --session w7f2c
  cantus append 0 --session w7f2c --session-seq 1 --hwm 815 --move billing=812 invoice.json
  cantus cursor give 0 billing --session w9a1d --owner session:w7f2c

Exit status: 3 if the cursor is not --owner's, or is elsewhere than --expected.`
}

// Run gives a cursor to a session.
func (c *cursorGiveCmd) Run(ctx context.Context, p *program) error {
	owner := subjects.SessionOwner(string(c.Session))
	return c.write(ctx, p, "cursor give", subjects.CursorRequest{Owner: &owner})
}

type cursorReleaseCmd struct{ cursorWrite }

func (*cursorReleaseCmd) Help() string {
	return `The cursor stays where it is, and has no owner afterwards. One at 0 is removed by that.

Example:

  cantus cursor release 0 billing --owner session:w7f2c

Exit status: 1 if there is no such cursor, 3 if the cursor is not --owner's, or is elsewhere than --expected.`
}

// Run takes a cursor from its owner.
func (c *cursorReleaseCmd) Run(ctx context.Context, p *program) error {
	if c.Owner == "" {
		return usagef(`name the owner of the cursor by --owner: "cantus cursor get" shows it`)
	}
	return c.write(ctx, p, "cursor release", subjects.CursorRequest{})
}

type cursorRemoveCmd struct{ cursorWrite }

func (*cursorRemoveCmd) Help() string {
	return `A retention policy that waits for the cursor keeps everything once it is gone.

Exit status: 1 if there is no such cursor, 3 if it is not --owner's or is elsewhere than --expected.`
}

// Run removes a cursor.
func (c *cursorRemoveCmd) Run(ctx context.Context, p *program) error {
	return c.write(ctx, p, "cursor remove", subjects.CursorRequest{Txid: new(uint64)})
}

// owner returns the owner that the cursor keeps.
func (c *cursorWrite) owner() *string {
	if c.Owner == "" {
		return nil
	}
	owner := string(c.Owner)
	return &owner
}

// write writes the cursor and prints it. Without a position in r it stays where
// it is.
func (c *cursorWrite) write(ctx context.Context, p *program, command string, r subjects.CursorRequest) error {
	l, err := c.open(ctx, command)
	if err != nil {
		return err
	}
	defer l.close()
	at, err := l.cursor(ctx, c.cursorAt, nil)
	isMissing := at.Time.IsZero()
	removes := r.Txid != nil && *r.Txid == 0
	switch {
	case err != nil:
		return err
	case isMissing && (removes || r.Txid == nil && r.Owner == nil):
		return c.missing()
	case r.Txid == nil && r.Owner != nil && at.Owner == *r.Owner && c.Owner == "" && (c.Expected == nil || uint64(*c.Expected) == at.Txid):
		return printCursors(p.out, c.JSON, at) // it is given already, by a command whose answer was lost
	case at.Owner != string(c.Owner):
		return failf(exitConflict, "%s", c.otherOwner(at))
	}
	r.ExpectedOwner = new(string(c.Owner))
	if c.Expected != nil {
		r.Expected = new(uint64(*c.Expected))
	}
	if r.Txid == nil {
		r.Txid = &at.Txid
		if r.Expected == nil {
			r.Expected = &at.Txid
		}
	}
	if at, err = l.cursor(ctx, c.cursorAt, &r); err != nil {
		return err
	}
	if at.Time.IsZero() {
		fmt.Fprintf(p.errOut, "cantus: the cursor %s of partition %d is removed\n", c.Name, c.Partition)
		return nil
	}
	return printCursors(p.out, c.JSON, at)
}

// otherOwner says that the cursor is not that of --owner.
func (c *cursorWrite) otherOwner(at subjects.CursorReply) string {
	switch {
	case at.Time.IsZero():
		return fmt.Sprintf("partition %d has no cursor %s, so it is not %s's: leave out --owner to make it", c.Partition, c.Name, c.Owner)
	case at.Owner == "":
		return fmt.Sprintf("the cursor %s of partition %d has no owner: leave out --owner", c.Name, c.Partition)
	case c.Owner == "":
		return fmt.Sprintf("the cursor %s of partition %d is %[3]s's: if it is not in use there any more, give --owner %[3]s",
			c.Name, c.Partition, printable(at.Owner, len(at.Owner)))
	}
	return fmt.Sprintf("the cursor %s of partition %d is %s's, not %s's", c.Name, c.Partition, printable(at.Owner, len(at.Owner)), c.Owner)
}

func (c cursorAt) missing() error {
	return failf(exitFailed, "partition %d has no cursor %s", c.Partition, c.Name)
}

// cursor writes a cursor, or reads it if write is nil. It tries again until the
// outcome is known or the timeout is over.
func (l *natsConn) cursor(ctx context.Context, c cursorAt, write *subjects.CursorRequest) (at subjects.CursorReply, err error) {
	msg := nats.NewMsg(l.names.Cursor(int(c.Partition), string(c.Name)))
	if write != nil {
		if msg.Data, err = json.Marshal(write); err != nil {
			return at, err
		}
	}
	enough := time.After(l.timeout)
	for uncertain := false; ; {
		if at, err = l.tryCursor(ctx, c, msg); err == nil {
			return at, nil
		}
		refused, isRefusal := errors.AsType[*subjects.Error](err)
		if isRefusal && refused.Reason == subjects.WrongLast && uncertain && isThere(at, write) {
			return at, nil // by an earlier try
		}
		status := exitStatus(err)
		uncertain = uncertain || write != nil && status == exitUnknown
		if status == exitUnavailable || status == exitUnknown {
			select {
			case <-time.After(100*time.Millisecond + retryDelay(err)):
				continue
			case <-enough:
			case <-ctx.Done():
			}
		}
		if uncertain {
			return at, failf(exitUnknown, "no firm answer: the cursor may or may not have been written; \"cantus cursor get %d %s\" shows it", c.Partition, c.Name)
		}
		return at, err
	}
}

// isThere reports whether a cursor is as a write leaves it.
func isThere(at subjects.CursorReply, w *subjects.CursorRequest) bool {
	owner := ""
	if w.Owner != nil {
		owner = *w.Owner
	}
	return at.Txid == *w.Txid && at.Owner == owner
}

// tryCursor sends a request to a cursor once. The error of a write that a node
// may have received has the status exitUnknown.
func (l *natsConn) tryCursor(ctx context.Context, c cursorAt, msg *nats.Msg) (at subjects.CursorReply, err error) {
	answer, err := l.request(ctx, msg)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return at, l.noLeader(ctx, int(c.Partition))
	case err != nil && len(msg.Data) > 0 && (errors.Is(err, errConnLost) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)):
		return at, failf(exitUnknown, "%w", err)
	case err != nil:
		return at, l.explain(err)
	}
	if err := json.Unmarshal(answer.Data, &at); err != nil {
		return at, fmt.Errorf("the reply is no JSON that this version knows: %w", err)
	}
	if at.Error != nil {
		return at, refusal(at.Error)
	}
	return at, nil
}

// printCursors prints a table of cursors, or their JSON objects.
func printCursors(w io.Writer, asJSON bool, all ...subjects.CursorReply) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if !asJSON {
		fmt.Fprintln(t, "CURSOR\tTXID\tHIGH-WATER MARK\tSET\tOWNER")
	}
	for _, c := range all {
		if asJSON {
			if err := printJSON(w, c); err != nil {
				return err
			}
			continue
		}
		owner := "-"
		if c.Owner != "" {
			owner = printable(c.Owner, len(c.Owner))
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\n", printable(c.Name, len(c.Name)), c.Txid, c.HighWaterMark, stamp(c.Time), owner)
	}
	return t.Flush()
}

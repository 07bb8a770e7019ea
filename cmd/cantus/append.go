package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"golang.org/x/term"

	"github.com/cantuslog/cantus/subjects"
)

type appendCmd struct {
	Partition string `arg:"" optional:"" name:"P" help:"Partition to append to, from 0; left out with --key."`
	File      string `arg:"" optional:"" name:"FILE" help:"Payload, at most 1,000,000 bytes with the headers; - or nothing reads standard input. With --atomic the transactions."`

	Key        string      `placeholder:"KEY" help:"Append to the partition that KEY, one NATS token, hashes to, instead of P."`
	Write      []lockName  `sep:"none" placeholder:"LOCK" help:"Lock to check and to record; repeatable. A name such as account.42, or a subtree such as account.>."`
	Read       []lockName  `sep:"none" placeholder:"LOCK" help:"Lock to check only; repeatable."`
	Append     []lockName  `sep:"none" placeholder:"LOCK" help:"Lock to record only; repeatable."`
	Unless     []queryItem `sep:"none" placeholder:"JSON" help:"Condition: commit unless a transaction after --hwm is of one of some kinds and recorded a lock overlapping each of some locks, such as '{\"kinds\":[\"enrolled\"],\"locks\":[\"course.c1\"]}'; repeatable: one that matches is enough to refuse."`
	HWM        *txid       `name:"hwm" placeholder:"TXID" help:"High-water mark: the txid up to which you had applied the partition when you computed this transaction. Needed with --write, --read and --unless."`
	Last       *txid       `name:"expected-last" placeholder:"TXID" help:"Commit only if this is exactly the partition's last txid; 0 if it is empty."`
	Until      *deadline   `name:"not-after" placeholder:"TIME" help:"Commit only up to this time, by the leader's clock: a time such as 2026-11-01T08:30 or 90s, which is in 90 seconds."`
	Kind       token       `placeholder:"KIND" default:"tx" help:"Kind of transaction, one NATS token: the end of its feed subject, and a filter for reads."`
	ID         string      `name:"id" placeholder:"ID" help:"Message id, at most 128 bytes: a repeat returns the first one's txid and appends nothing, as long as the node remembers the id (--msg-id-window of cantus serve). Generated if not set."`
	Session    string      `placeholder:"NAME" help:"Session that it is in, one NATS token: its transactions commit in the order of their numbers, and do not conflict with each other. Choose another name for each run of a writer."`
	SessionSeq *sessionSeq `name:"session-seq" placeholder:"N" help:"Number of the transaction in the session, from 1 on. A repeat appends nothing, as with --id."`
	Move       string      `placeholder:"CURSOR=TXID" help:"Move a cursor of the session there if the transaction commits, such as billing=812. \"cantus cursor give\" gives it to the session before."`
	Headers    []string    `name:"header" sep:"none" placeholder:"'K: V'" help:"Header of your own to store with it; repeatable."`
	Atomic     bool        `help:"Append several transactions, which commit together or not at all: a JSON object a line, with payload or payload_base64, kind, write_locks, read_locks, append_locks and headers as they need them. The flags for locks, kind and headers are not given then; the others are for the whole."`
	JSON       bool        `name:"json" help:"Print the node's reply as JSON, also when it refuses."`

	connection
}

func (*appendCmd) Help() string {
	return `The transaction commits if no other committed one with a higher txid than --hwm recorded a lock that overlaps
one of its --write or --read locks, or matches --unless. Prints the txid, the time and the partition once the transaction is durable.

Examples:

  echo hello | cantus append 0
  cantus append 0 --write account.42 --read 'limits.>' --hwm 812 transfer.json
  cantus append 0 --kind enrolled --append course.c1 --append student.s2 --hwm 812 \
    --unless '{"kinds":["enrolled"],"locks":["course.c1","student.s2"]}' enrolment.json
  cantus append --key alice --kind order --header 'Trace: 7f3a' order.json
  cantus append 0 --atomic --hwm 812 <<'END'
  {"kind":"booked","write_locks":["desk.12.monday"],"payload":"alice"}
  {"kind":"booked","write_locks":["room.3.monday"],"payload":"alice"}
  END

With --atomic it prints the first and the last txid, such as 813-814.

Exit status: 3 after a conflict: read up to the txid it names, compute again, append with a new --hwm.
Also 3 if a number of a session, or its cursor, is refused: "cantus get --session" shows what became of it;
4 if nothing was done; 5 if it may or may not have committed: repeat it with the same --id or --session-seq.`
}

// Run appends one transaction.
func (c *appendCmd) Run(ctx context.Context, p *program) error {
	if err := c.checkArgs(); err != nil {
		return err
	}
	msg, err := c.message()
	if err != nil {
		return err
	}
	if c.Atomic {
		msg.Data, err = c.transactions(ctx, p)
	} else {
		msg.Data, err = c.payload(ctx, p)
	}
	if err != nil {
		return err
	}
	l, err := c.open(ctx, "append")
	if err != nil {
		return err
	}
	defer l.close()
	if c.Atomic {
		if err := c.makeAtomic(ctx, l, msg); err != nil {
			return err
		}
	}
	reply, err := c.send(ctx, l, msg)
	if err != nil {
		return err
	}
	return c.print(p, reply)
}

// checkArgs assigns the arguments and refuses those that cannot be right,
// before anything is read or sent.
func (c *appendCmd) checkArgs() error {
	switch {
	case c.Key != "" && c.File != "":
		return usagef("give either the partition P or --key, not both")
	case c.Key != "":
		if subjects.CheckKey(c.Key) != nil {
			return usagef("--key %q is not one NATS token: 1 to %d bytes without white space, control characters, '.', '*' or '>'",
				c.Key, subjects.MaxToken)
		}
		if _, err := os.Stat(c.Partition); err != nil && new(partition).UnmarshalText([]byte(c.Partition)) == nil {
			return usagef("give either a partition or --key, not both: %s is no file", c.Partition)
		}
		c.Partition, c.File = "", c.Partition
	case c.Partition == "":
		return usagef("name the partition to append to, such as \"cantus append 0\", or --key")
	default:
		var p partition
		if err := p.UnmarshalText([]byte(c.Partition)); err != nil {
			return usagef("%w", err)
		}
	}
	if c.Atomic && (len(c.Write)+len(c.Read)+len(c.Append)+len(c.Headers) > 0 || c.Kind != subjects.DefaultKind) {
		return usagef(`--write, --read, --append, --kind and --header are not given with --atomic: each line has its own, such as {"kind":"booked","write_locks":["desk.12"],"payload":"alice"}`)
	}
	if n := len(c.Write) + len(c.Read) + len(c.Append); n > subjects.MaxLocks {
		return usagef("%d locks: a transaction has at most %d", n, subjects.MaxLocks)
	}
	if n := len(c.Unless); n > subjects.MaxUnless {
		return usagef("--unless is given %d times: a condition has at most %d items", n, subjects.MaxUnless)
	}
	if c.HWM == nil && len(c.Write)+len(c.Read)+len(c.Unless) > 0 {
		return usagef("--write, --read and --unless %s", needMark)
	}
	if err := c.checkSession(); err != nil || c.Session != "" {
		return err
	}
	if c.ID == "" {
		c.ID = nuid.Next()
	} else if err := subjects.CheckMsgID(c.ID); err != nil {
		return usagef("--id: %w", plain(err))
	}
	return nil
}

// needMark says what --hwm is, to those that have left it out.
const needMark = "need --hwm TXID, the txid up to which you had applied the partition when you " +
	"computed this transaction: 0 if it was empty, else the last txid that you had read and taken into account then"

// payload reads the payload, and no more than can be appended.
func (c *appendCmd) payload(ctx context.Context, p *program) ([]byte, error) {
	data, err := c.input(ctx, p, "the payload", subjects.MaxTransaction+1)
	if err != nil {
		return nil, err
	}
	if len(data) > subjects.MaxTransaction {
		return nil, usagef("the payload has more than %d bytes, the most a transaction may have with its headers: split it",
			subjects.MaxTransaction)
	}
	if len(data) == 0 && c.File == "" {
		p.note("standard input was empty, and so is the payload")
	}
	return data, nil
}

// input reads at most a number of bytes of the file or of standard input. It
// returns when ctx ends; its read from a terminal or a pipe then goes on until
// something arrives or the program ends.
func (c *appendCmd) input(ctx context.Context, p *program, what string, most int64) ([]byte, error) {
	in := p.in
	switch c.File {
	case "", "-":
		if c.File == "" && isTerminal(in) {
			p.note("reading %s from the terminal: end with Ctrl-D", what)
		}
	default:
		f, err := os.Open(c.File)
		if err != nil {
			return nil, usagef("payload: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := readAll(ctx, io.LimitReader(in, most))
	if ctx.Err() != nil {
		return nil, failf(exitFailed, "interrupted while reading %s: nothing was appended", what)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return data, nil
}

// readAll reads until the end, or until ctx ends.
func readAll(ctx context.Context, in io.Reader) (data []byte, err error) {
	done := make(chan struct{})
	var all []byte
	var failed error
	go func() {
		all, failed = io.ReadAll(in)
		close(done)
	}()
	select {
	case <-done:
		return all, failed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// isTerminal reports whether in is a terminal.
func isTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// message makes the request, without its payload.
func (c *appendCmd) message() (*nats.Msg, error) {
	names := subjects.Names{Prefix: string(c.Prefix)}
	msg := nats.NewMsg(names.AppendKey(c.Key))
	if c.Key == "" {
		n, _ := strconv.Atoi(c.Partition) // checkArgs has checked it
		msg.Subject = names.Append(n)
	}
	for _, line := range c.Headers {
		key, value, err := splitHeader(line)
		if err != nil {
			return nil, err
		}
		msg.Header.Add(key, value)
	}
	if c.Session != "" {
		msg.Header.Set(subjects.HeaderSession, c.Session)
		msg.Header.Set(subjects.HeaderSessionSeq, strconv.FormatUint(uint64(*c.SessionSeq), 10))
		if c.Move != "" {
			msg.Header.Set(subjects.HeaderCursor, c.Move)
		}
	} else {
		msg.Header.Set(subjects.HeaderMsgID, c.ID)
	}
	msg.Header.Set(subjects.HeaderKind, string(c.Kind))
	addLocks(msg.Header, subjects.HeaderWriteLock, c.Write)
	addLocks(msg.Header, subjects.HeaderReadLock, c.Read)
	addLocks(msg.Header, subjects.HeaderAppendLock, c.Append)
	for _, item := range c.Unless {
		value, err := json.Marshal(subjects.QueryItem(item))
		if err != nil {
			return nil, err
		}
		msg.Header.Add(subjects.HeaderUnless, string(value))
	}
	if c.HWM != nil {
		msg.Header.Set(subjects.HeaderHighWaterMark, strconv.FormatUint(uint64(*c.HWM), 10))
	}
	if c.Last != nil {
		msg.Header.Set(subjects.HeaderExpectedLast, strconv.FormatUint(uint64(*c.Last), 10))
	}
	if c.Until != nil {
		msg.Header.Set(subjects.HeaderNotAfter, time.Time(*c.Until).UTC().Format(time.RFC3339Nano))
	}
	return msg, nil
}

func addLocks(h nats.Header, key string, locks []lockName) {
	for _, l := range locks {
		h.Add(key, string(l))
	}
}

// splitHeader splits "Key: value". NATS would send some malformed headers as
// something else, so they are refused here.
func splitHeader(line string) (key, value string, err error) {
	key, value, ok := strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	block := subjects.AppendBlockEnd(subjects.AppendField(subjects.AppendBlockStart(nil), key, value))
	if ok && strings.ContainsAny(line, "\r\n") {
		ok = false
	}
	if !ok || subjects.ScanBlock(block, func(_, _ []byte) error { return nil }) != nil {
		return "", "", usagef("--header %q is not 'Key: value', one line with a key of visible ASCII", line)
	}
	for _, reserved := range []string{"cantus-", "nats-"} {
		if strings.HasPrefix(strings.ToLower(key), reserved) {
			return "", "", usagef("--header %q: %s… headers are Cantus's and NATS's own; "+
				"--write, --read, --append, --unless, --hwm, --expected-last, --kind and --id set them", line, key[:len(reserved)])
		}
	}
	return key, value, nil
}

// appended is the reply to an append, or to an atomic batch, which has results
// if it is committed.
type appended struct {
	subjects.Reply
	Results []subjects.BatchRun `json:"results,omitempty"`
}

// send sends the request until the outcome is known, or the timeout is over.
// Repeating it is safe because it has the same message id.
func (c *appendCmd) send(ctx context.Context, l *natsConn, msg *nats.Msg) (*appended, error) {
	enough := time.After(l.timeout)
	uncertain := false // an earlier try may have committed
	for {
		reply, err := c.try(ctx, l, msg)
		if err == nil && !passing(reply.Error) {
			return reply, nil
		}
		if err == nil {
			err = refusal(reply.Error)
		}
		status := exitStatus(err)
		uncertain = uncertain || status == exitUnknown
		if status == exitUnavailable || status == exitUnknown {
			select {
			case <-time.After(100*time.Millisecond + retryDelay(err)):
				continue
			case <-enough:
			case <-ctx.Done():
			}
		}
		if uncertain {
			return nil, failf(exitUnknown, "no firm answer: the transaction may or may not have committed; "+
				"append it again with %s, which never appends it twice", c.identity())
		}
		return nil, err
	}
}

// identity returns the flags by which the partition knows a repeat.
func (c *appendCmd) identity() string {
	if c.Session != "" {
		return fmt.Sprintf("--session %s --session-seq %d", c.Session, *c.SessionSeq)
	}
	return "--id " + c.ID
}

// try sends the request once. Its error has the status exitUnknown if the node
// may have received the request.
func (c *appendCmd) try(ctx context.Context, l *natsConn, msg *nats.Msg) (*appended, error) {
	answer, err := l.request(ctx, msg)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, c.nobody(ctx, l)
	case errors.Is(err, errConnLost), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, failf(exitUnknown, "%w", err)
	case err != nil:
		return nil, l.explain(err)
	}
	reply := new(appended)
	err = json.Unmarshal(answer.Data, reply)
	if err == nil && c.Atomic && reply.Error == nil && len(reply.Results) != 1 {
		err = fmt.Errorf("it has %d results for an atomic batch", len(reply.Results))
	}
	if err != nil {
		return nil, fmt.Errorf("the reply is no JSON that this version knows: %w", err)
	}
	return reply, nil
}

// nobody returns why an append had no responder.
func (c *appendCmd) nobody(ctx context.Context, l *natsConn) error {
	if c.Key != "" {
		info, err := l.cluster(ctx)
		if err != nil {
			return err
		}
		if in := l.inNamespaces(ctx, info); len(in) > 0 {
			return failf(exitUnavailable, "the partition of key %q has no leader at the moment, or belongs to a namespace, as %s %s: "+
				"see \"cantus namespace show\", and give the --prefix of the namespace",
				c.Key, listPartitions(in, 0), either(len(in), "does", "do"))
		}
		return failf(exitUnavailable, "the partition of key %q has no leader at the moment: try again", c.Key)
	}
	n, _ := strconv.Atoi(c.Partition)
	return l.noAppends(ctx, n)
}

// passing reports whether another attempt within seconds may succeed.
func passing(e *subjects.Error) bool {
	return e != nil && (e.Reason == subjects.Unknown || e.Reason == subjects.Unavailable || e.Reason == subjects.Busy)
}

func (c *appendCmd) print(p *program, r *appended) error {
	if c.JSON {
		if err := printJSON(p.out, r); err != nil {
			return err
		}
	} else if r.Error == nil {
		run := subjects.BatchRun{Count: 1, Txid: r.Txid, Time: r.Time, Duplicate: r.Duplicate}
		if c.Atomic {
			run = r.Results[0]
		}
		txids := strconv.FormatUint(run.Txid, 10)
		if run.Count > 1 {
			txids += "-" + strconv.FormatUint(run.Txid+uint64(run.Count)-1, 10)
		}
		duplicate := ""
		if run.Duplicate {
			duplicate = " duplicate"
		}
		fmt.Fprintf(p.out, "%s %s partition=%d%s\n", txids, stamp(run.Time), r.Partition, duplicate)
	}
	if r.Error == nil {
		return nil
	}
	return c.advise(&r.Reply)
}

// advise rewords a refusal for the terminal. Most of the node's messages say
// what to do; for those about the log's state it names this command's flags.
func (c *appendCmd) advise(r *subjects.Reply) error {
	var hwm uint64
	if c.HWM != nil {
		hwm = uint64(*c.HWM)
	}
	switch {
	case r.Error.Reason == subjects.Conflict:
		return conflict(r, hwm)
	case r.Error.Reason == subjects.WrongLast && c.Session != "" && c.Last == nil:
		return failf(exitConflict, "%w", r.Error)
	case r.Error.Reason == subjects.WrongLast && r.HighWaterMark != nil:
		return failf(exitConflict, "%w; read what is new, compute again, append with --expected-last %d",
			r.Error, *r.HighWaterMark)
	}
	return refusal(r.Error)
}

func conflict(r *subjects.Reply, hwm uint64) error {
	e := r.Error
	var b strings.Builder
	switch {
	case e.Unless != nil && e.Unless.Forgotten:
		fmt.Fprintf(&b, "conflict: partition %d could not look up --unless number %d: it counts as matching transaction %d, after your high-water mark.\n",
			r.Partition, e.Unless.Item+1, e.Txid)
	case e.Unless != nil:
		fmt.Fprintf(&b, "conflict: --unless number %d matches transaction %d of partition %d, after your high-water mark.\n",
			e.Unless.Item+1, e.Txid, r.Partition)
	case len(e.Conflicts) > 0 && e.Conflicts[0].Forgotten:
		fmt.Fprintf(&b, "conflict: partition %d could not look up lock %s: it counts as recorded by transaction %d, after your high-water mark.\n",
			r.Partition, e.Lock, e.Txid)
	default:
		fmt.Fprintf(&b, "conflict: lock %s was recorded by transaction %d of partition %d, after your high-water mark.\n",
			e.Lock, e.Txid, r.Partition)
	}
	for _, c := range e.Conflicts {
		switch {
		case c.Lock == e.Lock && c.Txid == e.Txid:
		case c.Forgotten:
			fmt.Fprintf(&b, "        also: lock %s (%s), which could not be looked up: recorded by %d, before it, or never.\n", c.Lock, c.Mode, c.Txid)
		default:
			fmt.Fprintf(&b, "        also: lock %s (%s), by transaction %d.\n", c.Lock, c.Mode, c.Txid)
		}
	}
	fmt.Fprintf(&b, "        Apply the partition up to %d (\"cantus read %d --from %d\"), compute again, append with --hwm %d.",
		e.Txid, r.Partition, hwm+1, e.Txid)
	return failf(exitConflict, "%s", b.String())
}

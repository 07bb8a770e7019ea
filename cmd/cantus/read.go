package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type readCmd struct {
	Partition partition `arg:"" name:"P" help:"Partition to read, from 0."`

	From        position    `placeholder:"TXID|TIME" default:"1" help:"First transaction to read: its txid, or the first one at or after a time, such as 2026-11-01, 2026-11-01T08:30 or 90m (ago). Times are in UTC unless they name a zone."`
	Max         count       `placeholder:"N" help:"Stop after N transactions."`
	Follow      bool        `short:"f" xor:"follow" help:"At the end of the log wait for more, until interrupted. Goes on after a lost connection, without gap or repeat."`
	Kinds       []token     `name:"kind" sep:"none" placeholder:"KIND" help:"Only transactions of this kind; repeatable."`
	Lock        lockName    `placeholder:"LOCK" help:"Only transactions that recorded a lock overlapping this one, such as account.42 or 'account.>'."`
	Query       []queryItem `sep:"none" placeholder:"JSON" help:"Only transactions of one of some kinds that recorded a lock overlapping each of some locks, such as '{\"kinds\":[\"pay\"],\"locks\":[\"account.42\",\"account.7\"]}'; repeatable: one of them has to apply."`
	NewestFirst bool        `xor:"follow" help:"Begin with the newest transaction, and end with the one that --from names."`
	HeadersOnly bool        `help:"Leave the payloads out."`
	Replica     token       `placeholder:"NODE" xor:"follow" help:"What this node's replica has, although nobody may lead the partition. It may be behind, and no other node has confirmed it."`
	JSON        bool        `name:"json" help:"Print a JSON object a line, complete; the payload as text, or in payload_base64 if it is not UTF-8."`

	connection
}

func (*readCmd) Help() string {
	return `Prints a line for each transaction: txid, time, kind, locks (w: write, r: read, a: append), the first and the last
txid of its atomic batch, its number in a session and the cursor that it moves, if it has them, and the payload, shortened
and with control characters escaped. Without --follow it ends at the high-water mark found at the start. With --kind,
--lock or --query, standard error says up to which transaction what is printed is complete: the --hwm of an append that
was computed from it.

Examples:

  cantus read 0
  cantus read 0 --from 813 --follow --json | jq .payload
  cantus read 0 --from 2026-11-01T08:30 --max 10
  cantus read 0 --lock account.42 --newest-first --max 10
  cantus read 0 --query '{"kinds":["pay"],"locks":["account.42","account.7"]}'
  cantus read 0 --replica n2

Exit status: 1 if --from is more than one past the last transaction, or was trimmed.
A time to come is not past the last transaction: with --follow the command waits for it.`
}

// followWait is how long a read waits at the end of the log. The next read
// follows at once.
const followWait = 30 * time.Second

// reader is a read in progress, over as many requests as it takes.
type reader struct {
	cmd  *readCmd
	p    *program
	conn *natsConn
	out  *bufio.Writer

	next     uint64 // the first transaction not yet printed or filtered out; with --newest-first 0 for the newest
	last     uint64 // where to stop, with --newest-first where it began; 0 for unknown or never
	printed  int
	trimmed  bool // the last request was refused for that
	troubled bool // the last request failed, and that was reported
	lost     int  // successive requests without a result because messages were lost

	// Of an export: more in a request, and patience with errors that pass.
	bulk      bool
	progress  func(printed int, txid uint64)
	visit     func(*transaction) error // in place of printing
	plain     bool                     // refusals are not reworded
	succeeded time.Time                // when a request last did
}

// errLost is returned for an answer with missing messages.
var errLost = errors.New("messages of the answer were lost on the way")

// lostTries is how many successive requests may fail with errLost.
const lostTries = 20

// Run reads until the end, or until ctx is cancelled.
func (c *readCmd) Run(ctx context.Context, p *program) error {
	if c.From == (position{}) {
		return usagef("there is no transaction 0: txids begin at 1")
	}
	l, err := c.open(ctx, "read")
	if err != nil {
		return err
	}
	defer l.close()
	if c.Replica != "" {
		p.note("this is what the replica of node %s has: it may be behind, and no other node has confirmed it", c.Replica)
	}
	r := &reader{cmd: c, p: p, conn: l, out: bufio.NewWriter(p.out), next: max(uint64(c.From.txid), 1)}
	if c.NewestFirst {
		r.next = 0
	}
	for {
		done, err := r.step(ctx)
		if ferr := r.out.Flush(); ferr != nil {
			return ferr
		}
		if done && err == nil && c.Replica != "" {
			p.note("node %s knows that the transactions up to %d are committed; what its log has after them is not known to be, "+
				"and \"cantus salvage\" reads that too, with the node stopped", c.Replica, r.last)
		}
		if done && err == nil && c.Replica == "" && (len(c.Kinds) > 0 || c.Lock != "" || len(c.Query) > 0) {
			p.note("%s", r.complete())
		}
		switch {
		case c.Follow && ctx.Err() != nil:
			return nil // an interrupt is the normal end of following
		case err != nil:
			return l.explain(err)
		case done:
			return nil
		}
	}
}

// complete says for which transactions the output is complete: where some are
// left out, the last one that is printed is not the high-water mark of its
// state.
func (r *reader) complete() string {
	first, last := uint64(1), r.last
	switch {
	case r.cmd.NewestFirst:
		first = max(r.next+1, uint64(r.cmd.From.txid))
	case r.full():
		last = min(r.next-1, last)
	}
	if first > 1 && r.cmd.NewestFirst {
		return fmt.Sprintf("complete from transaction %d up to %d, the high-water mark", first, last)
	}
	return fmt.Sprintf("complete up to transaction %d, the high-water mark (--hwm) of what is printed", last)
}

// step makes one request and prints its transactions. done is true if there is
// nothing more to read.
func (r *reader) step(ctx context.Context) (done bool, err error) {
	next := r.next
	from, mark, err := r.page(ctx)
	if r.lost++; !errors.Is(err, errLost) || r.next != next {
		r.lost = 0
	}
	if errors.Is(err, errLost) && r.lost < lostTries {
		return r.full() || r.cmd.NewestFirst && r.printed > 0 && r.next == 0, nil // continue after the last transaction
	}
	switch {
	case !errors.Is(err, nats.ErrNoResponders):
	case r.cmd.Replica != "":
		err = failf(exitUnavailable, "no node named %q answers at %s, or it is not connected with that server", r.cmd.Replica, r.conn.server)
	default:
		err = r.conn.noLeader(ctx, int(r.cmd.Partition))
	}
	switch {
	case r.cmd.NewestFirst && r.next != 0 && r.printed > 0 && r.trimmed:
		r.p.note("transactions before %d were trimmed", r.next+1)
		return true, nil
	case err != nil && r.patient() && isTransient(err):
		r.await(ctx, err)
		return false, nil
	case err != nil:
		return false, err
	}
	r.troubled, r.succeeded = false, time.Now()
	if r.cmd.NewestFirst {
		if next == 0 {
			r.last = mark
		}
		r.next = from
		return r.full() || r.next == 0 || r.next < uint64(r.cmd.From.txid), nil
	}
	r.next = max(r.next, from)
	if r.last == 0 && !r.cmd.Follow {
		if r.last = mark; mark == 0 {
			return true, nil
		}
	}
	return r.full() || (!r.cmd.Follow && r.next > r.last), nil
}

// exportPatience is how long an export asks again while nobody answers.
const exportPatience = time.Minute

// patient reports whether the reader asks again after an error that may pass.
func (r *reader) patient() bool {
	return r.cmd.Follow || r.bulk && time.Since(r.succeeded) < exportPatience
}

// full reports whether --max is reached.
func (r *reader) full() bool { return r.cmd.Max > 0 && r.printed >= int(r.cmd.Max) }

// isTransient reports whether a follower may succeed after an error if it tries
// again.
func isTransient(err error) bool {
	return errors.Is(err, errConnLost) || errors.Is(err, errNewLeader) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, context.DeadlineExceeded) || exitStatus(err) == exitUnavailable
}

// await reports an error once, and pauses before the next attempt.
func (r *reader) await(ctx context.Context, why error) {
	if !r.troubled {
		r.troubled = true
		r.p.note("%v; waiting", r.conn.explain(why))
	}
	select {
	case <-ctx.Done():
	case <-time.After(250 * time.Millisecond):
	}
}

// page makes one read request and prints its transactions. It returns where the
// next read starts, and the high-water mark.
func (r *reader) page(ctx context.Context) (from, mark uint64, err error) {
	ctx, stop := r.conn.untilTrouble(ctx)
	defer stop()
	inbox := r.conn.nc.NewInbox()
	sub, err := r.conn.nc.SubscribeSync(inbox)
	if err != nil {
		return 0, 0, err
	}
	defer sub.Unsubscribe() // the connection may be gone
	// The request bounds a page, so there is no limit here that drops messages.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return 0, 0, err
	}
	body, err := json.Marshal(r.request())
	if err != nil {
		return 0, 0, err
	}
	if err := r.conn.nc.PublishRequest(r.subject(), inbox, body); err != nil {
		return 0, 0, err
	}
	wait := r.conn.timeout
	if r.cmd.Follow {
		wait += followWait
	}
	for last := uint64(0); ; {
		msg, err := nextMessage(ctx, sub, wait)
		if err != nil {
			return 0, 0, err
		}
		wait = r.conn.timeout
		if msg.Header.Get("Status") == subjects.StatusEnd {
			return endOfPage(msg, last)
		}
		if e := refused(msg); e != nil {
			if r.plain {
				return 0, 0, e
			}
			err := readRefusal(e)
			r.trimmed = e.Reason == subjects.Trimmed
			if e.Reason == subjects.Trimmed && e.FirstTxid > 0 && !r.bulk {
				err = failf(exitStatus(err), "%w; --from %d reads from there on", err, e.FirstTxid)
			}
			return 0, 0, err
		}
		if last, err = r.take(msg, last); err != nil {
			return 0, 0, err
		}
	}
}

// subject returns the subject of the read requests.
func (r *reader) subject() string {
	p := int(r.cmd.Partition)
	if r.cmd.Replica != "" {
		return r.conn.names.Admin("node", string(r.cmd.Replica), "read", strconv.Itoa(p))
	}
	return r.conn.names.Read(p)
}

func (r *reader) request() subjects.ReadRequest {
	req := subjects.ReadRequest{
		From: r.next, FromTime: r.cmd.From.at, Max: 4096, Lock: string(r.cmd.Lock), HeadersOnly: r.cmd.HeadersOnly, Packed: true,
		NewestFirst: r.cmd.NewestFirst,
	}
	for _, q := range r.cmd.Query {
		req.Query = append(req.Query, subjects.QueryItem(q))
	}
	if r.bulk {
		req.Max, req.MaxBytes = subjects.MaxReadCount, subjects.MaxReadBytes
	}
	if r.cmd.Max > 0 {
		req.Max = min(req.Max, int(r.cmd.Max)-r.printed)
	}
	if r.cmd.Follow {
		req.Wait = followWait.String()
	}
	for _, k := range r.cmd.Kinds {
		req.Kinds = append(req.Kinds, string(k))
	}
	return req
}

func nextMessage(ctx context.Context, sub *nats.Subscription, wait time.Duration) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	msg, err := sub.NextMsgWithContext(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return msg, err
}

// endOfPage checks the end of an answer, of which last was the last transaction
// received.
func endOfPage(msg *nats.Msg, last uint64) (from, mark uint64, err error) {
	if msg.Header.Get(subjects.HeaderLast) != strconv.FormatUint(last, 10) {
		return 0, 0, errLost
	}
	if from, err = strconv.ParseUint(msg.Header.Get(subjects.HeaderNext), 10, 64); err == nil {
		mark, err = strconv.ParseUint(msg.Header.Get(subjects.HeaderHighWaterMark), 10, 64)
	}
	return from, mark, err
}

// take prints the transactions of one message of an answer, unless they were
// printed before or are past the end. They must be the ones that were sent
// after last.
func (r *reader) take(msg *nats.Msg, last uint64) (txid uint64, err error) {
	switch msg.Header.Get(subjects.HeaderPrevious) {
	case strconv.FormatUint(last, 10):
	case "":
		return 0, errors.New("the node sent a message that is not a transaction")
	default:
		return 0, errLost
	}
	if msg.Header.Get(subjects.HeaderTxid) != "" || len(msg.Data) == 0 { // not packed
		t, err := parseTransaction(msg, r.cmd.HeadersOnly)
		if err != nil {
			return 0, err
		}
		return t.Txid, r.print(t)
	}
	for rest := msg.Data; len(rest) > 0; {
		var p subjects.Packed
		if p, rest, err = subjects.NextPacked(rest); err != nil {
			return 0, fmt.Errorf("the node sent a message that is not a transaction: %w", plain(err))
		}
		t, err := unpackTransaction(int(r.cmd.Partition), p, r.cmd.HeadersOnly)
		if err == nil {
			err = r.print(t)
		}
		if err != nil {
			return 0, err
		}
		last = t.Txid
	}
	return last, nil
}

// passed reports whether a transaction was printed before, or is past the end.
func (r *reader) passed(txid uint64) bool {
	if r.cmd.NewestFirst {
		return txid < uint64(r.cmd.From.txid)
	}
	return txid < r.next || r.last > 0 && txid > r.last
}

func (r *reader) print(t *transaction) (err error) {
	if r.full() || r.passed(t.Txid) {
		return nil
	}
	r.next = t.Txid + 1
	if r.cmd.NewestFirst {
		r.next = t.Txid - 1
		if r.last == 0 { // until the end of the answer says more
			r.last = t.Txid
		}
	}
	r.printed++
	if r.visit != nil {
		return r.visit(t)
	}
	if r.progress != nil {
		r.progress(r.printed, t.Txid)
	}
	if r.cmd.JSON {
		return printTransaction(r.out, t)
	}
	_, err = r.out.WriteString(t.line() + "\n")
	return err
}

// readRefusal returns the failure for a refusal of a read.
func readRefusal(e *subjects.Error) error {
	err := refusal(e)
	// A mistyped txid is more likely than a log that has lost transactions.
	if what, _, ok := strings.Cut(e.Message, ": it comes from another log"); e.Reason == subjects.Ahead && ok {
		return failf(exitStatus(err), "%s", what)
	}
	return err
}

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/cmd/internal/page"
	"github.com/cantuslog/cantus/subjects"
)

// pageViewer reads as the user that logged in over the page.
type pageViewer struct {
	user string
	conn *natsConn
	done chan struct{} // closed with the connection
}

// User implements [page.Viewer].
func (v *pageViewer) User() string { return v.user }

// Done implements [page.Viewer].
func (v *pageViewer) Done() <-chan struct{} { return v.done }

// Close implements [page.Viewer].
func (v *pageViewer) Close() { v.conn.close() }

// Limits of what the page shows of a transaction.
const (
	shownPayload = 128 << 10 // bytes of a payload
	shownBinary  = 4 << 10   // of one that is not text
	shownLocks   = 12        // locks in a row
)

// pageTransaction is a transaction on the page.
type pageTransaction struct {
	Partition   int         `json:"partition"`
	Txid        uint64      `json:"txid,string"`
	Time        string      `json:"time"`
	Kind        string      `json:"kind"`
	WriteLocks  []string    `json:"write_locks,omitempty"`
	ReadLocks   []string    `json:"read_locks,omitempty"`
	AppendLocks []string    `json:"append_locks,omitempty"`
	Mark        string      `json:"high_water_mark,omitempty"`
	Atomic      string      `json:"atomic,omitempty"` // the first and the last txid of its atomic batch
	MsgID       string      `json:"msg_id,omitempty"`
	Session     string      `json:"session,omitempty"`
	SessionSeq  uint64      `json:"session_seq,omitempty,string"`
	Move        string      `json:"move,omitempty"` // as in [subjects.ParseMove]
	Headers     [][2]string `json:"headers,omitempty"`
	Bytes       int         `json:"bytes"`
	// Payload is the payload as text, or as hexadecimal digits if Binary is
	// true. Cut says that there is more of it.
	Payload string `json:"payload"`
	Binary  bool   `json:"binary,omitempty"`
	Cut     bool   `json:"cut,omitempty"`
	// MoreLocks is how many locks a row leaves out.
	MoreLocks int `json:"more_locks,omitempty"`
}

// rowOfPage returns a transaction as a row: with the beginning of its payload
// and a few of its locks.
func rowOfPage(t *transaction) *pageTransaction {
	row := &pageTransaction{
		Partition: t.Partition, Txid: t.Txid, Time: stamp(t.Time), Kind: t.Kind,
		WriteLocks: t.WriteLocks, ReadLocks: t.ReadLocks, AppendLocks: t.AppendLocks, Bytes: len(t.data), Payload: t.excerpt(),
	}
	if t.Atomic != nil {
		row.Atomic = t.Atomic.String()
	}
	row.Session, row.SessionSeq, row.Move = t.Session, t.SessionSeq, t.Move
	room := shownLocks
	for _, locks := range []*[]string{&row.WriteLocks, &row.ReadLocks, &row.AppendLocks} {
		n := min(len(*locks), room)
		row.MoreLocks += len(*locks) - n
		*locks, room = (*locks)[:n], room-n
	}
	return row
}

// wholeOfPage returns a transaction with all that the page shows of it.
func wholeOfPage(t *transaction) *pageTransaction {
	whole := rowOfPage(t)
	whole.WriteLocks, whole.ReadLocks, whole.AppendLocks, whole.MoreLocks = t.WriteLocks, t.ReadLocks, t.AppendLocks, 0
	if t.HighWaterMark != nil {
		whole.Mark = fmt.Sprint(*t.HighWaterMark)
	}
	whole.MsgID = strings.ToValidUTF8(t.MsgID, "\uFFFD")
	for _, h := range t.Headers {
		whole.Headers = append(whole.Headers, [2]string{h.key, strings.ToValidUTF8(h.value, "\uFFFD")})
	}
	if utf8.Valid(t.data) {
		shown := t.data[:min(len(t.data), shownPayload)]
		for !utf8.Valid(shown) { // it is cut within a character
			shown = shown[:len(shown)-1]
		}
		whole.Payload, whole.Cut = string(shown), len(shown) < len(t.data)
		return whole
	}
	shown := t.data[:min(len(t.data), shownBinary)]
	whole.Payload, whole.Cut, whole.Binary = hex.Dump(shown), len(shown) < len(t.data), true
	return whole
}

// Transaction implements [page.Viewer].
func (v *pageViewer) Transaction(ctx context.Context, partition int, txid uint64) (any, error) {
	t, err := v.get(ctx, partition, subjects.GetRequest{Txid: txid})
	if err != nil {
		return nil, v.explain(err)
	}
	return wholeOfPage(t), nil
}

// get looks up a transaction.
func (v *pageViewer) get(ctx context.Context, partition int, what subjects.GetRequest) (*transaction, error) {
	body, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	msg, err := v.conn.request(ctx, &nats.Msg{Subject: v.conn.names.Get(partition), Data: body})
	if err != nil {
		return nil, err
	}
	if e := refused(msg); e != nil {
		return nil, e
	}
	return parseTransaction(msg, false)
}

// explain rewords an error for people.
func (v *pageViewer) explain(err error) error {
	switch refused, is := errors.AsType[*subjects.Error](err); {
	case is:
		return errors.New(refused.Message)
	case errors.Is(err, nats.ErrNoResponders):
		return errors.New("nobody answers for this partition: it does not exist, has no leader, or this user can't reach it")
	case errors.Is(err, nats.ErrPermissionViolation):
		return fmt.Errorf("this user may not do that: %s", permission(err))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return errors.New("no answer in time")
	case errors.Is(err, errLost):
		return errors.New("messages of the answer were lost on the way: try again")
	case errors.Is(err, errConnLost), errors.Is(err, nats.ErrConnectionClosed):
		return errors.New("the login has ended")
	}
	return errors.New(errorText(err))
}

// permission returns what the NATS server says that a user may not do, such as
// `Publish to "cantus.read.0"`.
func permission(err error) string {
	_, what, found := strings.Cut(err.Error(), "Permissions Violation for ")
	if !found {
		return err.Error()
	}
	return what
}

// read reads transactions of a partition from a txid on, at most a number of
// them, and returns where the next read starts, and the high-water mark. The
// node may go through a bounded stretch of the log only.
func (v *pageViewer) read(ctx context.Context, r *readCmd, from uint64, most int, visit func(*transaction) error) (next, mark uint64, err error) {
	r.Max = count(most)
	rd := &reader{cmd: r, conn: v.conn, next: from, visit: visit, plain: true}
	next, mark, err = rd.page(ctx)
	if r.NewestFirst {
		return next, mark, err
	}
	return max(next, rd.next), mark, err
}

// Limits of a tail.
const (
	tailPartitions = 64 // shown at a time
	tailStart      = 24 // the newest transactions that it begins with, of all partitions
	tailRows       = 48 // in a read, of all partitions
	tailPace       = 250 * time.Millisecond
	tailBehind     = 512    // how far a partition may be behind
	tailFiltered   = 20_000 // the same with a filter
	tailRetry      = time.Second
)

// gapOfPage says which transactions a tail leaves out.
type gapOfPage struct {
	Partition int    `json:"partition"`
	First     uint64 `json:"first,string"`
	Last      uint64 `json:"last,string"`
	Because   string `json:"because"`
}

// noticeOfPage says what is the matter with a tail. With a partition and
// without a text it takes back what was said of that partition.
type noticeOfPage struct {
	Partition *int   `json:"partition,omitempty"`
	Text      string `json:"text"`
}

// Tail implements [page.Viewer].
func (v *pageViewer) Tail(ctx context.Context, f page.Filter, emit func(event string, data any)) {
	info, err := v.conn.cluster(ctx)
	if err != nil {
		emit("notice", noticeOfPage{Text: v.explain(err).Error()})
		return
	}
	all := f.Partitions
	if all == nil {
		for p := range info.Partitions {
			all = append(all, p)
		}
	}
	if len(all) > tailPartitions {
		emit("notice", noticeOfPage{Text: fmt.Sprintf("%d of %d partitions are shown, %d to %d: choose others by the filter",
			tailPartitions, len(all), all[0], all[tailPartitions-1])})
		all = all[:tailPartitions]
	}
	done := make(chan struct{})
	n := 0
	for _, p := range all {
		t := tail{v: v, partition: p, filter: f, emit: emit, start: max(1, tailStart/len(all)), rows: max(4, tailRows/len(all))}
		n++
		go func() {
			t.run(ctx)
			done <- struct{}{}
		}()
	}
	v.watchConflicts(ctx, f, emit)
	for range n {
		<-done
	}
}

// watchConflicts emits conflicts as they happen, until ctx ends.
func (v *pageViewer) watchConflicts(ctx context.Context, f page.Filter, emit func(event string, data any)) {
	subject := v.conn.names.Advisory("conflict")
	watching, stop := v.conn.untilTrouble(ctx)
	defer func() { stop() }()
	messages := make(chan *nats.Msg, 64)
	sub, err := v.conn.nc.ChanSubscribe(subject, messages)
	if err != nil {
		emit("notice", noticeOfPage{Text: v.explain(err).Error()})
		return
	}
	defer sub.Unsubscribe() // the connection may be gone
	for {
		select {
		case <-ctx.Done():
			return
		case <-watching.Done():
			if err := context.Cause(watching); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+subject+`"`) {
				emit("notice", noticeOfPage{Text: v.explain(err).Error() + ": no conflicts are shown"})
				return
			}
			stop()
			watching, stop = v.conn.untilTrouble(ctx) // the trouble was another one
		case m := <-messages:
			if shown, ok := conflictOfPage(m.Data, f); ok {
				emit("conflict", shown)
			}
		}
	}
}

// pageConflict is a conflict on the page.
type pageConflict struct {
	Partition int              `json:"partition"`
	Time      string           `json:"time"`
	Node      string           `json:"node"`
	MsgID     string           `json:"msg_id,omitempty"`
	Text      string           `json:"text"`
	Conflicts []pageConflicted `json:"conflicts"`
	LeftOut   int              `json:"left_out,omitempty"`
}

type pageConflicted struct {
	Lock      string `json:"lock"`
	Mode      string `json:"mode"`
	Txid      uint64 `json:"txid,string"`
	Forgotten bool   `json:"forgotten,omitempty"`
}

// conflictOfPage decodes an advisory, and reports whether a filter lets it
// pass. Anybody who may publish it may have made it up.
func conflictOfPage(text []byte, f page.Filter) (*pageConflict, bool) {
	var a struct {
		Partition int             `json:"partition"`
		Node      string          `json:"node"`
		Time      time.Time       `json:"time"`
		MsgID     string          `json:"msg_id"`
		LeftOut   int             `json:"left_out"`
		Error     *subjects.Error `json:"error"`
	}
	if json.Unmarshal(bytes.ToValidUTF8(text, []byte("\uFFFD")), &a) != nil || a.Error == nil {
		return nil, false
	}
	shown := &pageConflict{Partition: a.Partition, Time: stamp(a.Time), Node: a.Node, MsgID: a.MsgID, Text: a.Error.Message, LeftOut: a.LeftOut}
	passes := f.Lock == ""
	for _, c := range a.Error.Conflicts {
		shown.Conflicts = append(shown.Conflicts, pageConflicted{c.Lock, c.Mode, c.Txid, c.Forgotten})
		passes = passes || subjects.CheckLock(c.Lock) == nil && subjects.Overlap(f.Lock, c.Lock)
	}
	for _, p := range f.Partitions {
		if p == a.Partition {
			return shown, passes
		}
	}
	return shown, passes && f.Partitions == nil
}

// tail shows one partition from its newest transactions on.
type tail struct {
	v           *pageViewer
	partition   int
	filter      page.Filter
	emit        func(event string, data any)
	start, rows int

	next    uint64 // 0 for not known yet
	trouble string // what was emitted last
}

func (t *tail) run(ctx context.Context) {
	for ctx.Err() == nil {
		pause := time.Duration(0)
		switch more, err := t.step(ctx); {
		case ctx.Err() != nil:
			return
		case errors.Is(err, nats.ErrPermissionViolation) && !strings.Contains(err.Error(), `"`+t.subject(err)+`"`):
			// another partition's
		case errors.Is(err, nats.ErrPermissionViolation):
			t.say(t.v.explain(err).Error() + ": this partition is not shown")
			return
		case err != nil:
			t.say(t.v.explain(err).Error())
			pause = tailRetry
		default:
			t.say("")
			if more {
				pause = tailPace
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// subject returns the subject of the tail's requests that an error is about, or
// the one that it reads by.
func (t *tail) subject(err error) string {
	if info := t.v.conn.names.PartitionInfo(t.partition); strings.Contains(err.Error(), `"`+info+`"`) {
		return info
	}
	return t.v.conn.names.Read(t.partition)
}

// say emits what is the matter, once.
func (t *tail) say(text string) {
	if t.trouble != text {
		t.trouble = text
		t.emit("notice", noticeOfPage{&t.partition, text})
	}
}

// step makes one read, which waits if there is nothing new, and reports whether
// it found something.
func (t *tail) step(ctx context.Context) (more bool, err error) {
	if t.next == 0 {
		if err := t.begin(ctx); err != nil {
			return false, err
		}
	}
	cmd := readCmd{Partition: partition(t.partition), Lock: lockName(t.filter.Lock), Follow: true}
	behind := uint64(tailBehind)
	if t.filter.Kind != "" {
		cmd.Kinds = []token{token(t.filter.Kind)}
	}
	if t.filter.Kind != "" || t.filter.Lock != "" {
		behind = tailFiltered
	}
	next, mark, err := t.v.read(ctx, &cmd, t.next, t.rows, func(tx *transaction) error {
		t.emit("transaction", rowOfPage(tx))
		t.next, more = tx.Txid+1, true
		return nil
	})
	refused, _ := errors.AsType[*subjects.Error](err)
	switch {
	case refused != nil && refused.Reason == subjects.Trimmed && refused.FirstTxid > t.next:
		t.leaveOut(refused.FirstTxid, "they were trimmed")
		return false, nil
	case refused != nil && refused.Reason == subjects.Ahead:
		t.next = 0 // another log
		return false, err
	case err != nil:
		return more, err
	}
	t.next = max(t.next, next)
	if mark >= t.next && mark-t.next >= behind {
		t.leaveOut(mark-uint64(t.rows)+1, "the log is faster than this page")
	}
	return more, nil
}

// leaveOut moves on, and says over what.
func (t *tail) leaveOut(to uint64, because string) {
	t.emit("gap", gapOfPage{t.partition, t.next, to - 1, because})
	t.next = to
}

// begin sets where the tail begins: where the viewer was, if that is not long
// ago, or at the newest transactions.
func (t *tail) begin(ctx context.Context) error {
	var info subjects.PartitionInfo
	if err := t.v.conn.ask(ctx, t.v.conn.names.PartitionInfo(t.partition), nil, &info); err != nil {
		return err
	}
	mark := info.HighWaterMark
	t.next = max(info.FirstTxid, mark+1-min(mark, uint64(t.start)))
	after, known := t.filter.After[t.partition]
	switch {
	case !known || after > mark:
	case after+1 >= t.next || mark-after < tailBehind:
		t.next = max(after+1, info.FirstTxid)
	default:
		t.emit("gap", gapOfPage{t.partition, after + 1, t.next - 1, "this page was not there"})
	}
	return nil
}

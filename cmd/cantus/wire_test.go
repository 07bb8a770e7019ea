package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/barenats"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// wire plays a node by script, for answers that a real one sends only after a
// failure: a NATS server, and responders that a test connects to it.
type wire struct {
	t   *testing.T
	nc  *nats.Conn
	url string
}

// newWire starts a wire. The tests that use it run in parallel: some wait for a
// timeout.
func newWire(t *testing.T) *wire {
	t.Helper()
	return configuredWire(t, "")
}

func configuredWire(t *testing.T, config string, options ...nats.Option) *wire {
	t.Helper()
	t.Parallel()
	server, err := barenats.Run(t.Context(), barenats.Options{Listen: "127.0.0.1:0", ConfigFile: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	nc, err := nats.Connect(server.ClientURL(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return &wire{t: t, nc: nc, url: server.ClientURL()}
}

// answer adds a responder to a subject; n counts its requests from 1.
func (w *wire) answer(subject string, f func(n int, msg *nats.Msg)) {
	w.t.Helper()
	n := 0
	if _, err := w.nc.Subscribe(subject, func(msg *nats.Msg) { n++; f(n, msg) }); err != nil {
		w.t.Fatal(err)
	}
	if err := w.nc.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

// founded answers for a cluster of n partitions.
func (w *wire) founded(n int) {
	w.answer("cantus.info", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.ClusterInfo{Cluster: "test", Version: "v0", Partitions: n, Nodes: []subjects.NodeInfo{{Name: "n1", Ready: true}}})
	})
}

func respond(msg *nats.Msg, body any) {
	reply := nats.NewMsg(msg.Reply)
	reply.Data, _ = json.Marshal(body)
	if r, ok := body.(subjects.Reply); ok && r.Error != nil {
		reply.Header.Set(subjects.HeaderErrorCode, strconv.Itoa(r.Error.Code))
		reply.Header.Set(subjects.HeaderError, r.Error.Error())
	}
	msg.RespondMsg(reply) // the client's timeout tells
}

// lastSent is the txid of the last transaction that was sent to a reply
// subject.
var lastSent sync.Map

// respondTx answers a read with one transaction.
func respondTx(msg *nats.Msg, txid uint64, payload string) {
	reply := nats.NewMsg(msg.Reply)
	reply.Header.Set(subjects.HeaderTxid, strconv.FormatUint(txid, 10))
	reply.Header.Set(subjects.HeaderPartition, "0")
	reply.Header.Set(subjects.HeaderTime, "2026-11-22T09:00:00.5Z")
	reply.Header.Set(subjects.HeaderKind, "tx")
	previous, _ := lastSent.LoadOrStore(msg.Reply, uint64(0))
	reply.Header.Set(subjects.HeaderPrevious, fmt.Sprint(previous))
	lastSent.Store(msg.Reply, txid)
	reply.Data = []byte(payload)
	msg.RespondMsg(reply) // the client's timeout tells
}

// respondEnd ends a read.
func respondEnd(msg *nats.Msg, next, mark uint64) {
	reply := nats.NewMsg(msg.Reply)
	reply.Header.Set("Status", subjects.StatusEnd)
	last, _ := lastSent.LoadOrStore(msg.Reply, uint64(0))
	reply.Header.Set(subjects.HeaderLast, fmt.Sprint(last))
	reply.Header.Set(subjects.HeaderNext, strconv.FormatUint(next, 10))
	reply.Header.Set(subjects.HeaderHighWaterMark, strconv.FormatUint(mark, 10))
	msg.RespondMsg(reply) // the client's timeout tells
}

// cantus runs the program against the wire.
func (w *wire) cantus(stdin string, args ...string) (status int, out, errOut string) {
	w.t.Helper()
	var o, e bytes.Buffer
	p := &program{in: strings.NewReader(stdin), out: &o, errOut: &e}
	status = p.run(w.t.Context(), append(args, "--server", w.url))
	return status, o.String(), e.String()
}

func (w *wire) expect(status, wantStatus int, text, wantText string) {
	w.t.Helper()
	if status != wantStatus {
		w.t.Errorf("exit status %d, want %d", status, wantStatus)
	}
	if !strings.Contains(text, wantText) {
		w.t.Errorf("printed %q, want %q in it", text, wantText)
	}
}

func refuse(e *subjects.Error) subjects.Reply {
	mark := uint64(815)
	return subjects.Reply{Error: e, HighWaterMark: &mark}
}

func TestRefusalsHaveTheirExitStatus(t *testing.T) {
	want := map[subjects.Reason]int{
		subjects.BadRequest: 2, subjects.TooLarge: 2, subjects.IDReused: 2,
		subjects.Conflict: 3, subjects.WrongLast: 3, subjects.Expired: 3,
		subjects.Busy: 4, subjects.Unavailable: 4, subjects.StorageFull: 4,
		subjects.Unknown: 5,
		subjects.Trimmed: 1, subjects.NotFound: 1, subjects.Ahead: 1, subjects.Internal: 1,
	}
	for reason := range subjects.Reasons() {
		t.Run(string(reason), func(t *testing.T) {
			w := newWire(t)
			w.answer("cantus.append.0", func(_ int, msg *nats.Msg) {
				respond(msg, refuse(subjects.Errorf(reason, "because")))
			})
			status, _, errOut := w.cantus("x", "append", "0", "--timeout", "1s")
			if status != want[reason] || errOut == "" {
				t.Errorf("exit status %d, want %d; printed %q", status, want[reason], errOut)
			}
		})
	}
}

func TestConflictSaysWhatToDo(t *testing.T) {
	w := newWire(t)
	e := subjects.Errorf(subjects.Conflict, "…")
	e.Lock, e.Txid = "account.42", 812
	e.Conflicts = []subjects.ConflictingLock{{Lock: "account.42", Mode: "write", Txid: 812}, {Lock: "limits.>", Mode: "read", Txid: 809}}
	w.answer("cantus.append.0", func(_ int, msg *nats.Msg) { respond(msg, refuse(e)) })

	status, out, errOut := w.cantus("x", "append", "0", "--write", "account.42", "--read", "limits.>", "--hwm", "800")
	w.expect(status, exitConflict, errOut, "lock account.42 was recorded by transaction 812 of partition 0")
	w.expect(status, exitConflict, errOut, "also: lock limits.> (read), by transaction 809")
	w.expect(status, exitConflict, errOut, "append with --hwm 812.")
	if out != "" {
		t.Errorf("printed %q on standard output", out)
	}
	status, out, _ = w.cantus("x", "append", "0", "--json")
	w.expect(status, exitConflict, out, `"reason":"conflict"`)
}

func TestConflictBehindTheFloorNamesNoTransaction(t *testing.T) {
	w := newWire(t)
	e := subjects.Errorf(subjects.Conflict, "…")
	e.Lock, e.Txid = "account.42", 812
	e.Conflicts = []subjects.ConflictingLock{
		{Lock: "account.42", Mode: "write", Txid: 812, Forgotten: true}, {Lock: "limits.>", Mode: "read", Txid: 812, Forgotten: true},
	}
	w.answer("cantus.append.0", func(_ int, msg *nats.Msg) { respond(msg, refuse(e)) })
	status, _, errOut := w.cantus("x", "append", "0", "--write", "account.42", "--read", "limits.>", "--hwm", "800")
	w.expect(status, exitConflict, errOut, "partition 0 could not look up lock account.42: it counts as recorded by transaction 812, after your high-water mark")
	w.expect(status, exitConflict, errOut, "also: lock limits.> (read), which could not be looked up: recorded by 812, before it, or never")
	w.expect(status, exitConflict, errOut, "append with --hwm 812.")
}

func TestATrimSaysWhyMoreIsKept(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.admin.trim.0", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.TrimReply{FirstTxid: 5, Because: "the message id of transaction 7 still counts"})
	})
	status, out, errOut := w.cantus("", "trim", "0", "--before", "100")
	w.expect(status, 0, out, "partition 0 is kept from transaction 5 on\n")
	w.expect(status, 0, errOut, "more is kept than was asked for: the message id of transaction 7 still counts")
	status, out, _ = w.cantus("", "trim", "0", "--before", "100", "--json")
	w.expect(status, 0, out, `{"partition":0,"first_txid":5,"because":"the message id of transaction 7 still counts"}`)
}

// With many partitions, one answer after the other takes long.
func TestStatusAsksManyPartitionsAtOnce(t *testing.T) {
	w := newWire(t)
	w.founded(3)
	others := make(chan struct{}, 2)
	for p := range 3 {
		w.answer(fmt.Sprint("cantus.info.", p), func(_ int, msg *nats.Msg) {
			if p > 0 {
				others <- struct{}{}
			} else {
				for range 2 {
					<-others
				}
			}
			respond(msg, subjects.PartitionInfo{Partition: p, Leader: fmt.Sprint("n", p)})
		})
	}
	status, out, _ := w.cantus("", "status", "--timeout", "20s")
	w.expect(status, 0, out, "0          n0 ")
	w.expect(status, 0, out, "2          n2 ")
}

func TestUnknownIsAskedAgainWithTheSameID(t *testing.T) {
	w := newWire(t)
	var mu sync.Mutex
	var ids []string
	w.answer("cantus.append.0", func(n int, msg *nats.Msg) {
		mu.Lock()
		ids = append(ids, msg.Header.Get(subjects.HeaderMsgID))
		mu.Unlock()
		if n == 1 {
			respond(msg, refuse(subjects.Errorf(subjects.Unknown, "leadership was lost")))
			return
		}
		respond(msg, subjects.Reply{Txid: 813, Duplicate: true})
	})
	status, out, errOut := w.cantus("x", "append", "0")
	w.expect(status, exitDone, out, "813 ")
	w.expect(status, exitDone, out, " duplicate")
	if errOut != "" {
		t.Errorf("printed %q", errOut)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) != 2 || ids[0] == "" || ids[0] != ids[1] {
		t.Errorf("message ids %q, want the same twice", ids)
	}
}

// A refusal because of a limit says when to send again: the same append is not
// sent before, and the command's own timeout still ends it.
func TestAnAppendWaitsForALimit(t *testing.T) {
	w := newWire(t)
	limit := subjects.Errorf(subjects.Busy, "the namespace allows 5 transactions a second")
	limit.Limit, limit.RetryAfter = "transactions", 0.7
	sent := make(chan time.Time, 9)
	w.answer("cantus.append.0", func(n int, msg *nats.Msg) {
		if sent <- time.Now(); n == 1 {
			respond(msg, refuse(limit))
			return
		}
		respond(msg, subjects.Reply{Txid: 813})
	})
	status, out, errOut := w.cantus("x", "append", "0")
	w.expect(status, 0, out+errOut, "813 ")
	if len(sent) != 2 {
		t.Fatalf("it was sent %d times, want 2", len(sent))
	}
	if first, again := <-sent, <-sent; again.Sub(first) < limit.RetryDelay() {
		t.Errorf("it was sent again after %v", again.Sub(first))
	}

	limit.RetryAfter = 3600
	w.answer("cantus.append.1", func(_ int, msg *nats.Msg) { respond(msg, refuse(limit)) })
	status, _, errOut = w.cantus("x", "append", "1", "--timeout", "300ms")
	w.expect(status, exitUnavailable, errOut, "the namespace allows 5 transactions a second")
}

func TestUnansweredAppendIsUnknown(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.append.0", func(int, *nats.Msg) {})
	status, _, errOut := w.cantus("x", "append", "0", "--id", "mine", "--timeout", "1s")
	w.expect(status, exitUnknown, errOut, "append it again with --id mine")
}

// A write of a cursor that is not answered is sent again. If the cursor is by
// then where it was to be, it is done.
func TestACursorWriteIsSentAgain(t *testing.T) {
	w := newWire(t)
	at := subjects.CursorReply{Name: "c", Txid: 5, Time: time.Unix(1, 0), HighWaterMark: 9}
	w.answer("cantus.cursor.0.c", func(n int, msg *nats.Msg) {
		reply := at
		switch {
		case len(msg.Data) == 0:
		case n == 2:
			reply.Error = subjects.Errorf(subjects.Unknown, "leadership was lost")
			at.Txid = 6
		default:
			reply.Error = subjects.Errorf(subjects.WrongLast, "it stands at 6")
		}
		respond(msg, reply)
	})
	status, out, errOut := w.cantus("", "cursor", "set", "0", "c", "6", "--expected", "5")
	w.expect(status, exitDone, out+errOut, "6     9")
	status, _, errOut = w.cantus("", "cursor", "set", "0", "c", "6", "--expected", "5")
	w.expect(status, exitConflict, errOut, "it stands at 6")

	w.answer("cantus.cursor.0.lost", func(_ int, msg *nats.Msg) {
		if len(msg.Data) == 0 {
			respond(msg, subjects.CursorReply{Name: "lost"})
		}
	})
	status, _, errOut = w.cantus("", "cursor", "set", "0", "lost", "6", "--timeout", "300ms")
	w.expect(status, exitUnknown, errOut, `the cursor may or may not have been written; "cantus cursor get 0 lost" shows it`)
}

func TestUncertaintyOutlivesALaterRefusal(t *testing.T) {
	// First unknown, then no leader: the first may still have committed.
	w := newWire(t)
	w.answer("cantus.append.0", func(n int, msg *nats.Msg) {
		reason := subjects.Unavailable
		if n == 1 {
			reason = subjects.Unknown
		}
		respond(msg, refuse(subjects.Errorf(reason, "because")))
	})
	status, _, errOut := w.cantus("x", "append", "0", "--timeout", "1s")
	w.expect(status, exitUnknown, errOut, "may or may not have committed")
}

// A leader that is not known is not "none".
func TestStatusOfLeadersThatDoNotSay(t *testing.T) {
	w := newWire(t)
	w.founded(3)
	w.answer("cantus.info.0", func(int, *nats.Msg) {})
	w.answer("cantus.info.1", func(_ int, msg *nats.Msg) { respond(msg, refuse(subjects.Errorf(subjects.Unavailable, "because"))) })
	status, out, errOut := w.cantus("", "status", "--timeout", "200ms")
	w.expect(status, exitUnavailable, errOut, "without a leader: partition 2")
	for _, row := range []string{`(?m)^0 +\? +-`, `(?m)^1 +\? +-`, `(?m)^2 +none +-`, `partition 0 did not answer, .* \(no answer from`, `; partition 1 answered "unavailable", so`} {
		if !regexp.MustCompile(row).MatchString(out) {
			t.Errorf("%s is not in\n%s", row, out)
		}
	}
}

// A node's NATS server is there before the node answers. A command waits for
// that, and says nothing of a wrong prefix meanwhile.
func TestANodeThatStartsIsWaitedFor(t *testing.T) {
	w := newWire(t)
	flags := connection{Server: w.url, Timeout: duration(testkit.Patience), natsFlags: natsFlags{Prefix: "cantus", Inbox: "_INBOX"}}
	l, err := flags.open(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	answered := make(chan error, 1)
	go func() {
		_, err := l.cluster(t.Context())
		answered <- err
	}()
	testkit.Until(t, "nobody has answered", func() bool { return l.nc.Stats().InMsgs > 0 })
	w.founded(4)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	w := newWire(t)
	status, _, errOut := w.cantus("x", "append", "0", "--timeout", "1s")
	w.expect(status, exitUnavailable, errOut, `no Cantus node has answered under the prefix "cantus"`)
	status, _, errOut = w.cantus("", "status", "--timeout", "100ms")
	w.expect(status, exitUnavailable, errOut, "no Cantus node")

	w.founded(4)
	for _, args := range [][]string{{"append", "7", "--timeout", "10m"}, {"read", "7"}, {"read", "7", "--follow"}, {"get", "7", "1"}} {
		status, _, errOut = w.cantus("x", args...)
		w.expect(status, exitUsage, errOut, "partition 7 does not exist: this cluster has 4 (0 to 3)")
	}
	for _, args := range [][]string{{"append", "1", "--timeout", "1s"}, {"read", "1"}, {"get", "1", "1"}} {
		status, _, errOut = w.cantus("x", args...)
		w.expect(status, exitUnavailable, errOut, "partition 1 has no leader at the moment")
	}
	status, _, errOut = w.cantus("x", "append", "--key", "k", "--timeout", "1s")
	w.expect(status, exitUnavailable, errOut, `the partition of key "k" has no leader`)
	status, out, errOut := w.cantus("", "status")
	w.expect(status, exitUnavailable, errOut, "without a leader: partitions 0, 1, 2, 3")
	w.expect(status, exitUnavailable, out, "none")
}

func TestReadHasNoGapAndNoRepeat(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.read.0", func(n int, msg *nats.Msg) {
		var req subjects.ReadRequest
		if err := json.Unmarshal(msg.Data, &req); err != nil {
			t.Error(err)
		}
		switch n {
		case 1: // breaks off after the second
			respondTx(msg, 1, "one")
			respondTx(msg, 2, "two")
		case 2: // begins too early
			if req.From != 3 {
				t.Errorf("second read from %d, want 3", req.From)
			}
			respondTx(msg, 2, "two")
			respondTx(msg, 3, "three")
			respondEnd(msg, 4, 4)
		case 3: // refuses for a moment
			respond(msg, refuse(subjects.Errorf(subjects.Unavailable, "electing")))
		default:
			for id := req.From; id <= 4; id++ {
				respondTx(msg, id, "four")
			}
			respondEnd(msg, 5, 4)
		}
	})
	// Following waits 30 seconds longer than --timeout after an interruption.
	// So two runs test it: one that fails, and one that continues.
	status, out, errOut := w.cantus("", "read", "0", "--timeout", "1s")
	w.expect(status, exitUnavailable, errOut, "no answer")
	if got := txids(out); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("read %v, want what had come: 1 2", got)
	}
	status, out, errOut = w.cantus("", "read", "0", "--from", "3", "--follow", "--max", "2")
	w.expect(status, exitDone, errOut, "electing; waiting")
	if got := txids(out); !slices.Equal(got, []string{"3", "4"}) {
		t.Errorf("read %v, want 3 4", got)
	}
}

// TestReadNoticesLostMessages loses messages at each position of an answer.
func TestReadNoticesLostMessages(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.read.0", func(n int, msg *nats.Msg) {
		var req subjects.ReadRequest
		json.Unmarshal(msg.Data, &req) // zero fails the test
		for id := req.From; id <= 9; id++ {
			if id%3 != 0 { // not of the kind
				continue
			}
			if n <= 3 && id == uint64(3*n) { // lost
				lastSent.Store(msg.Reply, id)
				continue
			}
			respondTx(msg, id, fmt.Sprint(id))
		}
		respondEnd(msg, 10, 9)
	})
	status, out, errOut := w.cantus("", "read", "0", "--kind", "tx")
	w.expect(status, exitDone, errOut, "")
	if got := txids(out); !slices.Equal(got, []string{"3", "6", "9"}) {
		t.Errorf("read %v, want 3 6 9", got)
	}
}

func txids(out string) []string {
	var ids []string
	for line := range strings.Lines(out) {
		id, _, _ := strings.Cut(line, " ")
		ids = append(ids, id)
	}
	return ids
}

func TestReadEndsAtTheMarkOfItsStart(t *testing.T) {
	// The log grows as fast as it is read.
	w := newWire(t)
	w.answer("cantus.read.0", func(_ int, msg *nats.Msg) {
		var req subjects.ReadRequest
		json.Unmarshal(msg.Data, &req) // zero fails the test
		for id := req.From; id < req.From+2; id++ {
			respondTx(msg, id, fmt.Sprint(id))
		}
		respondEnd(msg, req.From+2, req.From+4)
	})
	status, out, _ := w.cantus("", "read", "0")
	w.expect(status, exitDone, out, "")
	if got := txids(out); !slices.Equal(got, []string{"1", "2", "3", "4", "5"}) {
		t.Errorf("read %v, want 1 to 5", got)
	}
}

func TestTrimmedSaysWhereToStart(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.read.0", func(_ int, msg *nats.Msg) {
		e := subjects.Errorf(subjects.Trimmed, "transaction 1 is no longer kept")
		e.FirstTxid = 700
		respond(msg, refuse(e))
	})
	status, _, errOut := w.cantus("", "read", "0", "--follow")
	w.expect(status, exitFailed, errOut, "--from 700")
}

func TestAnswersThatAreNone(t *testing.T) {
	w := newWire(t)
	garbage := func(_ int, msg *nats.Msg) { msg.Respond([]byte("garbage")) } // the client's timeout tells
	for _, s := range []string{"cantus.append.0", "cantus.read.0", "cantus.get.0", "cantus.info"} {
		w.answer(s, garbage)
	}
	for _, args := range [][]string{{"append", "0"}, {"read", "0"}, {"get", "0", "1"}, {"status"}} {
		status, out, errOut := w.cantus("x", args...)
		if status != exitFailed || out != "" || errOut == "" {
			t.Errorf("%v: exit status %d, printed %q and %q, want 1 and an error alone", args, status, out, errOut)
		}
	}
}

func TestUserMayNot(t *testing.T) {
	config := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(config, []byte(`authorization { users = [
		{ user: node, password: secret }
		{ user: reader, password: secret, permissions: { publish: { deny: ["cantus.append.>"] } } }
	] }`), 0o600); err != nil {
		t.Fatal(err)
	}
	w := configuredWire(t, config, nats.UserInfo("node", "secret"))
	w.founded(1)
	w.answer("cantus.append.0", func(_ int, msg *nats.Msg) { respond(msg, subjects.Reply{Txid: 1}) })

	for _, login := range [][]string{nil, {"--user", "node", "--password", "wrong"}} {
		status, _, errOut := w.cantus("", append([]string{"status"}, login...)...)
		w.expect(status, exitUsage, errOut, "refuses these credentials")
	}
	status, out, _ := w.cantus("x", "append", "0", "--user", "node", "--password", "secret")
	w.expect(status, exitDone, out, "1 ")
	status, _, errOut := w.cantus("x", "append", "0", "--user", "reader", "--password", "secret")
	w.expect(status, exitUsage, errOut, "does not permit this user")
}

// With --wait the last line says that the node was removed, not that it will
// be.
func TestRemoveSaysThatItIsDone(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.admin.cluster.remove", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.AdminReply{Done: "node n3 is leaving"})
	})
	w.answer("cantus.admin.status", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.ClusterStatus{Nodes: []subjects.NodeStatus{{Name: "n1", State: "member"}}})
	})
	for wait, want := range map[string]string{"0s": "node n3 is leaving\n", "30s": "node n3 is leaving\nnode n3 was removed\n"} {
		args := []string{"cluster", "remove", "n3"}
		if wait != "0s" {
			args = append(args, "--wait", wait)
		}
		if status, out, errOut := w.cantus("", args...); status != 0 || out != want {
			t.Errorf("with --wait %s: status %d, %q, %q", wait, status, out, errOut)
		}
	}
}

// With --wait the other operations say that they are done, too.
func TestOperationsSayThatTheyAreDone(t *testing.T) {
	w := newWire(t)
	for _, subject := range []string{"cantus.admin.cluster.balance", "cantus.admin.cluster.transfer", "cantus.admin.node.n1.rebuild"} {
		w.answer(subject, func(_ int, msg *nats.Msg) { respond(msg, subjects.AdminReply{Done: "it is decided"}) })
	}
	w.answer("cantus.admin.status", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.ClusterStatus{Partitions: []subjects.PartitionStatus{
			{Leader: "n1", Placement: []string{"n1"}, Replicas: []subjects.ReplicaStatus{{Name: "n1", Voter: true}}},
		}})
	})
	for _, line := range []string{"balance", "transfer 0 --to n1", "rebuild 0 --node n1"} {
		args := append([]string{"cluster"}, strings.Fields(line)...)
		if status, out, errOut := w.cantus("", args...); status != 0 || out != "it is decided\n" {
			t.Errorf("%s: status %d, %q, %q", line, status, out, errOut)
		}
		status, out, errOut := w.cantus("", append(args, "--wait", "30s")...)
		if done := regexp.MustCompile(`^it is decided\ndone after [0-9.]+m?s\n$`); status != 0 || !done.MatchString(out) {
			t.Errorf("%s --wait: status %d, %q, %q", line, status, out, errOut)
		}
	}
}

// The status of a node that has not heard of an operation yet does not say
// whether it is done: before a drain every replica is where it should be.
func TestWaitPassesOverAnOlderStatus(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.admin.cluster.drain", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.AdminReply{Done: "node n1 is draining", Facts: 8})
	})
	on := func(node string, facts uint64) subjects.ClusterStatus {
		return subjects.ClusterStatus{Facts: facts, Partitions: []subjects.PartitionStatus{
			{Leader: node, Placement: []string{node}, Replicas: []subjects.ReplicaStatus{{Name: node, Voter: true}}},
		}}
	}
	asked := 0
	w.answer("cantus.admin.status", func(_ int, msg *nats.Msg) {
		asked++
		if asked == 1 {
			respond(msg, on("n1", 7))
			return
		}
		respond(msg, on("n2", 8))
	})
	status, out, _ := w.cantus("", "cluster", "drain", "n1", "--wait", "30s")
	w.expect(status, exitDone, out, "node n1 is drained: it holds no voting replicas")
}

// With --wait an operation is asked for again while there is no leader that
// could decide, and only then.
func TestWaitForADecision(t *testing.T) {
	drain := []string{"cluster", "drain", "n1"}
	for _, c := range []struct {
		args    []string
		refused subjects.Reason
		status  int
		asked   []int // how often may be asked
	}{
		{drain, subjects.Unavailable, exitUnavailable, []int{1}},
		{append(drain, "--wait", "30s"), subjects.Unavailable, exitDone, []int{3}},
		{append(drain, "--wait", "1ms"), subjects.Unavailable, exitUnavailable, []int{1, 2}}, // the first answer may take longer
		{append(drain, "--wait", "30s"), subjects.BadRequest, exitUsage, []int{1}},
	} {
		t.Run(fmt.Sprint(c.args, c.refused), func(t *testing.T) {
			w := newWire(t)
			asked := 0
			w.answer("cantus.admin.cluster.drain", func(_ int, msg *nats.Msg) {
				if asked++; asked < 3 {
					respond(msg, subjects.Reply{Error: subjects.Errorf(c.refused, "not now")})
					return
				}
				respond(msg, subjects.AdminReply{Done: "node n1 is draining", Facts: 1})
			})
			w.answer("cantus.admin.status", func(_ int, msg *nats.Msg) {
				respond(msg, subjects.ClusterStatus{Facts: 1, Partitions: []subjects.PartitionStatus{{
					Leader: "n2", Placement: []string{"n2"}, Replicas: []subjects.ReplicaStatus{{Name: "n2", Voter: true}},
				}}})
			})
			status, out, errOut := w.cantus("", c.args...)
			if said := strings.Count(errOut, "asking again: "); said != min(asked-1, 1) {
				t.Errorf("it said %d times that it asks again:\n%s", said, errOut)
			}
			if status != c.status || !slices.Contains(c.asked, asked) {
				t.Errorf("%v, refused as %s: status %d after %d requests, want %d after %d\n%s%s", c.args, c.refused, status, asked, c.status, c.asked, out, errOut)
			}
		})
	}
}

// A replica may be fetched so fast, or the node that answers have heard so
// little, that the status looks the same before a rebuild and after it: but for
// its number.
func TestWaitForARebuild(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.admin.node.n2.rebuild", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.AdminReply{Done: "it is rebuilt", Rebuilds: 2})
	})
	asked := 0
	w.answer("cantus.admin.status", func(_ int, msg *nats.Msg) {
		answers := []subjects.ReplicaStatus{
			{Name: "n2", Voter: true, Rebuilds: 1},
			{Name: "n2", Voter: true, Rebuilds: 1, Fenced: "an operator has it rebuilt"},
			{Name: "n2", State: "away"},
			{Name: "n2", Rebuilds: 2},
			{Name: "n2", Voter: true, Rebuilds: 2},
		}
		r := answers[min(asked, len(answers)-1)]
		asked++
		respond(msg, subjects.ClusterStatus{Partitions: []subjects.PartitionStatus{{Leader: "n2", Placement: []string{"n2"}, Replicas: []subjects.ReplicaStatus{r}}}})
	})
	status, out, _ := w.cantus("", "cluster", "rebuild", "0", "--node", "n2", "--wait", "30s")
	w.expect(status, exitDone, out, "it is rebuilt")
	if asked != 5 {
		t.Errorf("the status was requested %d times, want 5", asked)
	}
}

// A drain that leaves replicas on the node is not done: a script that stops the
// node next has to know.
func TestDrainFailsIfReplicasStay(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.admin.cluster.drain", func(_ int, msg *nats.Msg) {
		respond(msg, subjects.AdminReply{Done: "node n1 is draining"})
	})
	here := []subjects.ReplicaStatus{{Name: "n1", Voter: true}}
	s := subjects.ClusterStatus{Partitions: []subjects.PartitionStatus{{Leader: "n1", Placement: []string{"n1"}, Replicas: here}}}
	w.answer("cantus.admin.status", func(_ int, msg *nats.Msg) { respond(msg, s) })
	status, _, errOut := w.cantus("", "cluster", "drain", "n1", "--wait", "30s")
	w.expect(status, exitFailed, errOut, "node n1 is not empty: it keeps 1 replica that no other node can take")

	s.Partitions[0].Placement = []string{"n2"}
	status, _, errOut = w.cantus("", "cluster", "drain", "n1", "--wait", "1ms")
	w.expect(status, exitUnavailable, errOut, "node n1 still has 1 replica to move")

	s.Partitions[0].Leader, s.Partitions[0].Replicas = "n2", []subjects.ReplicaStatus{{Name: "n2", Voter: true}}
	status, out, _ := w.cantus("", "cluster", "drain", "n1", "--wait", "30s")
	w.expect(status, exitDone, out, "node n1 is drained: it holds no voting replicas")
}

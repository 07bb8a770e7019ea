package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// patience is how long a test waits for an event.
const patience = testkit.Patience

func openGated(t *testing.T, dir string, opts Options) (*Node, *nats.Conn, *journaltest.Gate) {
	t.Helper()
	fs := journaltest.NewGate()
	opts.store.FS = fs
	n, nc := openOne(t, dir, opts)
	return n, nc, fs
}

func openOne(t *testing.T, dir string, opts Options) (*Node, *nats.Conn) {
	t.Helper()
	opts.Partitions = 1
	n, err := Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return n, nc
}

// inbox sends appends and collects their replies in the order in which they
// were sent. A transaction is identified by its payload.
type inbox struct {
	t   *testing.T
	nc  *nats.Conn
	sub map[string]*nats.Subscription
}

func newInbox(t *testing.T, nc *nats.Conn) *inbox {
	return &inbox{t, nc, map[string]*nats.Subscription{}}
}

func (i *inbox) send(payload string, headers ...string) {
	i.t.Helper()
	m := nats.NewMsg("cantus.append.0")
	m.Data, m.Reply = []byte(payload), i.nc.NewRespInbox()
	for h := 0; h < len(headers); h += 2 {
		m.Header.Add(headers[h], headers[h+1])
	}
	sub, err := i.nc.SubscribeSync(m.Reply)
	if err == nil {
		err = i.nc.PublishMsg(m)
	}
	if err == nil {
		err = i.nc.Flush()
	}
	if err != nil {
		i.t.Fatal(err)
	}
	i.sub[payload] = sub
}

func (i *inbox) reply(payload string) (r subjects.Reply) {
	i.t.Helper()
	m, err := i.sub[payload].NextMsg(patience)
	if err == nil {
		err = json.Unmarshal(m.Data, &r)
	}
	if err != nil {
		i.t.Fatalf("reply to %s: %v", payload, err)
	}
	return r
}

func (i *inbox) unanswered(payload string) {
	i.t.Helper()
	if n, _, _ := i.sub[payload].Pending(); n != 0 {
		m, _ := i.sub[payload].NextMsg(patience)
		i.t.Fatalf("%s was answered too early: %s", payload, m.Data)
	}
}

const (
	write    = subjects.HeaderWriteLock
	mark     = subjects.HeaderHighWaterMark
	idHeader = subjects.HeaderMsgID
)

// A refusal that depends on a transaction in flight is sent when that has
// committed.
func TestRefusalsWaitForWhatTheyDependOn(t *testing.T) {
	_, nc, fs := openGated(t, t.TempDir(), Options{})
	i := newInbox(t, nc)
	i.send("before", write, "old", mark, "0")
	if r := i.reply("before"); r.Txid != 1 {
		t.Fatalf("%+v", r)
	}
	held, open := fs.Hold()
	i.send("first", write, "a", mark, "1", idHeader, "m")
	<-held
	i.send("conflict", write, "a", mark, "1")
	i.send("first again", write, "a", mark, "1", idHeader, "m") // another payload
	i.send("wrong", subjects.HeaderExpectedLast, "1")
	i.send("malformed", write, "b")
	// A refusal that depends on nothing in flight waits only for its turn.
	for _, payload := range []string{"first", "conflict", "first again", "wrong"} {
		i.unanswered(payload)
	}
	open(nil)
	if r := i.reply("first"); r.Txid != 2 {
		t.Errorf("first: %+v", r)
	}
	for payload, want := range map[string]subjects.Reason{
		"conflict": subjects.Conflict, "first again": subjects.IDReused, "wrong": subjects.WrongLast, "malformed": subjects.BadRequest,
	} {
		if r := i.reply(payload); r.Error == nil || r.Error.Reason != want || r.HighWaterMark == nil || *r.HighWaterMark < 2 {
			t.Errorf("%s: %+v, mark %v", payload, r.Error, r.HighWaterMark)
		}
	}
}

// When storage fails, no client gets a success that the log does not hold, or a
// refusal that depends on a transaction that was lost.
func TestStorageFails(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	n, nc, fs := openGated(t, dir, Options{})
	advisories, err := nc.SubscribeSync("cantus.advisory.failed")
	if err != nil {
		t.Fatal(err)
	}
	i := newInbox(t, nc)
	i.send("kept", write, "a", mark, "0")
	if r := i.reply("kept"); r.Txid != 1 {
		t.Fatalf("%+v", r)
	}
	held, open := fs.Hold()
	i.send("in flight", write, "a", mark, "1", idHeader, "m")
	<-held
	i.send("refused on it", write, "a", mark, "1")
	i.send("firm", write, "a", mark, "0")
	i.send("behind it")
	broken := errors.New("the disk is gone")
	open(broken)
	if r := i.reply("in flight"); r.Error == nil || r.Error.Reason != subjects.Unknown {
		t.Errorf("in flight: %+v", r)
	}
	for _, payload := range []string{"refused on it", "behind it", "firm"} {
		r := i.reply(payload)
		if r.Error == nil || r.Error.Reason != subjects.Unavailable && r.Error.Reason != subjects.Unknown {
			t.Errorf("%s: %+v", payload, r)
		}
	}
	<-n.Done()
	if !errors.Is(n.Err(), wal.ErrFailed) || !errors.Is(n.Err(), broken) {
		t.Errorf("the node says %v", n.Err())
	}
	if m, err := advisories.NextMsg(patience); err != nil || !bytes.Contains(m.Data, []byte(broken.Error())) {
		t.Errorf("advisory %v, %v", m, err)
	}
	if n.Ready() {
		t.Error("it is ready")
	}
	_ = n.Close() // whether the broken disk closes well is not the question
	if err := n.Close(); n.Err() == nil {
		t.Errorf("closed again: %v, and the node has forgotten why it stopped", err)
	}
	nc.Close()

	n, nc = openOne(t, dir, Options{})
	i = newInbox(t, nc)
	// Nobody knew whether it was written before the failure; the id tells.
	i.send("in flight", write, "a", mark, "1", idHeader, "m")
	if r := i.reply("in flight"); r.Txid != 2 {
		t.Errorf("sent again: %+v", r)
	}
	i.send("last")
	if r := i.reply("last"); r.Txid != 3 {
		t.Errorf("what was rejected is in the log: %+v", r)
	}
	nc.Close()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// Every acknowledged append is in the log, under a load that meets the failure
// anywhere.
func TestStorageFailsUnderLoad(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	n, nc, fs := openGated(t, dir, Options{})
	acked := make([]map[uint64]string, 8)
	var clients sync.WaitGroup
	var total atomic.Int64
	for c := range acked {
		acked[c] = map[uint64]string{}
		clients.Go(func() {
			for k := 0; ; k++ {
				payload := fmt.Sprintf("%d-%d", c, k)
				m, err := nc.Request("cantus.append.0", []byte(payload), patience)
				var r subjects.Reply
				if err == nil {
					err = json.Unmarshal(m.Data, &r)
				}
				if err != nil || r.Error != nil {
					return // no responders, or refused
				}
				acked[c][r.Txid] = payload
				if total.Add(1) == 300 {
					_, open := fs.Hold()
					open(errors.New("the disk is gone"))
				}
			}
		})
	}
	clients.Wait()
	<-n.Done()
	_ = n.Close()
	nc.Close()

	n, nc = openOne(t, dir, Options{})
	for c := range acked {
		for txid, payload := range acked[c] {
			m, err := nc.Request("cantus.get.0", fmt.Appendf(nil, `{"txid":%d}`, txid), patience)
			if err != nil || string(m.Data) != payload {
				t.Fatalf("txid %d was acknowledged as %q, and is %q, %v", txid, payload, m.Data, err)
			}
		}
	}
	nc.Close()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := wal.Verify(dir, func(r wal.PartitionReport) {
		if r.Err != nil || r.LastTxid < uint64(total.Load()) {
			t.Errorf("verify: %+v", r)
		}
	}); err != nil {
		t.Error(err)
	}
}

// A full queue refuses new requests, and keeps those that it has.
func TestBusy(t *testing.T) {
	n, nc, fs := openGated(t, t.TempDir(), Options{QueueBytes: 1 << 16})
	i := newInbox(t, nc)
	held, open := fs.Hold()
	i.send("first")
	<-held
	const sent = 200
	payload := strings.Repeat("x", 2000)
	for k := range sent {
		i.send(fmt.Sprint(k, payload))
	}
	if waiting, _ := n.replicas.get(0).current().queue.waiting(); waiting == 0 {
		t.Error("nothing waits")
	}
	open(nil)
	accepted, busy := map[uint64]bool{}, 0
	for k := range sent {
		r := i.reply(fmt.Sprint(k, payload))
		switch {
		case r.Error == nil:
			accepted[r.Txid] = true
		case r.Error.Reason == subjects.Busy && r.Error.Code == 429:
			busy++
		default:
			t.Fatalf("reply %+v", r.Error)
		}
	}
	// At most three batches of the first requests were in flight.
	if busy == 0 || len(accepted) == 0 || len(accepted)+busy != sent {
		t.Fatalf("%d accepted, %d busy", len(accepted), busy)
	}
	if at := n.replicas.get(0).current().state.position().mark; at != uint64(len(accepted)+1) {
		t.Fatalf("%d were accepted, and the log ends at %d", len(accepted), at)
	}
	i.send("afterwards")
	if r := i.reply("afterwards"); r.Error != nil {
		t.Fatalf("the queue stays full: %v", r.Error)
	}
}

func TestStorageFull(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	opts := Options{MinFreeBytes: 1 << 30, freeSpace: func(string) (int64, error) { return free.Load(), nil }}
	dir := t.TempDir()
	n, nc := openOne(t, dir, opts)
	advisories, err := nc.SubscribeSync("cantus.advisory.storage")
	if err != nil {
		t.Fatal(err)
	}
	i := newInbox(t, nc)
	i.send("before", idHeader, "m")
	if r := i.reply("before"); r.Txid != 1 {
		t.Fatalf("%+v", r)
	}
	turn := func(to int64, full bool) {
		t.Helper()
		free.Store(to)
		m, err := advisories.NextMsg(patience) // the node looks by itself
		if err != nil {
			t.Fatal(err)
		}
		var a struct {
			Full          bool
			Free, Reserve int64
		}
		if err := json.Unmarshal(m.Data, &a); err != nil || a.Full != full || !bytes.Contains(m.Data, fmt.Appendf(nil, `"free_bytes":%d`, to)) {
			t.Fatalf("advisory %s", m.Data)
		}
	}
	turn(1<<30-1, true)
	i.send("refused", write, "a", mark, "1")
	if r := i.reply("refused"); r.Error == nil || r.Error.Reason != subjects.StorageFull || r.Error.Code != 507 {
		t.Fatalf("%+v", r)
	}
	if m, err := nc.Request("cantus.cursor.0.c", []byte(`{"txid":1}`), patience); err != nil || !bytes.Contains(m.Data, []byte(`"code":507`)) {
		t.Errorf("a cursor write: %s, %v", m.Data, err)
	}
	if m, err := nc.Request("cantus.cursor.0.c", nil, patience); err != nil || bytes.Contains(m.Data, []byte(`"error"`)) {
		t.Errorf("a cursor read: %s, %v", m.Data, err)
	}
	if m, err := nc.Request("cantus.get.0", []byte(`{"txid":1}`), patience); err != nil || string(m.Data) != "before" {
		t.Errorf("a read: %s, %v", m.Data, err)
	}
	i.send("before", idHeader, "m") // a repeat of what was done is answered
	if r := i.reply("before"); r.Txid != 1 || !r.Duplicate {
		t.Errorf("a repeat: %+v", r)
	}
	turn(1<<30, false)
	i.send("after", write, "a", mark, "1")
	if r := i.reply("after"); r.Txid != 2 {
		t.Fatalf("%+v, %v", r, r.Error)
	}
	_ = n
}

// A disk that is full although its reserve was not used: nothing is lost,
// nothing is done, and the node continues when there is space.
func TestTheDiskIsFullAllTheSame(t *testing.T) {
	fs := journaltest.NewGate()
	opts := Options{store: wal.Options{FS: fs, SegmentSize: 1 << 20}}
	dir := t.TempDir()
	n, nc := openOne(t, dir, opts)
	payload := bytes.Repeat([]byte("x"), 100_000)
	fs.Fill(true)
	appended := uint64(0)
	testkit.Until(t, "the disk is full", func() bool {
		m, err := nc.Request("cantus.append.0", payload, patience)
		if errors.Is(err, nats.ErrNoResponders) {
			return false // between two tenures
		}
		var r subjects.Reply
		if err == nil {
			err = json.Unmarshal(m.Data, &r)
		}
		switch {
		case err != nil:
			t.Fatal(err)
		case r.Error == nil:
			appended = r.Txid
		case r.Error.Reason == subjects.StorageFull:
			return true
		case r.Error.Reason != subjects.Unavailable:
			t.Fatalf("%+v", r.Error)
		}
		if appended > 100 {
			t.Fatal("the disk does not fill")
		}
		return false
	})
	fs.Fill(false)
	testkit.Until(t, "there is room again", func() bool {
		m, err := nc.Request("cantus.append.0", []byte("after"), patience)
		if errors.Is(err, nats.ErrNoResponders) {
			return false
		}
		var r subjects.Reply
		if err == nil {
			err = json.Unmarshal(m.Data, &r)
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.Error == nil {
			if r.Txid != appended+1 {
				t.Fatalf("txid %d after %d", r.Txid, appended)
			}
			return true
		}
		if r.Error.Reason != subjects.Unavailable && r.Error.Reason != subjects.StorageFull {
			t.Fatalf("%+v", r.Error)
		}
		return false
	})
	if n.Err() != nil {
		t.Fatal(n.Err())
	}
}

// Without a leader nobody subscribes, and NATS says so at once, also for
// appends by key.
func TestNoLeaderNoResponders(t *testing.T) {
	n, nc := openOne(t, t.TempDir(), Options{})
	r := n.replicas.get(0).current()
	if err := r.group.Close(); err != nil { // the replica is gone, the node is not
		t.Fatal(err)
	}
	for _, subject := range []string{"cantus.append.0", "cantus.append.key.k", "cantus.batch.0", "cantus.read.0", "cantus.get.0", "cantus.info.0", "cantus.cursor.0.c"} {
		testkit.Until(t, "nobody subscribes to "+subject, func() bool {
			m, err := nc.Request(subject, nil, patience)
			if errors.Is(err, nats.ErrNoResponders) {
				return true
			}
			if err != nil {
				t.Fatalf("%s: %v", subject, err)
			}
			// The tenure has not ended yet.
			if code := m.Header.Get(subjects.HeaderErrorCode); subject == "cantus.append.0" && code != "503" {
				t.Fatalf("%s: %s", subject, m.Data)
			}
			return false
		})
	}
	if n.Ready() {
		t.Error("a node whose partition has no leader is ready")
	}
}

// A batch that is committed out of turn is void: its transactions were not
// done.
func TestAVoidBatchIsUnavailable(t *testing.T) {
	n, nc, fs := openGated(t, t.TempDir(), Options{})
	p := n.replicas.get(0).current()
	held, open := fs.Hold()
	var w wal.BatchWriter
	w.Begin(wal.Transactions, 1, 1, 0)
	w.Add(&wal.Transaction{Kind: []byte("tx"), Payload: []byte("between")})
	between := p.group.Propose(w.Finish()) // as if another leader had been there
	<-held
	i := newInbox(t, nc)
	i.send("void", idHeader, "m")
	testkit.Until(t, "it is certified", func() bool { return p.state.certifier.stats().InFlight > 0 })
	open(nil)
	if result, err := between.Wait(); err != nil || result.(applied).void {
		t.Fatalf("%+v, %v", result, err)
	}
	r := i.reply("void")
	if r.Error == nil || r.Error.Reason != subjects.Unavailable {
		t.Fatalf("%+v", r)
	}
	testkit.Until(t, "it appends again", func() bool {
		m, err := nc.Request("cantus.append.0", []byte("again"), patience)
		if errors.Is(err, nats.ErrNoResponders) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(m.Data, &r); err != nil || r.Error != nil && r.Error.Reason != subjects.Unavailable {
			t.Fatalf("%s", m.Data)
		}
		return r.Txid == 2
	})
}

func TestWireErrors(t *testing.T) {
	for _, w := range wireErrors {
		if got := wireError(fmt.Errorf("wrapped: %w", w.err)); got.Reason != w.reason || got.Code != w.reason.Code() || got.Message != w.text {
			t.Errorf("%v: %v", w.err, got)
		}
	}
	if got := wireError(errors.New("a secret")); got.Reason != subjects.Internal || strings.Contains(got.Message, "secret") {
		t.Errorf("what is not in the table: %v", got)
	}
	both := fmt.Errorf("%w: %w", raftstore.ErrUnknown, wal.ErrFailed)
	if got := wireError(both); got.Reason != subjects.Unknown {
		t.Errorf("an entry that the store failed on: %v, and it may be there", got)
	}
	s := &requestServer{partition: 3}
	if got := s.wireError(context.Canceled); got.Reason != subjects.Unavailable {
		t.Errorf("a read that ended with its tenure: %v", got)
	}
}

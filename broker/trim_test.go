package broker_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

func trim(t *testing.T, nc *nats.Conn, body string) (r subjects.TrimReply) {
	t.Helper()
	m := ask(t, nc, subjects.Names{}.Admin("trim", "0"), body)
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error != nil {
		t.Fatalf("trim %s: %s", body, m.Data)
	}
	return r
}

// wantDuplicate sends a transaction again.
func wantDuplicate(t *testing.T, nc *nats.Conn, payload, id string, txid uint64) {
	t.Helper()
	if r := appendTx(t, nc, "cantus.append.0", payload, msgID, id); r.Txid != txid || !r.Duplicate {
		t.Fatalf("%s, sent again, is %+v, not the duplicate of %d", id, r, txid)
	}
}

// A trim ends at the last end of a batch before the transaction that is to be
// kept, wherever the trim points are, and says so if that is not just before
// it.
func TestATrimEndsAtABatch(t *testing.T) {
	for _, every := range []uint64{7, 1 << 16} {
		t.Run(fmt.Sprint("a trim point every ", every), func(t *testing.T) {
			opts := broker.Options{Partitions: 1}
			broker.PointEvery(&opts, every)
			dir := t.TempDir()
			n, nc := openNode(t, dir, opts)
			first := map[uint64]uint64{} // of the batch that holds a txid
			for next := uint64(1); len(first) < 90; {
				size := uint64(1 + len(first)%4)
				fillTo(t, nc, next+size-1)
				for i := range size {
					first[next+i] = next
				}
				next += size
				ask(t, nc, "cantus.cursor.0.c", fmt.Sprintf(`{"txid":%d}`, next-1))
			}
			digests := map[uint64]string{} // before the batch that begins with a txid
			all := stream(t, nc, `{"from":1}`).batches
			for i, b := range all {
				digests[b.First] = digestOf(t, strings.Repeat("0", 64), 0, all[:i])
			}
			for before := uint64(1); before <= uint64(len(first)); before += 3 {
				r := trim(t, nc, fmt.Sprintf(`{"before":%d}`, before))
				if r.FirstTxid != first[before] || (r.Because == "") != (first[before] == before) {
					t.Fatalf("before %d: %+v, want from %d on", before, r, first[before])
				}
				if i := info(t, nc, 0); i.FirstTxid != r.FirstTxid || i.BaseDigest != digests[r.FirstTxid] {
					t.Fatalf("before %d: the log begins with %d, digest %s, want %s", before, i.FirstTxid, i.BaseDigest, digests[r.FirstTxid])
				}
				eventually(t, "the log is trimmed", func() bool { return broker.FirstEntryTxid(n, 0) == r.FirstTxid })
				if before%5 == 0 {
					points := broker.TrimPoints(n, 0)
					if n, nc = reopen(t, n, dir, opts); broker.TrimPoints(n, 0) != points {
						t.Fatalf("after a restart:\n got %s\nwant %s", broker.TrimPoints(n, 0), points)
					}
				}
			}
		})
	}
}

// Trimmed transactions are not in a restarted node's log: it could not know the
// id.
func TestATrimKeepsMessageIDsThroughARestart(t *testing.T) {
	testkit.NotShort(t, "it appends, trims and restarts again and again")
	opts := broker.Options{Partitions: 1}
	broker.PointEvery(&opts, 16)
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	appendTx(t, nc, "cantus.append.0", "before")
	fillTo(t, nc, 100)
	first := appendTx(t, nc, "cantus.append.0", "x", msgID, "k1").Txid
	fillTo(t, nc, 1000)
	r := trim(t, nc, `{"before":900}`)
	if r.FirstTxid != first || !strings.Contains(r.Because, fmt.Sprintf("transaction %d ", first)) {
		t.Fatalf("the id of %d counts, and the trim says %+v", first, r)
	}
	wantDuplicate(t, nc, "x", "k1", first)
	eventually(t, "the log is trimmed", func() bool { return broker.Trimmed(n, 0) })
	killed := t.TempDir()
	copyDir(t, dir, killed)
	_, other := openNode(t, killed, opts)
	wantDuplicate(t, other, "x", "k1", first)
	_, nc = reopen(t, n, dir, opts)
	wantDuplicate(t, nc, "x", "k1", first)
}

// An id that no longer counts keeps no transaction, even if nothing is appended
// after it: the trim itself moves the partition's time on.
func TestATrimGoesPastIDsThatDoNotCount(t *testing.T) {
	testkit.NotShort(t, "it appends, trims and restarts again and again")
	opts := broker.Options{Partitions: 1, MsgIDWindow: time.Second}
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	appendTx(t, nc, "cantus.append.0", "x", msgID, "k1")
	var r subjects.TrimReply
	eventually(t, "the trim takes all", func() bool {
		r = trim(t, nc, `{"before":2}`)
		return r.FirstTxid == 2
	})
	if r.Because != "" {
		t.Errorf("all is trimmed, and still: %s", r.Because)
	}
	for range 2 {
		if s := broker.Tables(n, 0); len(s.IDs) != 0 || s.Committed != 1 || s.Floor != 1 {
			t.Fatalf("%+v", s)
		}
		n, nc = reopen(t, n, dir, opts)
	}
	if r := appendTx(t, nc, "cantus.append.0", "x", msgID, "k1"); r.Duplicate || r.Txid != 2 {
		t.Errorf("after its time the id is free, and %+v", r)
	}
}

// fillTo appends transactions without ids up to a txid, many at once.
func fillTo(t *testing.T, nc *nats.Conn, txid uint64) {
	t.Helper()
	for at := info(t, nc, 0).HighWaterMark; at < txid; {
		var frame []byte
		count := min(50, txid-at)
		for range count {
			frame = append(frame, item("filler")...)
		}
		if m := askServed(t, nc, "cantus.batch.0", string(frame)); !strings.Contains(string(m.Data), fmt.Sprintf(`"high_water_mark":%d}`, at+count)) {
			t.Fatalf("batch: %s", m.Data)
		}
		at += count
	}
}

// A replica that is rebuilt from what is kept refuses the same ids when it
// leads.
func TestARebuiltReplicaKnowsTheIDsAfterATrim(t *testing.T) {
	opts := broker.Options{Partitions: 1}
	broker.PointEvery(&opts, 16)
	c := openNodes(t, 3, opts)
	c.awaitPlaced("n1")
	nc := c.conn("n3")
	first := keep(t, nc, 0, "x", "k1")
	// Trims beside appends: a batch may be certified before a trim is proposed,
	// and follow it in the log.
	filled := make(chan struct{})
	go func() {
		defer close(filled)
		for range 200 {
			_ = nc.PublishMsg(message("cantus.append.0", "filler"))
			_ = nc.Flush()
		}
	}()
	for done := false; !done; {
		select {
		case <-filled:
			done = true
		default:
			trim(t, nc, fmt.Sprintf(`{"before":%d}`, first))
		}
	}
	eventually(t, "all is appended", func() bool { return info(t, nc, 0).HighWaterMark == first+200 })
	fillTo(t, nc, 1000)
	trim(t, nc, `{"before":900}`)
	for _, name := range c.names {
		eventually(t, name+" has trimmed its log", func() bool { return broker.Trimmed(c.node(name), 0) })
	}
	old := broker.Replica(c.node("n2"), 0)
	c.operate("n3", subjects.AdminRequest{Partition: new(int)}, "node", "n2", "rebuild")
	eventually(t, "n2 is rebuilt", func() bool {
		now := broker.Replica(c.node("n2"), 0)
		return now != nil && now != old && c.node("n2").Ready()
	})
	c.awaitPlaced("n1")
	wantSameTables(t, c, "n1", "n2", "n3")
	c.operate("n3", subjects.AdminRequest{Partition: new(int), To: "n2"}, "cluster", "transfer")
	eventually(t, "n2 leads", func() bool { return c.leader(0, "n3") == "n2" })
	if txid := keep(t, nc, 0, "x", "k1"); txid != first {
		t.Errorf("k1 is appended again, as %d", txid)
	}
}

func wantSameTables(t *testing.T, c *nodes, names ...string) {
	t.Helper()
	c.checkSame(0, names...)
	leader := c.node(names[0])
	for _, name := range names[1:] {
		eventually(t, name+" remembers the same as "+names[0], func() bool {
			got, want := broker.Tables(c.node(name), 0), broker.Tables(leader, 0)
			return got.Equal(want, true) && broker.TrimPoints(c.node(name), 0) == broker.TrimPoints(leader, 0)
		})
	}
}

// trimmed is a random history of one partition, with trims, and the oracle of
// what is remembered of it.
type trimmed struct {
	t     *testing.T
	r     *rand.Rand
	opts  broker.Options
	n     *broker.Node
	nc    *nats.Conn
	dir   string
	locks [][]string // of transaction i+1
	ids   []string
	times []int64
	first uint64
	lots  bool // ids are used
}

// A node that goes on after a trim, one that is killed and one that is stopped
// all remember the same locks and ids, and have the same floor.
func TestTablesAfterATrim(t *testing.T) {
	testkit.NotShort(t, "nodes restart many times")
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			h := &trimmed{t: t, r: rand.New(rand.NewPCG(seed, 11)), dir: t.TempDir(), first: 1, lots: seed%2 == 0}
			h.opts = broker.Options{Partitions: 1, MaxLocks: 5 + h.r.IntN(25), MsgIDWindow: time.Hour}
			if h.lots {
				h.opts = broker.Options{Partitions: 1, MaxMsgIDs: 3 + h.r.IntN(40), MsgIDWindow: time.Second}
			}
			broker.PointEvery(&h.opts, 8)
			h.n, h.nc = openNode(t, h.dir, h.opts)
			for range 6 {
				h.round()
			}
		})
	}
}

func (h *trimmed) round() {
	for range 1 + h.r.IntN(12) {
		h.append()
	}
	for range h.r.IntN(4) {
		ask(h.t, h.nc, "cantus.cursor.0.c", fmt.Sprintf(`{"txid":%d}`, 1+h.r.IntN(len(h.locks))))
	}
	if h.r.IntN(3) > 0 {
		asked := uint64(1 + h.r.IntN(len(h.locks)+1))
		r := trim(h.t, h.nc, fmt.Sprintf(`{"before":%d}`, asked))
		if r.FirstTxid < h.first || r.FirstTxid > max(asked, h.first) || r.Because == "" && r.FirstTxid != max(asked, h.first) {
			h.t.Fatalf("from %d on is kept, %d was asked for, and %+v is the answer", h.first, asked, r)
		}
		h.first = r.FirstTxid
	}
	if h.r.IntN(3) == 0 {
		h.append() // behind the trim
	}
	eventually(h.t, "the log is trimmed", func() bool { return broker.Trimmed(h.n, 0) })
	want, points := broker.Tables(h.n, 0), broker.TrimPoints(h.n, 0)
	h.check("running", want)
	if h.r.IntN(2) == 0 {
		killed := h.t.TempDir()
		copyDir(h.t, h.dir, killed)
		h.stop()
		h.dir = killed
	} else {
		h.stop()
		h.verify()
	}
	h.n, h.nc = openNode(h.t, h.dir, h.opts)
	if got := broker.Tables(h.n, 0); !got.Equal(want, true) {
		h.t.Fatalf("after a restart:\n got %+v\nwant %+v", got, want)
	}
	if got := broker.TrimPoints(h.n, 0); got != points {
		h.t.Fatalf("after a restart:\n got %s\nwant %s", got, points)
	}
}

func (h *trimmed) stop() {
	h.t.Helper()
	h.nc.Close()
	if err := h.n.Close(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *trimmed) verify() {
	h.t.Helper()
	if err := wal.Verify(h.dir, func(p wal.PartitionReport) {
		if p.Err != nil || p.FirstTxid != h.first || p.LastTxid != uint64(len(h.locks)) {
			h.t.Errorf("verify: %+v, from %d on is kept", p, h.first)
		}
	}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *trimmed) append() {
	var recorded, headers []string
	for range h.r.IntN(4) {
		l := fmt.Sprintf("g%d.%d", h.r.IntN(3), h.r.IntN(15))
		recorded, headers = append(recorded, l), append(headers, appendLock, l)
	}
	id := ""
	if h.lots && h.r.IntN(2) == 0 {
		id = fmt.Sprint("id-", len(h.ids))
		headers = append(headers, msgID, id)
	}
	r := appendTx(h.t, h.nc, "cantus.append.0", "x", headers...)
	if r.Error != nil || r.Duplicate {
		h.t.Fatalf("%+v", r)
	}
	h.locks, h.ids, h.times = append(h.locks, recorded), append(h.ids, id), append(h.times, r.Time.UnixNano())
}

// check computes what must be remembered from the whole history.
func (h *trimmed) check(what string, got lockmgr.State) {
	h.t.Helper()
	var known []lockmgr.TrackedLock
	floor, capacity := h.first-1, h.opts.MaxLocks
	if capacity == 0 {
		capacity = 1_000_000
	}
	for txid := uint64(len(h.locks)); txid >= h.first && floor < h.first; txid-- {
		for _, name := range slices.Backward(h.locks[txid-1]) {
			if slices.ContainsFunc(known, func(l lockmgr.TrackedLock) bool { return l.Name == name }) {
				continue
			}
			if len(known) == capacity {
				floor = txid
				break
			}
			known = append(known, lockmgr.TrackedLock{Name: name, Txid: txid})
		}
	}
	if got.Floor != floor || !slices.Equal(got.Locks, known) {
		h.t.Fatalf("%s, from %d on kept:\n got floor %d, %v\nwant floor %d, %v", what, h.first, got.Floor, got.Locks, floor, known)
	}
	var ids []uint64
	for txid := uint64(len(h.ids)); txid >= h.first && (h.opts.MaxMsgIDs == 0 || len(ids) < h.opts.MaxMsgIDs); txid-- {
		if h.ids[txid-1] != "" && h.times[txid-1] >= got.Time-int64(h.opts.MsgIDWindow) {
			ids = append(ids, txid)
		}
	}
	var have []uint64
	for _, id := range got.IDs {
		have = append(have, id.Txid)
	}
	if !reflect.DeepEqual(have, ids) {
		h.t.Fatalf("%s, from %d on kept: the ids of %v are remembered, not of %v", what, h.first, have, ids)
	}
}

// A node may be killed before each step of a trim: the snapshot is written
// first, then entries are deleted.
func TestKilledDuringATrim(t *testing.T) {
	testkit.NotShort(t, "nodes restart many times")
	for _, at := range []string{"snapshot", "trim"} {
		t.Run("before the "+at, func(t *testing.T) {
			opts := broker.Options{Partitions: 1}
			broker.PointEvery(&opts, 8)
			reached, goOn := make(chan struct{}), make(chan struct{})
			held := opts
			var once sync.Once
			broker.Trimming(&held, func(step string) {
				if step == at {
					once.Do(func() { close(reached) })
					<-goOn
				}
			})
			dir := t.TempDir()
			n, nc := openNode(t, dir, held)
			for i := range 40 {
				appendTx(t, nc, "cantus.append.0", "x", appendLock, fmt.Sprint("l.", i%7))
			}
			r := trim(t, nc, `{"before":30}`)
			<-reached
			killed := t.TempDir()
			copyDir(t, dir, killed)
			close(goOn)
			want := broker.Tables(n, 0)
			if r.FirstTxid != 30 || want.Floor != r.FirstTxid-1 {
				t.Fatalf("the trim says %+v, and the floor is %d", r, want.Floor)
			}
			n, _ = openNode(t, killed, opts)
			if got := broker.Tables(n, 0); !got.Equal(want, true) {
				t.Fatalf("after the kill:\n got %+v\nwant %+v", got, want)
			}
			eventually(t, "the log is trimmed", func() bool { return broker.FirstEntryTxid(n, 0) == r.FirstTxid })
		})
	}
}

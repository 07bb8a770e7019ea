package broker_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// backup is what a backup of a partition holds.
type backup struct {
	cluster string
	info    subjects.PartitionInfo
	batches [][]byte
	cursors []subjects.RestoredCursor
}

// newBackup fills a node's only partition, and backs it up.
func newBackup(t *testing.T, transactions int) (b backup, nc *nats.Conn) {
	t.Helper()
	n, nc := one(t, broker.Options{Name: "original"})
	for i := range transactions {
		appendTx(t, nc, "cantus.append.0", fmt.Sprint("payload ", i), msgID, fmt.Sprint("id", i), subjects.HeaderAppendLock, fmt.Sprint("lock.", i%5))
	}
	for i, name := range []string{"billing", "search"} {
		var c subjects.CursorReply
		body := fmt.Sprintf(`{"txid":%d}`, i+1)
		if m := ask(t, nc, "cantus.cursor.0."+name, body); json.Unmarshal(m.Data, &c) != nil || c.Error != nil {
			t.Fatalf("cursor: %s", m.Data)
		}
		b.cursors = append(b.cursors, subjects.RestoredCursor{Name: name, Txid: c.Txid, Time: c.Time})
	}
	var err error
	if b.batches, err = broker.Batches(n, 0); err != nil {
		t.Fatal(err)
	}
	b.cluster, b.info = broker.ClusterID(n), info(t, nc, 0)
	return b, nc
}

func (b *backup) begin() []byte {
	return encode(subjects.RestoreRequest{Begin: &subjects.RestoreBegin{Cluster: b.cluster}})
}

func (b *backup) end() []byte {
	last := b.info.HighWaterMark
	return encode(subjects.RestoreRequest{End: &subjects.RestoreEnd{
		Txid: last, Digest: b.info.Digest, History: []subjects.PastCluster{{Cluster: b.cluster, LastTxid: last}},
	}})
}

func (b *backup) restoreCursors() []byte {
	return encode(subjects.RestoreRequest{Cursors: b.cursors})
}

// stream returns the batches behind a txid as they are sent.
func (b *backup) stream(after uint64) (stream []byte) {
	for _, data := range b.batches {
		if batch, err := wal.ParseBatch(data); err == nil && batch.First > after {
			stream = append(binary.AppendUvarint(stream, uint64(len(data))), data...)
		}
	}
	return stream
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

const restoreSubject = "cantus.admin.restore.0"

// piece is a message with a piece of a log.
func piece(previous uint64, offset int, data []byte) *nats.Msg {
	return message(restoreSubject, string(data), subjects.HeaderPrevious, fmt.Sprint(previous), subjects.HeaderOffset, fmt.Sprint(offset))
}

func step(body []byte) *nats.Msg { return message(restoreSubject, string(body)) }

// restored sends a step, and returns the answer, which is not a refusal.
func restored(t *testing.T, nc *nats.Conn, m *nats.Msg) (r subjects.RestoreReply) {
	t.Helper()
	answer, err := nc.RequestMsg(m, patience)
	if err != nil {
		t.Fatal(err)
	}
	if json.Unmarshal(answer.Data, &r) != nil || r.Error != nil {
		t.Fatalf("%.200s: %s", m.Data, answer.Data)
	}
	return r
}

// wantStepRefused sends a step that is refused, for a reason that its message
// names.
func wantStepRefused(t *testing.T, nc *nats.Conn, m *nats.Msg, reason subjects.Reason, because string) {
	t.Helper()
	answer, err := nc.RequestMsg(m, patience)
	if err != nil {
		t.Fatal(err)
	}
	if e := wantRefusal(t, answer, reason); !strings.Contains(e.Message, because) {
		t.Errorf("refused because %q, and not because %q", e.Message, because)
	}
}

// checkRestored checks that a partition is the one that was backed up.
func (b *backup) checkRestored(t *testing.T, original, nc *nats.Conn) {
	t.Helper()
	got := info(t, nc, 0)
	last := b.info.HighWaterMark
	if got.HighWaterMark != last || got.Digest != b.info.Digest || got.Restoring ||
		!slices.Equal(got.History, []subjects.PastCluster{{Cluster: b.cluster, LastTxid: last}}) {
		t.Fatalf("restored: %+v", got)
	}
	want, have := readAll(t, original, 0, 1), readAll(t, nc, 0, 1)
	if len(have) != len(want) {
		t.Fatalf("%d transactions, want %d", len(have), len(want))
	}
	for i := range want {
		if string(have[i].Data) != string(want[i].Data) || !slices.Equal(have[i].Header[subjects.HeaderTime], want[i].Header[subjects.HeaderTime]) ||
			have[i].Header.Get(subjects.HeaderStoredMsgID) != want[i].Header.Get(subjects.HeaderStoredMsgID) {
			t.Fatalf("txid %d is %+v, want %+v", i+1, have[i], want[i])
		}
	}
	for _, c := range b.cursors {
		var r subjects.CursorReply
		if m := ask(t, nc, "cantus.cursor.0."+c.Name, ""); json.Unmarshal(m.Data, &r) != nil || r.Txid != c.Txid || !r.Time.Equal(c.Time) {
			t.Errorf("cursor %s: %s", c.Name, m.Data)
		}
	}
}

func TestARestoreThroughTheWire(t *testing.T) {
	b, original := newBackup(t, 20)
	n, nc := one(t, broker.Options{Name: "new"})
	stream, last := b.stream(0), b.info.HighWaterMark

	wantStepRefused(t, nc, step(b.end()), subjects.WrongLast, "is not being restored")
	wantStepRefused(t, nc, piece(0, 0, stream), subjects.WrongLast, "begin first")
	if r := restored(t, nc, step(b.begin())); !r.Restoring || r.HighWaterMark != 0 || r.Joined != 0 {
		t.Fatalf("begun: %+v", r)
	}
	for subject, body := range map[string]string{
		"cantus.append.0": "x", "cantus.append.0.k": "x", "cantus.read.0": "", "cantus.replica.read.0": "",
		"cantus.get.0": `{"txid":1}`, "cantus.cursor.0.billing": "", "cantus.cursor.0.search": `{"txid":0}`, "cantus.admin.trim.0": `{"before":1}`,
		"cantus.cursors.0": "", "cantus.admin.batches.0": "",
	} {
		if subject == "cantus.append.0.k" { // leads to the only partition
			subject = "cantus.append.key.k"
		}
		if e := wantRefusal(t, ask(t, nc, subject, body), subjects.Unavailable); !strings.Contains(e.Message, "is being restored") {
			t.Errorf("%s is refused with %v", subject, e)
		}
	}
	if m := ask(t, nc, "cantus.batch.0", string(item("x"))); !strings.Contains(string(m.Data), `"unavailable"`) {
		t.Errorf("a batch message is answered with %s", m.Data)
	}
	if i := info(t, nc, 0); !i.Restoring {
		t.Errorf("info: %+v", i)
	}
	cut := len(stream)/2 + 3 // within a batch
	r := restored(t, nc, piece(0, 0, stream[:cut]))
	if r.HighWaterMark == 0 || r.HighWaterMark == last || r.Joined == 0 {
		t.Fatalf("loaded: %+v", r)
	}
	wantStepRefused(t, nc, piece(0, 0, stream[:cut]), subjects.WrongLast, fmt.Sprintf("0 bytes after txid %d", r.HighWaterMark))
	if again := restored(t, nc, step(b.begin())); again.HighWaterMark != r.HighWaterMark || again.Joined != 0 || !again.Restoring {
		t.Fatalf("begun again: %+v", again)
	}
	r.Joined = 0
	wantStepRefused(t, nc, step(b.end()), subjects.WrongLast, "load the others first")
	rest := b.stream(r.HighWaterMark)
	for at := 0; at < len(rest); at += 11 { // a few bytes at a time
		r2 := restored(t, nc, piece(r.HighWaterMark, r.Joined, rest[at:min(at+11, len(rest))]))
		if r2.HighWaterMark == r.HighWaterMark && r2.Joined == 0 {
			t.Fatalf("nothing is joined: %+v", r2)
		}
		r = r2
	}
	restored(t, nc, step(b.restoreCursors()))
	if r = restored(t, nc, step(b.end())); r.Restoring || r.HighWaterMark != last || r.Digest != b.info.Digest {
		t.Fatalf("ended: %+v", r)
	}
	restored(t, nc, step(b.end())) // sent again
	b.checkRestored(t, original, nc)
	wantDuplicate(t, nc, "payload 3", "id3", 4)
	if m := ask(t, nc, "cantus.get.0", `{"lock":"lock.2"}`); number(t, m, subjects.HeaderTxid) != 18 {
		t.Errorf("the last transaction with a lock: %+v", m.Header)
	}
	wantStepRefused(t, nc, step(b.begin()), subjects.WrongLast, "restored before")
	if void, err := broker.ProposeRestored(n, 0, b.batches[0]); err != nil || !void {
		t.Errorf("a late batch is void: %v, %v", void, err)
	}
	if r := appendTx(t, nc, "cantus.append.0", "later"); r.Txid != last+1 || !r.Time.After(time.Time{}) {
		t.Errorf("appended: %+v", r)
	}
	checkLog(t, nc, 0)
}

// What can't be restored is refused in words that say why.
func TestRestoresThatAreRefused(t *testing.T) {
	b, _ := newBackup(t, 3)
	n, nc := one(t, broker.Options{Name: "new"})
	stream := b.stream(0)
	digest := b.info.Digest
	request := func(format string, args ...any) *nats.Msg { return step(fmt.Appendf(nil, format, args...)) }
	for _, c := range []struct {
		m       *nats.Msg
		reason  subjects.Reason
		because string
	}{
		{request(``), subjects.BadRequest, "exactly one"},
		{request(`{"begin":{"cluster":"x"},"cursors":[]}`), subjects.BadRequest, "exactly one"},
		{request(`{"begin":{"cluster":""}}`), subjects.BadRequest, "id has 1 to"},
		{request(`{"begin":{"cluster":"a b"}}`), subjects.BadRequest, "is not a cluster's id"},
		{request(`{"begin":{"cluster":%q}}`, broker.ClusterID(n)), subjects.BadRequest, "was taken from this cluster"},
		{request(`{"begin":{"cluster":"x","txid":4}}`), subjects.BadRequest, "is not a digest"},
		{request(`{"begin":{"cluster":"x","txid":4,"digest":%q}}`, digest), subjects.BadRequest, "give the time"},
		{request(`{"begin":{"cluster":"x","txid":0,"digest":%q}}`, digest), subjects.BadRequest, "has neither"},
		{request(`{"begin":{"cluster":"x","txid":9223372036854775809,"digest":%q,"time":"2026-11-22T09:00:00Z"}}`, digest), subjects.BadRequest, "out of range"},
		{request(`{"begin":{"cluster":"x","txid":4,"digest":%q,"time":"2262-01-01T00:00:00Z"}}`, digest), subjects.BadRequest, "after the year 2261"},
		{request(`{"cursors":[{"name":"k","txid":1,"time":"2026-11-22T09:00:00Z"}]}`), subjects.WrongLast, "begin first"},
		{request(`{"end":{"txid":0,"digest":"00","history":[]}}`), subjects.BadRequest, "is not a digest"},
		{request(`{"begin":{"cluster":"%s"}}`, strings.Repeat("x", subjects.MaxRestoreBody)), subjects.TooLarge, "at most"},
		{message(restoreSubject, "", subjects.HeaderOffset, "0"), subjects.BadRequest, "both"},
		{message(restoreSubject, "", subjects.HeaderOffset, "x", subjects.HeaderPrevious, "0"), subjects.BadRequest, "not a number"},
	} {
		wantStepRefused(t, nc, c.m, c.reason, c.because)
	}
	restored(t, nc, step(b.begin()))
	flipped := slices.Clone(stream)
	flipped[len(flipped)/2] ^= 4
	for _, c := range []struct {
		m       *nats.Msg
		reason  subjects.Reason
		because string
	}{
		{request(`{"begin":{"cluster":"another"}}`), subjects.WrongLast, "from another backup"},
		{piece(1, 0, stream), subjects.WrongLast, "begin again"},
		{piece(0, 5, stream), subjects.WrongLast, "begin again"},
		{piece(0, 0, flipped), subjects.BadRequest, "checksum"},
		{piece(0, 0, b.stream(1)), subjects.BadRequest, "begins with txid 2"},
		{piece(0, 0, lateBatch()), subjects.BadRequest, "after the year 2261"},
		{piece(0, 0, []byte(strings.Repeat("\xff", 11))), subjects.BadRequest, "length of a batch"},
		{piece(0, 0, binary.AppendUvarint(nil, 1<<40)), subjects.BadRequest, "length of a batch"},
		{request(`{"cursors":[{"name":"a.b","txid":1,"time":"2026-11-22T09:00:00Z"}]}`), subjects.BadRequest, ""},
		{request(`{"cursors":[{"name":"k","txid":1,"time":"0001-01-01T00:00:00Z"}]}`), subjects.BadRequest, "the time at which it was set"},
		{request(`{"end":{"txid":0,"digest":%q,"history":[]}}`, digest), subjects.WrongLast, "is not what was backed up"},
		{request(`{"end":{"txid":0,"digest":%q,"history":[]}}`, strings.Repeat("0", 64)), subjects.BadRequest, "it has 0 clusters"},
		{request(`{"end":{"txid":0,"digest":%q,"history":[{"cluster":"y","last_txid":0}]}}`, strings.Repeat("0", 64)), subjects.BadRequest, "the backup is of cluster"},
		{request(`{"end":{"txid":0,"digest":%q,"history":[{"cluster":%q,"last_txid":0}]}}`, strings.Repeat("0", 64), broker.ClusterID(n)), subjects.BadRequest, "names this cluster"},
	} {
		wantStepRefused(t, nc, c.m, c.reason, c.because)
	}
	_, importing := one(t, broker.Options{})
	restored(t, importing, request(`{"begin":{"cluster":"import-c8d8"}}`))
	wantStepRefused(t, importing, step(b.begin()), subjects.WrongLast, "the partition has an incomplete import (--keep) of another file, or under another --name: "+
		"run that import again, with its file or with a copy that ends after line 1 or later")
	if r := restored(t, nc, step(b.begin())); r.HighWaterMark != 0 || !r.Restoring {
		t.Fatalf("a refused step has changed something: %+v", r)
	}
	for before, because := range map[string]string{`{"txid":1}`: "has transactions", `{"txid":0}`: "has transactions"} {
		_, used := one(t, broker.Options{})
		fillTo(t, used, 1)
		ask(t, used, "cantus.cursor.0.k", before)
		wantStepRefused(t, used, step(b.begin()), subjects.WrongLast, because)
	}
}

// lateBatch returns a stream of one batch, after whose time few are left.
func lateBatch() []byte {
	var w wal.BatchWriter
	w.Begin(wal.Transactions, 1, time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano(), 0)
	w.Add(&wal.Transaction{Kind: []byte("tx")})
	batch := w.Finish()
	return append(binary.AppendUvarint(nil, uint64(len(batch))), batch...)
}

// TestReadsOfAPastCluster reads with the cluster from which the reader has what
// it has.
func TestReadsOfAPastCluster(t *testing.T) {
	b, _ := newBackup(t, 5)
	n, nc := one(t, broker.Options{Name: "new"})
	restored(t, nc, step(b.begin()))
	restored(t, nc, piece(0, 0, b.stream(0)))
	restored(t, nc, step(b.end()))
	fillTo(t, nc, 9)
	own := broker.ClusterID(n)
	for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
		for body, want := range map[string]struct {
			transactions int
			next         uint64
		}{
			`{"from":3}`: {7, 10},
			fmt.Sprintf(`{"from":3,"cluster":%q}`, own):                   {7, 10},
			fmt.Sprintf(`{"from":10,"cluster":%q}`, own):                  {0, 10},
			fmt.Sprintf(`{"from":3,"cluster":%q}`, b.cluster):             {3, 6},
			fmt.Sprintf(`{"from":6,"cluster":%q,"wait":"1m"}`, b.cluster): {0, 6},
			`{"from":1,"cluster":"unknown"}`:                              {9, 10},
			fmt.Sprintf(`{"from":1,"cluster":%q}`, b.cluster):             {9, 10},
		} {
			a := collect(t, nc, subject, body)
			if a.refusal != nil || len(a.transactions) != want.transactions || a.next != want.next || a.mark != 9 ||
				a.end.Header.Get(subjects.HeaderCluster) != own {
				t.Errorf("%s %s: %d transactions, next %d, mark %d, %+v %+v", subject, body, len(a.transactions), a.next, a.mark, a.end, a.refusal)
			}
		}
		for body, common := range map[string]uint64{
			fmt.Sprintf(`{"from":7,"cluster":%q}`, b.cluster):  5,
			fmt.Sprintf(`{"from":70,"cluster":%q}`, b.cluster): 5,
			`{"from":2,"cluster":"unknown"}`:                   0,
		} {
			a := collect(t, nc, subject, body)
			if a.refusal == nil {
				t.Fatalf("%s %s: %d transactions", subject, body, len(a.transactions))
			}
			if e := wantRefusal(t, a.refusal, subjects.Ahead); e.Txid != common || e.Cluster != own {
				t.Errorf("%s %s: %+v", subject, body, e)
			}
		}
	}
	wantRefusal(t, ask(t, nc, "cantus.read.0", `{"cluster":""}`), subjects.BadRequest)
}

// A restore goes on through changes of leader, restarts of all nodes and a
// replica that is rebuilt, between any two steps.
func TestARestoreGoesOnWithoutItsLeader(t *testing.T) {
	testkit.NotShort(t, "nodes restart between the steps of a restore")
	b, original := newBackup(t, 12)
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	last := b.info.HighWaterMark
	send := func(m *nats.Msg) (r subjects.RestoreReply, refused *subjects.Error) {
		nc := c.conn("n1")
		eventually(t, "the step is answered", func() bool {
			answer, err := nc.RequestMsg(m, time.Second)
			r = subjects.RestoreReply{}
			return err == nil && json.Unmarshal(answer.Data, &r) == nil && (r.Error == nil || r.Error.Reason == subjects.WrongLast)
		})
		return r, r.Error
	}
	moves := 0
	disturb := func() {
		moves++
		leader := c.leader(0, "n1")
		switch moves % 3 {
		case 0:
			c.operate("n1", subjects.AdminRequest{Partition: new(int), To: without(c.names, leader)[0]}, "cluster", "transfer")
			eventually(t, "another leads", func() bool { return c.leader(0, "n1") != leader })
		case 1:
			c.stop(leader)
			c.start(leader)
		case 2:
			follower := without(c.names, leader)[0]
			c.operate(follower, subjects.AdminRequest{Partition: new(int)}, "node", follower, "rebuild")
		}
	}
	for at := (subjects.RestoreReply{}); at.HighWaterMark < last; {
		var refused *subjects.Error
		if at, refused = send(step(b.begin())); refused != nil {
			t.Fatal(refused)
		}
		if at.HighWaterMark == last {
			break
		}
		rest := b.stream(at.HighWaterMark)
		n, size := binary.Uvarint(rest)
		cut := size + int(n) + 5 // a batch and a bit
		send(piece(at.HighWaterMark, 0, rest[:min(cut, len(rest))]))
		disturb()
	}
	send(step(b.restoreCursors()))
	disturb()
	_, refused := send(step(b.end()))
	disturb()
	if again, refusedAgain := send(step(b.end())); refused != nil || refusedAgain != nil || again.Restoring {
		t.Fatalf("the end: %v, %v, %+v", refused, refusedAgain, again)
	}
	b.checkRestored(t, original, c.conn(c.leader(0, "n1")))
	eventually(t, "all replicas have it", func() bool {
		return !slices.ContainsFunc(c.names, func(name string) bool { return !broker.Holds(c.node(name), 0) || broker.Mark(c.node(name), 0) != last })
	})
	c.checkSame(0, c.names...)
	if txid := keep(t, c.conn("n1"), 0, "later", "later"); txid != last+1 {
		t.Errorf("the next transaction is %d", txid)
	}
}

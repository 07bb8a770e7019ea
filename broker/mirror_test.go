package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

func (b *backup) mirror() []byte {
	return encode(subjects.RestoreRequest{Begin: &subjects.RestoreBegin{Cluster: b.cluster, Mirror: true}})
}

// fedTxids returns the txids that a subscription to the feed has received, up
// to one of them.
func fedTxids(t *testing.T, sub *nats.Subscription, last uint64) (all []uint64) {
	t.Helper()
	for len(all) == 0 || all[len(all)-1] != last {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("after %v: %v", all, err)
		}
		all = append(all, number(t, m, subjects.HeaderTxid))
	}
	return all
}

// surveyed checks of which cluster a node's directory is a mirror, as a
// recovery would find it there.
func surveyed(t *testing.T, n *broker.Node, source string) {
	t.Helper()
	if s, err := broker.Survey(n, 0); err != nil || s.MirrorOf != source || s.Restoring != (source != "") {
		t.Errorf("the directory has %+v, %v", s, err)
	}
}

// A mirror is read like its source, under the source's id, and takes nothing
// else until it is promoted.
func TestAMirror(t *testing.T) {
	b, original := newBackup(t, 20)
	n, nc := one(t, broker.Options{Name: "mirror"})
	last := b.info.HighWaterMark
	stream := b.stream(0)
	feed, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := nc.SubscribeSync("cantus.packed.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	wantStepRefused(t, nc, step(encode(subjects.RestoreRequest{Begin: &subjects.RestoreBegin{
		Cluster: b.cluster, Mirror: true, History: []subjects.PastCluster{{Cluster: broker.ClusterID(n), LastTxid: 3}},
	}})), subjects.BadRequest, "was itself made from this one")
	restored(t, nc, step(b.mirror()))
	r := restored(t, nc, piece(0, 0, stream[:len(stream)/2+3]))
	mark := r.HighWaterMark
	if mark == 0 || mark >= last || !r.Restoring {
		t.Fatalf("loaded: %+v", r)
	}
	if i := info(t, nc, 0); i.MirrorOf != b.cluster || i.Restoring || len(i.History) > 0 {
		t.Errorf("info: %+v", i)
	}

	surveyed(t, n, b.cluster)

	// It is read.
	want := readAll(t, original, 0, 1)
	for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
		a := collect(t, nc, subject, "")
		if len(a.transactions) != int(mark) || a.end.Header.Get(subjects.HeaderCluster) != b.cluster {
			t.Fatalf("%s: %d transactions, want %d; %v", subject, len(a.transactions), mark, a.end)
		}
		for i, m := range a.transactions {
			if fmt.Sprint(m.Header) != fmt.Sprint(want[i].Header) || string(m.Data) != string(want[i].Data) {
				t.Fatalf("transaction %d is %v, and was %v", i+1, m.Header, want[i].Header)
			}
		}
		// A reader that has more from the source waits.
		for _, body := range []string{`{"from":%d,"cluster":%q}`, `{"from":%d,"cluster":%q,"wait":"20ms"}`} {
			a := collect(t, nc, subject, fmt.Sprintf(body, last+1, b.cluster))
			if a.refusal != nil || len(a.transactions) > 0 || a.next != last+1 || a.end.Header.Get(subjects.HeaderCluster) != b.cluster {
				t.Errorf("%s from beyond the end: %+v %v", subject, a.refusal, a.end)
			}
		}
		wantRefusal(t, ask(t, nc, subject, `{"from":2,"cluster":"unknown"}`), subjects.Ahead)
	}
	if m := ask(t, nc, "cantus.get.0", `{"txid":2}`); number(t, m, subjects.HeaderTxid) != 2 {
		t.Errorf("get: %v", m.Header)
	}
	wantRefusal(t, ask(t, nc, "cantus.get.0", fmt.Sprintf(`{"txid":%d}`, mark+1)), subjects.Unavailable)
	if all := fedTxids(t, feed, mark); len(all) != int(mark) {
		t.Errorf("the feed has %v", all)
	}

	// It takes nothing else.
	for subject, body := range map[string]string{
		"cantus.append.0": "x", "cantus.append.key.k": "x", "cantus.cursor.0.search": `{"txid":1}`,
	} {
		if e := wantRefusal(t, ask(t, nc, subject, body), subjects.Unavailable); !strings.Contains(e.Message, "partition 0 is a mirror of cluster "+b.cluster) {
			t.Errorf("%s is refused with %v", subject, e)
		}
	}
	wantStepRefused(t, nc, step(b.begin()), subjects.WrongLast, "is a mirror of cluster")
	wantStepRefused(t, nc, step(encode(subjects.RestoreRequest{Begin: &subjects.RestoreBegin{Cluster: "another", Mirror: true}})), subjects.WrongLast, "is a mirror of cluster")
	if again := restored(t, nc, step(b.mirror())); again.HighWaterMark != mark {
		t.Errorf("begun again: %+v", again)
	}

	// Cursors come along, and those that were set later count.
	far := []subjects.RestoredCursor{{Name: "far", Txid: last, Time: b.cursors[0].Time}}
	wantStepRefused(t, nc, step(encode(subjects.RestoreRequest{Cursors: far})), subjects.Ahead, "far")
	restored(t, nc, step(b.restoreCursors()))
	earlier := []subjects.RestoredCursor{{Name: "billing", Txid: 2, Time: b.cursors[0].Time.Add(-1)}}
	restored(t, nc, step(encode(subjects.RestoreRequest{Cursors: earlier})))
	if m := ask(t, nc, "cantus.cursor.0.billing", ""); !strings.Contains(string(m.Data), `"txid":1,`) {
		t.Errorf("the cursor: %s", m.Data)
	}
	removed := []subjects.RestoredCursor{{Name: "search", Time: b.cursors[1].Time}}
	restored(t, nc, step(encode(subjects.RestoreRequest{Cursors: removed})))
	if m := ask(t, nc, "cantus.cursors.0", ""); strings.Contains(string(m.Data), "search") {
		t.Errorf("the cursors: %s", m.Data)
	}
	restored(t, nc, step(b.restoreCursors()))

	// A read that waits while the rest comes and the mirror is promoted ends
	// where the source's transactions do.
	restored(t, nc, piece(mark, 0, b.stream(mark)))
	if all := fedTxids(t, feed, last); len(all) != int(last-mark) {
		t.Errorf("the feed goes on with %v", all)
	}
	waiting := begin(t, nc, "cantus.read.0", fmt.Sprintf(`{"from":%d,"cluster":%q,"wait":"1m"}`, last+1, b.cluster))
	restored(t, nc, step(b.end()))
	restored(t, nc, step(b.end())) // sent again
	surveyed(t, n, "")
	b.checkRestored(t, original, nc)
	own := broker.ClusterID(n)
	wantDuplicate(t, nc, "payload 3", "id3", 4)
	for i := range 3 {
		if r := appendTx(t, nc, "cantus.append.0", "later"); r.Txid != last+1+uint64(i) {
			t.Fatalf("appended: %+v", r)
		}
	}
	if a := waiting(t); a.refusal != nil || len(a.transactions) > 0 || a.next != last+1 || a.end.Header.Get(subjects.HeaderCluster) != own {
		t.Errorf("the read that waited has %d transactions, %v, %v", len(a.transactions), a.end, a.refusal)
	}
	// The feed leaves out the first one, so that its readers read.
	if all := fedTxids(t, feed, last+3); !slices.Equal(all, []uint64{last + 2, last + 3}) {
		t.Errorf("after the promotion the feed has %v", all)
	}
	a := collect(t, nc, "cantus.read.0", fmt.Sprintf(`{"from":%d,"cluster":%q}`, last+2, b.cluster))
	if a.refusal == nil {
		t.Fatal("a reader that is ahead is not told")
	}
	if e := wantRefusal(t, a.refusal, subjects.Ahead); e.Txid != last || e.Cluster != own {
		t.Errorf("a reader that is ahead is told %+v", e)
	}
	checkPackedFeed(t, nc, packed, last+3)
	checkLog(t, nc, 0)
}

// checkPackedFeed checks that what a subscription to the packed feed has
// received is signed, and goes up to a transaction.
func checkPackedFeed(t *testing.T, nc *nats.Conn, packed *nats.Subscription, last uint64) {
	t.Helper()
	verifier := feedVerifier(t, nc, 0)
	for txid, at := uint64(0), time.Now(); txid < last; {
		m, err := packed.NextMsg(patience)
		if err != nil {
			t.Fatalf("after txid %d, for %v: %v", txid, time.Since(at), err)
		}
		if err := verifier.Verify(m.Header.Get(subjects.HeaderHashes), m.Header.Get(subjects.HeaderSignature), m.Data); err != nil {
			t.Fatal(err)
		}
		all := unpack(t, m)
		txid = number(t, all[len(all)-1], subjects.HeaderTxid)
	}
}

// A mirror is trimmed like any other log, and goes on.
func TestAMirrorIsTrimmed(t *testing.T) {
	b, _ := newBackup(t, 12)
	_, nc := one(t, broker.Options{Name: "mirror", MsgIDWindow: time.Second})
	restored(t, nc, step(b.mirror()))
	stream := b.stream(0)
	mark := restored(t, nc, piece(0, 0, stream[:len(stream)/2])).HighWaterMark
	eventually(t, "no message id counts, and the mirror is trimmed", func() bool {
		m := ask(t, nc, "cantus.admin.trim.0", fmt.Sprintf(`{"before":%d}`, mark+1))
		return strings.Contains(string(m.Data), fmt.Sprintf(`"first_txid":%d`, mark+1))
	})
	restored(t, nc, piece(mark, 0, b.stream(mark)))
	restored(t, nc, step(b.end()))
	if i := info(t, nc, 0); i.Digest != b.info.Digest || i.FirstTxid != mark+1 {
		t.Errorf("info: %+v", i)
	}
}

package broker_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// streamed is the answer to a request for batches, checked and put together.
type streamed struct {
	batches    []wal.Batch
	rest       []byte // of a batch that was not sent as a whole
	messages   int
	next, mark uint64
	last       uint64
}

// stream requests batches of partition 0, and checks that the answer is whole.
func stream(t *testing.T, nc *nats.Conn, body string) streamed {
	t.Helper()
	a := collect(t, nc, "cantus.admin.batches.0", body)
	if a.refusal != nil {
		t.Fatalf("%s: %s", body, a.refusal.Data)
	}
	return unstream(t, a)
}

func unstream(t *testing.T, a answers) streamed {
	t.Helper()
	s := streamed{messages: len(a.transactions), next: a.next, mark: a.mark, last: number(t, a.end, subjects.HeaderLast)}
	for _, m := range a.transactions {
		if len(m.Header) != 1 || number(t, m, subjects.HeaderPrevious) != uint64(len(s.rest)) || len(m.Data) == 0 {
			t.Fatalf("after %d bytes a message of %d has the headers %v", len(s.rest), len(m.Data), m.Header)
		}
		s.rest = append(s.rest, m.Data...)
	}
	if sent := number(t, a.end, subjects.HeaderCount); sent != uint64(len(s.rest)) {
		t.Fatalf("the end says %d bytes, %d came", sent, len(s.rest))
	}
	for {
		length, n := binary.Uvarint(s.rest)
		if n <= 0 || uint64(len(s.rest)-n) < length {
			return s
		}
		b, err := wal.ParseBatch(s.rest[n : n+int(length)])
		if err != nil {
			t.Fatal(err)
		}
		s.batches = append(s.batches, b)
		s.rest = s.rest[n+int(length):]
	}
}

// digestOf returns the end of the digest chain that goes on from a point with
// batches. It fails the test if they don't follow on each other.
func digestOf(t *testing.T, digest string, from uint64, batches []wal.Batch) string {
	t.Helper()
	b, err := hex.DecodeString(digest)
	if err != nil || len(b) != len(wal.Digest{}) {
		t.Fatalf("digest %q", digest)
	}
	d := wal.Digest(b)
	for _, b := range batches {
		if b.Kind != wal.Transactions || b.Count == 0 || b.First != from+1 {
			t.Fatalf("a batch of kind %d begins at %d after %d", b.Kind, b.First, from)
		}
		d, from = d.Next(b.Bytes()), b.Last()
	}
	return hex.EncodeToString(d[:])
}

// several appends batch messages of as many transactions as sizes says, with
// cursor writes between them.
func several(t *testing.T, nc *nats.Conn, sizes ...int) {
	t.Helper()
	for i, size := range sizes {
		var body []byte
		for j := range size {
			body = append(body, item(fmt.Sprintf("payload %d of %d", j, i))...)
		}
		if m := ask(t, nc, "cantus.batch.0", string(body)); m.Header.Get(subjects.HeaderErrorCode) != "" {
			t.Fatalf("%s", m.Data)
		}
		ask(t, nc, "cantus.cursor.0.c", `{"txid":1}`)
	}
}

// The batches are those of the log: their digest chain is the partition's.
func TestBatchesAreTheLog(t *testing.T) {
	_, nc := one(t, broker.Options{})
	if s := stream(t, nc, ""); len(s.batches) != 0 || s.next != 1 || s.messages != 0 || s.last != 0 {
		t.Errorf("of an empty log: %+v", s)
	}
	several(t, nc, 3, 1, 200, 1, 40)
	of := info(t, nc, 0)
	all := stream(t, nc, "")
	if all.next != 246 || all.mark != 245 || all.last != 245 || len(all.rest) > 0 {
		t.Errorf("next %d, mark %d, last %d, %d bytes left", all.next, all.mark, all.last, len(all.rest))
	}
	if got := digestOf(t, of.BaseDigest, of.FirstTxid-1, all.batches); got != of.Digest {
		t.Errorf("the digest of the batches is %s, the partition's %s", got, of.Digest)
	}
	for from := uint64(1); from <= 245; from++ {
		s := stream(t, nc, fmt.Sprintf(`{"from":%d}`, from))
		if first := s.batches[0]; from < first.First || from > first.Last() {
			t.Fatalf("from %d the first batch has %d to %d", from, first.First, first.Last())
		}
	}
	// Small parts, one after the other, are the same.
	var parts []wal.Batch
	for next := uint64(1); next <= 245; {
		s := stream(t, nc, fmt.Sprintf(`{"from":%d,"max_bytes":100}`, next))
		if len(s.batches) == 0 || s.next != s.batches[len(s.batches)-1].Last()+1 || s.last != s.next-1 {
			t.Fatalf("from %d: %+v", next, s)
		}
		parts, next = append(parts, s.batches...), s.next
	}
	if got := digestOf(t, of.BaseDigest, 0, parts); got != of.Digest || len(parts) != len(all.batches) {
		t.Errorf("%d parts have the digest %s, %d batches %s", len(parts), got, len(all.batches), of.Digest)
	}
}

// A batch may be larger than a message, here because max_payload was larger.
func TestBatchesInSmallMessages(t *testing.T) {
	dir := t.TempDir()
	n, nc := openNode(t, dir, broker.Options{Partitions: 1})
	several(t, nc, 1000, 1200, 1)
	_, nc = reopen(t, n, dir, broker.Options{Partitions: 1, NATSConfig: config(t, "max_payload: 8192")})
	of := info(t, nc, 0)
	s := stream(t, nc, "")
	if got := digestOf(t, of.BaseDigest, 0, s.batches); got != of.Digest || len(s.rest) > 0 {
		t.Errorf("the digest is %s, the partition's %s", got, of.Digest)
	}
	size := 0
	for _, b := range s.batches {
		size = max(size, len(b.Bytes()))
	}
	if s.messages < 5 || size < 20_000 {
		t.Errorf("%d messages, and the largest batch has %d bytes: the test shows little", s.messages, size)
	}
}

// A trimmed log begins with its base digest.
func TestBatchesOfATrimmedLog(t *testing.T) {
	opts := broker.Options{}
	broker.PointEvery(&opts, 16)
	n, nc := one(t, opts)
	several(t, nc, 20, 20, 20, 20)
	before := stream(t, nc, "").batches
	r := trim(t, nc, `{"before":70}`)
	eventually(t, "the log is trimmed", func() bool { return broker.Trimmed(n, 0) })
	of := info(t, nc, 0)
	if of.FirstTxid != r.FirstTxid || of.FirstTxid == 1 {
		t.Fatalf("trimmed up to %d, and the first is %d", r.FirstTxid, of.FirstTxid)
	}
	kept := stream(t, nc, fmt.Sprintf(`{"from":%d}`, of.FirstTxid)).batches
	if got := digestOf(t, of.BaseDigest, of.FirstTxid-1, kept); got != of.Digest {
		t.Errorf("the digest is %s, the partition's %s", got, of.Digest)
	}
	gone := before[:len(before)-len(kept)]
	if got := digestOf(t, strings.Repeat("0", 64), 0, gone); got != of.BaseDigest {
		t.Errorf("the digest of what was trimmed is %s, the base %s", got, of.BaseDigest)
	}
	e := wantRefusal(t, collect(t, nc, "cantus.admin.batches.0", `{"from":1}`).refusal, subjects.Trimmed)
	if e.FirstTxid != of.FirstTxid {
		t.Errorf("%+v", e)
	}
}

func TestRefusedBatches(t *testing.T) {
	_, nc := one(t, broker.Options{})
	several(t, nc, 10)
	for body, reason := range map[string]subjects.Reason{
		`{"from":12}`:                           subjects.Ahead,
		`{"from":0}`:                            subjects.BadRequest,
		`{"max_bytes":8388609}`:                 subjects.BadRequest,
		`{"wait":"61s"}`:                        subjects.BadRequest,
		`{"max":1}`:                             subjects.BadRequest,
		`{"packed":true}`:                       subjects.BadRequest,
		`{"from":1,"from":2}`:                   subjects.BadRequest,
		`{"from":null}`:                         subjects.BadRequest,
		`[]`:                                    subjects.BadRequest,
		strings.Repeat(" ", subjects.MaxBody):   "",
		strings.Repeat(" ", subjects.MaxBody+1): subjects.TooLarge,
	} {
		a := collect(t, nc, "cantus.admin.batches.0", body)
		switch {
		case reason == "" && a.refusal != nil:
			t.Errorf("%.40q: refused: %s", body, a.refusal.Data)
		case reason != "" && a.refusal == nil:
			t.Errorf("%s: answered", body)
		case reason != "":
			wantRefusal(t, a.refusal, reason)
		}
	}
}

// A request that waits gets the next batch.
func TestBatchesAreWaitedFor(t *testing.T) {
	_, nc := one(t, broker.Options{})
	several(t, nc, 10)
	short := begin(t, nc, "cantus.admin.batches.0", `{"from":11,"wait":"1ms"}`)
	long := begin(t, nc, "cantus.admin.batches.0", `{"from":11,"wait":"60s"}`)
	if s := unstream(t, short(t)); s.next != 11 || s.messages > 0 {
		t.Errorf("%+v", s)
	}
	several(t, nc, 5)
	if s := unstream(t, long(t)); len(s.batches) == 0 || s.batches[0].First != 11 {
		t.Errorf("%+v", s)
	}
}

// Batches are no faster than their reader takes them, and whole.
func TestBatchesArePaced(t *testing.T) {
	testkit.NotShort(t, "it reads some megabytes over a slow line")
	const count = 1000
	n, nc := one(t, broker.Options{NATSConfig: smallPending(t)})
	wide(t, nc, 0, count)
	of := info(t, nc, 0)
	slow := slowly(t, n, 20<<20)
	var all []wal.Batch
	for next := uint64(1); next <= count; {
		s := stream(t, slow, fmt.Sprintf(`{"from":%d,"max_bytes":8388608}`, next))
		all = append(all, s.batches...)
		next = s.next
	}
	if got := digestOf(t, of.BaseDigest, 0, all); got != of.Digest {
		t.Errorf("the digest is %s, the partition's %s", got, of.Digest)
	}
}

// An answer that gets no further turn ends early, if need be within a batch,
// and says where to continue: at that batch.
func TestBatchesWithoutAnotherTurnEndEarly(t *testing.T) {
	testkit.NotShort(t, "requests wait for their turns to end")
	const count = 500
	n, nc := one(t, broker.Options{NATSConfig: smallPending(t)})
	wide(t, nc, 0, count)
	slow := slowly(t, n, 2<<20)
	inbox := slow.NewRespInbox()
	sub, err := slow.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := slow.PublishRequest("cantus.admin.batches.0", inbox, []byte(`{"max_bytes":8388608}`)); err != nil {
		t.Fatal(err)
	}
	first, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	release, err := broker.HoldScans(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	a, err := receive(t, sub)
	if err != nil || a.end == nil {
		t.Fatalf("%+v, %v", a, err)
	}
	a.transactions = append([]*nats.Msg{first}, a.transactions...)
	part := unstream(t, a)
	if len(part.batches) > 0 {
		if end := part.batches[len(part.batches)-1].Last(); part.next != end+1 || part.last != end || end == count {
			t.Errorf("it ends with %d, of %d, and says %d and %d", end, count, part.last, part.next)
		}
	}
	wantRefusal(t, collect(t, nc, "cantus.admin.batches.0", "").refusal, subjects.Busy)
	release()
	all := part.batches
	for next := part.next; next <= count; {
		s := stream(t, nc, fmt.Sprintf(`{"from":%d,"max_bytes":8388608}`, next))
		all, next = append(all, s.batches...), s.next
	}
	of := info(t, nc, 0)
	if got := digestOf(t, of.BaseDigest, 0, all); got != of.Digest {
		t.Errorf("the digest is %s, the partition's %s", got, of.Digest)
	}
}

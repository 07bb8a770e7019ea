package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// idModel is a partition whose message ids count as long as their transactions
// are kept.
type idModel struct {
	rand  *rand.Rand
	log   []idEvent
	first uint64 // of the log

	old, reused, again int // ids that are not among the newest, and of trimmed transactions
}

type idEvent struct {
	id, payload string
	size        uint64 // of an atomic batch that it begins, else 1
}

// use returns the newest transaction that has an id, 0 if none has.
func (m *idModel) use(id string) uint64 {
	for txid := uint64(len(m.log)); txid >= m.first; txid-- {
		if m.log[txid-1].id == id {
			return txid
		}
	}
	return 0
}

// draw returns an id: a new one, or one of those used before.
func (m *idModel) draw() string {
	if len(m.log) == 0 || m.rand.IntN(3) == 0 {
		return fmt.Sprint("new ", len(m.log))
	}
	for {
		if id := m.log[m.rand.IntN(len(m.log))].id; id != "" { // it is in an atomic batch
			return id
		}
	}
}

// want compares an answer with the model's, and appends to its log.
func (m *idModel) want(t *testing.T, id, payload string, size uint64, txid uint64, duplicate bool, refused *subjects.Error) {
	t.Helper()
	use := m.use(id)
	newest := use+20 > uint64(len(m.log))
	switch {
	case id == "" || use == 0:
		if refused != nil || duplicate || txid != uint64(len(m.log))+1 {
			t.Fatalf("%q, which is new, after %d: txid %d, duplicate %t, %v", id, len(m.log), txid, duplicate, refused)
		}
		if slices.ContainsFunc(m.log, func(e idEvent) bool { return id != "" && e.id == id }) {
			m.again++
		}
		m.log = append(m.log, idEvent{id, payload, size})
		for range size - 1 {
			m.log = append(m.log, idEvent{})
		}
	case m.log[use-1].payload == payload && m.log[use-1].size == size:
		if refused != nil || !duplicate || txid != use {
			t.Fatalf("%q, which %d has, after %d: txid %d, duplicate %t, %v", id, use, len(m.log), txid, duplicate, refused)
		}
		if !newest {
			m.old++
		}
	default:
		if refused == nil || refused.Reason != subjects.IDReused || refused.Txid != use {
			t.Fatalf("%q, which %d has with another payload, after %d: txid %d, %+v", id, use, len(m.log), txid, refused)
		}
		if !newest {
			m.reused++
		}
	}
}

// payload returns that of the newest transaction with an id, or another one.
func (m *idModel) payload(id string) string {
	if use := m.use(id); use > 0 && m.rand.IntN(4) > 0 {
		return m.log[use-1].payload
	}
	return fmt.Sprint("payload ", m.rand.IntN(1000))
}

func (m *idModel) try(t *testing.T, nc *nats.Conn) {
	t.Helper()
	mark := []string{"Cantus-High-Water-Mark", fmt.Sprint(m.first - 1 + m.rand.Uint64N(uint64(len(m.log))+2-m.first)), "Cantus-Append-Lock", fmt.Sprint("lock.", m.rand.IntN(50))}
	switch m.rand.IntN(3) {
	case 0: // with a mark of any age, and a lock that nobody has recorded
		id := m.draw()
		payload := m.payload(id)
		r, err := tryAppend(nc, payload, append(mark, "Nats-Msg-Id", id, "Cantus-Write-Lock", fmt.Sprint("own.", len(m.log)))...)
		if err != nil {
			t.Fatal(err)
		}
		m.want(t, id, payload, 1, r.Txid, r.Duplicate, r.Error)
	case 1:
		m.batch(t, nc)
	default:
		id := m.draw()
		items := [][]byte{item("a"), item(m.payload(id))}
		payload := string(slices.Concat(items...))
		if use := m.use(id); use > 0 && m.log[use-1].size == 2 && m.rand.IntN(4) > 0 {
			payload = m.log[use-1].payload
		}
		r := atomicBatch(t, nc, [][]byte{[]byte(payload)}, append(mark[:2:2], "Nats-Msg-Id", id)...)
		if r.Error != nil {
			m.want(t, id, payload, 2, 0, false, r.Error)
			return
		}
		m.want(t, id, payload, 2, r.Results[0].Txid, r.Results[0].Duplicate, nil)
	}
}

// batch sends a batch of transactions with ids, some of which may be the same.
func (m *idModel) batch(t *testing.T, nc *nats.Conn) {
	t.Helper()
	var items [][]byte
	var ids, payloads []string
	for range 1 + m.rand.IntN(6) {
		id := m.draw()
		payload := m.payload(id)
		ids, payloads = append(ids, id), append(payloads, payload)
		items = append(items, item(payload, "Nats-Msg-Id", id))
	}
	var r subjects.BatchReply
	a := ask(t, nc, "cantus.batch.0", string(slices.Concat(items...)))
	if err := json.Unmarshal(a.Data, &r); err != nil || r.Error != nil {
		t.Fatalf("%v: %s", err, a.Data)
	}
	for i := range ids {
		for _, result := range r.Results {
			if n := i - result.Index; n >= 0 && n < max(result.Count, 1) {
				m.want(t, ids[i], payloads[i], 1, result.Txid+uint64(n), result.Duplicate, result.Error)
			}
		}
	}
}

// A message id counts as long as the log has its transaction, although the node
// has the three newest alone in memory: in batches, in atomic batches, beside
// locks and marks of any age, after restarts and trims.
func TestMessageIDsOfTheWholeLog(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1, MaxMsgIDs: 3, MaxLocks: 5}
	n, nc := openNode(t, dir, opts)
	m := idModel{rand: rand.New(rand.NewPCG(18, 6)), first: 1}
	for round := range 4 {
		for range 60 {
			m.try(t, nc)
		}
		if round == 1 {
			before := uint64(len(m.log)) / 2
			for m.log[before-1].id == "" {
				before--
			}
			if a := askServed(t, nc, "cantus.admin.trim.0", fmt.Sprintf(`{"before":%d}`, before)); !strings.Contains(string(a.Data), fmt.Sprintf(`"first_txid":%d`, before)) {
				t.Fatalf("%s", a.Data)
			}
			m.first = before
		}
		n, nc = reopen(t, n, dir, opts)
	}
	if m.old < 10 || m.reused < 10 || m.again < 3 {
		t.Errorf("%d repeats of old ids, %d with another payload, %d of trimmed transactions", m.old, m.reused, m.again)
	}
}

// A new leader knows every id that the log has.
func TestANewLeaderKnowsAllMessageIDs(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1, MaxMsgIDs: 3})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	m := idModel{rand: rand.New(rand.NewPCG(18, 7)), first: 1}
	for range 3 {
		for range 30 {
			m.try(t, nc)
		}
		leader := c.leader(0, "n1")
		next := c.names[(slices.Index(c.names, leader)+1)%3]
		c.operate("n1", subjects.AdminRequest{Partition: new(int), To: next}, "cluster", "transfer")
		eventually(t, next+" leads", func() bool { return c.leader(0, "n1") == next })
	}
	if m.old < 3 {
		t.Errorf("%d repeats of old ids", m.old)
	}
}

// An id that can't be looked up decides nothing: the transaction is refused,
// and says why.
func TestAMessageIDThatIsNotLookedUp(t *testing.T) {
	n, nc := one(t, broker.Options{Partitions: 1, MaxMsgIDs: 1})
	for i := range 3 {
		appendOne(t, nc, "Nats-Msg-Id", fmt.Sprint(i))
	}
	header := []byte("NATS/1.0\r\nNats-Msg-Id: 0\r\n\r\n")
	for text, limits := range map[string][2]int{
		"the message has too many":                             {-1, 0},
		"others are committed faster than the log is searched": {1 << 20, 8},
		"": {1 << 20, 7},
	} {
		err := broker.CheckID(t, n, 0, header, limits[0], limits[1])
		var refused *subjects.Error
		if text == "" && err != nil || text != "" && (!errors.As(err, &refused) || refused.Reason != subjects.Unavailable || !strings.Contains(refused.Message, text)) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Without an index the log is searched, as far as one search may go.
func TestAMessageIDBehindALongLog(t *testing.T) {
	testkit.NotShort(t, "70 MB are appended")
	n, nc := one(t, broker.Options{Partitions: 1, MaxMsgIDs: 1})
	appendOne(t, nc, "Nats-Msg-Id", "first")
	payload := strings.Repeat("x", 900<<10)
	for i := range 80 {
		eventually(t, "the index is not too far behind", func() bool {
			r, err := tryAppend(nc, payload, "Nats-Msg-Id", fmt.Sprint(i))
			if err != nil || r.Error != nil && r.Error.Reason != subjects.Unavailable {
				t.Fatal(err, r.Error)
			}
			return r.Error == nil
		})
	}
	if r := appendOne(t, nc, "Nats-Msg-Id", "first"); !r.Duplicate || r.Txid != 1 {
		t.Errorf("with an index: %+v", r)
	}
	broker.HideIndex(n, 0)
	if r := appendOne(t, nc, "Nats-Msg-Id", "first"); r.Error == nil || r.Error.Reason != subjects.Unavailable || !strings.Contains(r.Error.Message, "is not in the index") {
		t.Errorf("without an index: %+v", r)
	}
	if r, err := tryAppend(nc, payload, "Nats-Msg-Id", "76"); err != nil || !r.Duplicate || r.Txid != 78 {
		t.Errorf("near, without an index: %+v, %v", r, err)
	}
}

// A message id that is committed, and leaves memory, between two steps of a
// search for it is found all the same.
func TestAMessageIDThatIsCommittedDuringASearch(t *testing.T) {
	n, nc := one(t, broker.Options{Partitions: 1, MaxMsgIDs: 1})
	for i := range 3 {
		appendOne(t, nc, "Nats-Msg-Id", fmt.Sprint(i))
	}
	answers, err := nc.SubscribeSync(nats.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	again := nats.NewMsg("cantus.append.0")
	again.Reply, again.Data = answers.Subject, []byte("x")
	again.Header.Set("Nats-Msg-Id", "found")
	broker.CheckBetween(t, n, 0, again, func() {
		appendOne(t, nc, "Nats-Msg-Id", "found")
		appendOne(t, nc, "Nats-Msg-Id", "another")
	})
	m, err := answers.NextMsg(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var r subjects.Reply
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Txid != 4 || !r.Duplicate {
		t.Errorf("%v: %s", err, m.Data)
	}
}

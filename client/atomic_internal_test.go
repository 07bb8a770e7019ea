package client

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// A range that is malformed, or is not the transaction's, makes the message
// malformed.
func TestAtomicRangeOfATransaction(t *testing.T) {
	for _, c := range []struct {
		values []string
		want   AtomicRange
	}{
		{nil, AtomicRange{}},
		{[]string{"7-9"}, AtomicRange{7, 9}},
		{[]string{"6-7"}, AtomicRange{6, 7}},
		{[]string{"8-9"}, AtomicRange{}},
		{[]string{"7-7"}, AtomicRange{}},
		{[]string{"7"}, AtomicRange{}},
		{[]string{""}, AtomicRange{}},
		{[]string{"1-90000"}, AtomicRange{}},
		{[]string{"7-9", "7-9"}, AtomicRange{}},
	} {
		m := nats.NewMsg("inbox")
		for key, value := range map[string]string{
			subjects.HeaderTxid: "7", subjects.HeaderPartition: "0", subjects.HeaderTime: "2026-11-22T09:00:00Z", subjects.HeaderKind: "tx",
		} {
			m.Header.Set(key, value)
		}
		block := subjects.AppendBlockStart(nil)
		for _, v := range c.values {
			m.Header[subjects.HeaderAtomic] = append(m.Header[subjects.HeaderAtomic], v)
			block = subjects.AppendField(block, subjects.HeaderAtomic, v)
		}
		one, err := parseTransaction(m)
		packed, err2 := parsePacked(0, subjects.AppendPacked(nil, subjects.Packed{Txid: 7, Header: subjects.AppendBlockEnd(block)}))
		if valid := c.want != (AtomicRange{}) || c.values == nil; !valid {
			if !errors.Is(err, errNotTransaction) || !errors.Is(err2, errNotTransaction) {
				t.Errorf("%q: %+v, %v; packed %+v, %v", c.values, one, err, packed, err2)
			}
			continue
		}
		if err != nil || err2 != nil || one.Atomic != c.want || packed[0].Atomic != c.want || one.Header != nil || packed[0].Header != nil {
			t.Errorf("%q: %+v, %v; packed %+v, %v", c.values, one, err, packed, err2)
		}
	}
}

// packedOf returns a message of a read: transactions with a txid and the value
// of Cantus-Atomic.
func packedOf(previous string, txs ...string) *nats.Msg {
	m := nats.NewMsg("")
	m.Header.Set(subjects.HeaderPrevious, previous)
	for _, tx := range txs {
		var p subjects.Packed
		number, value, _ := strings.Cut(tx, " ")
		fmt.Sscan(number, &p.Txid)
		p.Header = subjects.AppendBlockStart(nil)
		if value != "" {
			p.Header = subjects.AppendField(p.Header, subjects.HeaderAtomic, value)
		}
		p.Header = subjects.AppendBlockEnd(p.Header)
		m.Data = subjects.AppendPacked(m.Data, p)
	}
	return m
}

// A read in which atomic batches overlap, or end after the high-water mark, is
// malformed: it is repeated, and says why.
func TestInconsistentAtomicBatchesAreNotBelieved(t *testing.T) {
	for _, c := range []struct {
		txs  []string
		mark uint64
		kind string // a filter
		want string // "" for a read that is good
	}{
		{txs: []string{"1", "2 2-3", "3 2-3", "4 4-5", "5 4-5", "6"}, mark: 6},
		{txs: []string{"1 1-2", "2"}, mark: 2, want: "txid 2 belongs to 2-2, and what is before it to 1-2"},
		{txs: []string{"1 1-2", "2 2-3", "3 2-3"}, mark: 3, want: "txid 2 belongs to 2-3, and what is before it to 1-2"},
		{txs: []string{"1 1-3", "2 1-2"}, mark: 3, want: "txid 2 belongs to 1-2, and what is before it to 1-3"},
		{txs: []string{"1", "2 1-2"}, mark: 2, want: "txid 2 belongs to 1-2, and what is before it to 1-1"},
		{txs: []string{"1", "2 2-4", "3 2-4"}, mark: 3, want: "the high-water mark 3 is inside the atomic batch 2-4"},
		{txs: []string{"2 2-4", "4 2-4"}, mark: 4, kind: "tx"},
		{txs: []string{"2 2-4", "4 4-5"}, mark: 5, kind: "tx", want: "txid 4 belongs to 4-5, and what is before it to 2-4"},
	} {
		opts, err := FollowOptions{}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if c.kind != "" {
			opts.Kinds = []string{c.kind}
		}
		s, err := newStream(&Client{nc: idleConn(t), opts: Options{MinBackoff: time.Hour, MaxBackoff: time.Hour}, streams: map[*stream]struct{}{}}, 0, 0, "", opts)
		if err != nil {
			t.Fatal(err)
		}
		s.read = &activeRead{subject: "read", from: 1}
		m := packedOf("0", c.txs...)
		m.Subject = "read"
		s.onReadMessage(m)
		end := nats.NewMsg("read")
		end.Header.Set("Status", subjects.StatusEnd)
		end.Header.Set(subjects.HeaderNext, fmt.Sprint(c.mark+1))
		end.Header.Set(subjects.HeaderHighWaterMark, fmt.Sprint(c.mark))
		end.Header.Set(subjects.HeaderLast, strings.Fields(c.txs[len(c.txs)-1])[0])
		s.onReadMessage(end)
		if c.want == "" && s.lastErr != nil || c.want != "" && (s.lastErr == nil || !strings.Contains(s.lastErr.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.txs, s.lastErr, c.want)
		}
	}
}

// idleConn returns a connection to a server that delivers nothing.
func idleConn(t *testing.T) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(&silentServer{}), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// An answer that is not about all of an atomic batch is no answer.
func TestMalformedAnswersToAtomicBatches(t *testing.T) {
	for _, results := range []string{
		`{"index":0,"count":1,"txid":7,"time":"2026-11-22T09:00:00Z"}`,
		`{"index":0,"count":3,"txid":7,"time":"2026-11-22T09:00:00Z"}`,
		`{"index":1,"count":2,"txid":7,"time":"2026-11-22T09:00:00Z"}`,
		`{"index":0,"count":2,"txid":0,"time":"2026-11-22T09:00:00Z"}`,
		`{"index":0,"count":1,"txid":7,"time":"2026-11-22T09:00:00Z"},{"index":1,"count":1,"txid":8,"time":"2026-11-22T09:00:00Z"}`,
		`{"index":0,"count":2,"txid":7,"time":"2026-11-22T09:00:00Z"}`,
	} {
		s, _ := idleSender(t, Options{AttemptTimeout: time.Hour, Timeout: time.Hour})
		b := &AtomicBatch{Transactions: []*Request{{}, {}}}
		f := &Future{sender: s, id: "x", count: 2}
		if err := s.addAtomic(b.message(f, make([][]byte, 2))); err != nil {
			t.Fatal(err)
		}
		s.step(time.Now())
		a := s.inflight[0]
		good := strings.Contains(results, `"index":0,"count":2,"txid":7`)
		s.onAnswer(a, &nats.Msg{Data: []byte(`{"partition":0,"results":[` + results + `],"high_water_mark":9}`)}, nil)
		if f.completed.Load() != good || !good && (f.uncertain != 1 || f.lastErr == nil || len(s.queue) != 1) {
			t.Errorf("%s: completed %t, uncertain %d, %v", results, f.completed.Load(), f.uncertain, f.lastErr)
		}
	}
}

// A conflict that may be false is no outcome if an earlier attempt of the batch
// may have appended it.
func TestForgottenConflictOfAnAtomicBatch(t *testing.T) {
	refused := []byte(`{"partition":0,"error":{"code":409,"reason":"conflict","message":"?","conflicts":[{"lock":"a","mode":"write","txid":3,"forgotten":true}]},"high_water_mark":9}`)
	for _, before := range []bool{false, true} {
		s, _ := idleSender(t, Options{AttemptTimeout: time.Minute, Timeout: time.Hour})
		f := &Future{sender: s, id: "x", count: 2}
		b := &AtomicBatch{Transactions: []*Request{{}, {}}}
		if err := s.addAtomic(b.message(f, make([][]byte, 2))); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		s.step(now)
		if before { // it gets no answer
			now = now.Add(2 * time.Minute)
			s.step(now)
			s.step(now.Add(time.Minute))
		}
		s.onAnswer(s.inflight[0], &nats.Msg{Data: refused}, nil)
		if !f.completed.Load() || errors.Is(f.err, ErrUnknown) != before || !errors.Is(f.err, ErrConflict) {
			t.Errorf("after an attempt without an answer (%t): %v", before, f.err)
		}
	}
}

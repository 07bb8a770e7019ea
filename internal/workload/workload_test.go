package workload_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/internal/workload"
)

// TestBatchBody checks that the body of a batch message has each transaction's
// headers and payload, in order.
func TestBatchBody(t *testing.T) {
	sent := []*nats.Msg{
		workload.NewAppend(0, "first", "Nats-Msg-Id", "a", "Cantus-Write-Lock", "x", "Cantus-Write-Lock", "y"),
		workload.NewAppend(0, ""),
		workload.NewAppend(0, "third\r\n", "Cantus-Kind", "pay", "app", "own"),
	}
	var body []byte
	for _, m := range sent {
		body = workload.AppendFrame(body, m)
	}
	for i, m := range sent {
		head, size := binary.BigEndian.Uint32(body), binary.BigEndian.Uint32(body[4:])
		block, payload := body[8:8+head], body[8+head:8+head+size]
		body = body[8+head+size:]
		headers, err := nats.DecodeHeadersMsg(block)
		if err != nil {
			t.Fatalf("transaction %d: %v", i, err)
		}
		if !reflect.DeepEqual(headers, m.Header) || string(payload) != string(m.Data) {
			t.Errorf("transaction %d is %v %q, want %v %q", i, headers, payload, m.Header, m.Data)
		}
	}
	if len(body) > 0 {
		t.Errorf("the body goes on with %q", body)
	}
}

// TestSentIsStored checks that a transaction is recorded the same when it is
// sent and when it is read, and that another one is not.
func TestSentIsStored(t *testing.T) {
	sent := workload.NewAppend(0, "paid", "Nats-Msg-Id", "a", "Cantus-Kind", "pay", "Cantus-High-Water-Mark", "7",
		"Cantus-Write-Lock", "x, y", "Cantus-Read-Lock", "z", "Cantus-Append-Lock", "v", "Cantus-Append-Lock", "w", "app", "own")
	read := func(payload string, more ...string) *judge.Stored {
		return workload.StoredTransaction(workload.NewAppend(0, payload, append([]string{
			"Cantus-Txid", "9", "Cantus-Time", "2026-01-02T03:04:05.000000006Z", "Cantus-Msg-Id", "a", "Cantus-Kind", "pay",
			"Cantus-High-Water-Mark", "7", "Cantus-Write-Lock", "x,y", "Cantus-Read-Lock", "z", "Cantus-Append-Lock", "v,w",
		}, more...)...))
	}
	want := *workload.SentTransaction(sent)
	stored := read("paid", "app", "own")
	if stored.Txid != 9 || stored.Time%1e9 != 6 || !reflect.DeepEqual(stored.Transaction, want) {
		t.Errorf("read %+v, sent %+v", stored, want)
	}
	if strings.Join(want.Append, " ") != "v w" || strings.Join(want.Write, " ") != "x y" || *want.HighWaterMark != 7 {
		t.Errorf("sent %+v", want)
	}
	for what, other := range map[string]*judge.Stored{
		"another payload": read("due", "app", "own"), "another header": read("paid", "app", "other"), "a header more": read("paid", "app", "own", "b", "own"),
	} {
		if reflect.DeepEqual(other.Transaction, want) {
			t.Errorf("%s is recorded the same", what)
		}
	}
}

// TestAMoveIsRecorded checks that a cursor that moves with a transaction is
// recorded when it is sent and when it is read.
func TestAMoveIsRecorded(t *testing.T) {
	headers := []string{"Cantus-Session", "s", "Cantus-Session-Seq", "1", "Cantus-Cursor", "billing=812"}
	want := judge.Move{Cursor: "billing", Txid: 812}
	sent := workload.SentTransaction(workload.NewAppend(0, "paid", headers...))
	stored := workload.StoredTransaction(workload.NewAppend(0, "paid", append(headers, "Cantus-Txid", "9", "Cantus-Time", "2026-01-02T03:04:05Z")...))
	if sent.Move == nil || *sent.Move != want || stored.Move == nil || *stored.Move != want {
		t.Errorf("sent %+v, read %+v, want %+v", sent.Move, stored.Move, want)
	}
}

// TestHistoryIsOfItsTime checks that a history keeps what was recorded when it
// was asked for, and that a nil Recorder records nothing.
func TestHistoryIsOfItsTime(t *testing.T) {
	r := workload.NewRecorder(judge.Header{Partitions: 2})
	r.Add("c1", r.Now(), 1, &judge.Operation{Get: &judge.Get{Txid: 1}})
	h := r.History()
	r.Add("c1", r.Now(), 0, &judge.Operation{Get: &judge.Get{Txid: 2}})
	r.Drained("n1", 0, 4, "d", nil)
	if len(h.Operations) != 1 || h.Operations[0].Partition != 1 || h.Operations[0].Client != "c1" || len(h.Drains) != 0 {
		t.Errorf("recorded %+v", h)
	}
	if h = r.History(); len(h.Operations) != 2 || len(h.Drains) != 1 || h.Drains[0].HighWaterMark != 3 || h.Header.Version != judge.Version {
		t.Errorf("recorded %+v", h)
	}
	var none *workload.Recorder
	none.Add("c1", none.Now(), 0, &judge.Operation{})
	none.Drained("n1", 0, 1, "d", nil)
	if h := none.History(); len(h.Operations)+len(h.Drains) != 0 {
		t.Errorf("recorded %+v", h)
	}
}

// unreachable is a network without a server.
type unreachable struct{}

func (unreachable) Dial(string, string) (net.Conn, error) { return nil, errors.New("no server") }

// TestMixInBubble runs a mix in virtual time, without a server. Nothing is
// answered, and what is recorded says so. The bubble ends only if no goroutine
// is left.
func TestMixInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := workload.NewRecorder(judge.Header{Partitions: 2})
		o := workload.MixOptions{Partitions: 2, Seed: 1}
		for range 6 {
			c, err := workload.Dial("nats://127.0.0.1:4222", nats.SetCustomDialer(unreachable{}), nats.RetryOnFailedConnect(true))
			if err != nil {
				t.Fatal(err)
			}
			c.Recorder, c.Name = r, "c"
			o.Clients = append(o.Clients, c)
		}
		m := workload.StartMix(t.Context(), o)
		time.Sleep(time.Minute)
		m.End()
		for i, c := range o.Clients {
			if !c.Conn.IsClosed() {
				t.Errorf("client %d runs on after End", i)
			}
		}
		kinds := map[string]bool{}
		operations := r.History().Operations
		for _, op := range operations {
			kinds[fmt.Sprint(op.Append != nil, op.Batch != nil, op.Read != nil, op.Get != nil, op.Info != nil, op.Cursor != nil)] = true
			if op.Outcome != judge.Unknown || op.End < op.Start || op.End-op.Start > int64(workload.DefaultLimit) {
				t.Errorf("recorded %+v", op)
			}
		}
		if len(kinds) != 6 {
			t.Errorf("%d operations of %d kinds were recorded, want 6 kinds", len(operations), len(kinds))
		}
		if n := m.Answered(); n != 0 || m.Mark(0) != 0 {
			t.Errorf("%d requests were answered, up to %d", n, m.Mark(0))
		}
	})
}

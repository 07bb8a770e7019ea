package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

func TestAppendedComesBackWhole(t *testing.T) {
	_, c := newLog(t)
	mustAppend(t, c, client.Request{Partition: 1, Payload: []byte("first"), WriteLocks: []string{"account.42"}})
	req := client.Request{
		Partition: 1, Payload: []byte("body\x00\r\n"), Kind: "pay", ID: "my id",
		Header: nats.Header{"App": {"a", "b"}}, HighWaterMark: 1,
		WriteLocks: []string{"account.42", "account.7"}, ReadLocks: []string{"limits.>"}, AppendLocks: []string{"audit"},
	}
	r := mustAppend(t, c, req)
	if r.Txid != 2 || r.Partition != 1 || r.Duplicate || r.Time.IsZero() {
		t.Fatalf("receipt %+v", r)
	}
	got := readAll(t, c, 1)[1]
	want := fmt.Sprint("pay", "my id", uint64(1), req.WriteLocks, req.ReadLocks, req.AppendLocks, req.Header, string(req.Payload), r.Time)
	if s := fmt.Sprint(got.Kind, got.ID, got.HighWaterMark, got.WriteLocks, got.ReadLocks, got.AppendLocks, got.Header, string(got.Payload), got.Time); s != want {
		t.Errorf("read\n %s\nwant\n %s", s, want)
	}
}

func TestManyAtOnceCommitInOrderAndAreBatched(t *testing.T) {
	n := openNode(t, broker.Options{})
	nc := connect(t, n)
	c := newClient(t, nc, client.Options{MaxBatch: 100, MaxInFlight: 1000})
	const count = 5000
	receipts := appendMany(t, c, 0, count)
	for i, r := range receipts {
		if r.Txid != uint64(i+1) {
			t.Fatalf("append %d has txid %d", i, r.Txid)
		}
	}
	txs := readAll(t, c, 0)
	for i, r := range receipts {
		if !txs[i].Time.Equal(r.Time) {
			t.Fatalf("txid %d: receipt says %v, the log %v", r.Txid, r.Time, txs[i].Time)
		}
	}
	checkOnce(t, c, 0, count)
	if sent := nc.Stats().OutMsgs; sent > count/2 {
		t.Errorf("%d messages were sent for %d transactions", sent, count)
	}
}

func TestAppendersShareBatchesAndGetTheirOwnReceipts(t *testing.T) {
	_, c := newLog(t)
	ctx := soon(t)
	const workers, each = 16, 50
	var mu sync.Mutex
	by := map[string]client.Receipt{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				payload := fmt.Sprint(w*each + i)
				r, err := c.Append(ctx, &client.Request{Partition: w % 2, Payload: []byte(payload)})
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				mu.Lock()
				by[payload] = r
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for p := range 2 {
		for _, tx := range readAll(t, c, p) {
			if r := by[string(tx.Payload)]; r.Txid != tx.Txid || r.Partition != p {
				t.Errorf("payload %s is txid %d of partition %d; its receipt says %+v", tx.Payload, tx.Txid, p, r)
			}
			delete(by, string(tx.Payload))
		}
	}
	if len(by) > 0 {
		t.Errorf("%d receipts for what is not in the log", len(by))
	}
}

func TestRefusalsSayAllThatTheReplySaid(t *testing.T) {
	_, c := newLog(t)
	ctx := soon(t)
	mustAppend(t, c, client.Request{Payload: []byte("1"), WriteLocks: []string{"a"}, ID: "one"})
	mustAppend(t, c, client.Request{Payload: []byte("2"), AppendLocks: []string{"b.1"}})
	expected := uint64(1)
	for _, tt := range []struct {
		name string
		req  client.Request
		is   error
		want string // printed form of the refusal
	}{
		{"conflict", client.Request{WriteLocks: []string{"a"}, ReadLocks: []string{"b.>"}}, client.ErrConflict,
			"b.> 2 [{b.> read 2 false} {a write 1 false}] 0 mark 2"},
		{"wrong last", client.Request{ExpectedLast: &expected}, client.ErrWrongLast, " 0 [] 0 mark 2"},
		{"ahead", client.Request{HighWaterMark: 9}, client.ErrAhead, " 0 [] 0 mark 2"},
		{"id reused", client.Request{ID: "one", Payload: []byte("other")}, client.ErrIDReused, " 1 [] 0 mark 2"},
		{"too large", client.Request{Payload: make([]byte, 1_000_001)}, client.ErrTooLarge, " 0 [] 0 mark 2"},
		{"over max_payload", client.Request{Payload: make([]byte, 2<<20)}, client.ErrTooLarge, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.Append(ctx, &tt.req)
			wantErr(t, err, tt.is)
			var r *client.RefusedError
			if !errors.As(err, &r) {
				t.Fatalf("%T is no refusal", err)
			}
			said := fmt.Sprintf("%s %d %v %d mark %d", r.Lock, r.Txid, r.Conflicts, r.FirstTxid, r.HighWaterMark)
			if tt.want != "" && said != tt.want {
				t.Errorf("says %q, want %q", said, tt.want)
			}
			if r.ID == "" || r.Code != r.Reason.Code() || r.Message == "" {
				t.Errorf("incomplete: %+v", r)
			}
			var conflict *client.ConflictError
			if errors.As(err, &conflict) != errors.Is(tt.is, client.ErrConflict) {
				t.Errorf("%T: only conflicts are a *Conflict", err)
			}
		})
	}
	if n := len(readAll(t, c, 0)); n != 2 {
		t.Errorf("%d transactions in the log, want 2", n)
	}
}

// A malformed transaction is refused before it is sent: a line break in a value
// would be a header of its own, and a header with a meaning would be an
// unchecked commit.
func TestMalformedIsRefusedWithoutSending(t *testing.T) {
	n := openNode(t, broker.Options{})
	nc := connect(t, n)
	c := newClient(t, nc, client.Options{})
	many := make([]string, subjects.MaxLocks+1)
	for i := range many {
		many[i] = fmt.Sprint("l", i)
	}
	for name, req := range map[string]client.Request{
		"partition":         {Partition: -1},
		"lock":              {WriteLocks: []string{"a b"}},
		"injected lock":     {AppendLocks: []string{"a\r\nCantus-Kind: x"}},
		"read lock":         {ReadLocks: []string{""}},
		"locks":             {AppendLocks: many},
		"kind":              {Kind: "a.b"},
		"long id":           {ID: strings.Repeat("x", 129)},
		"injected id":       {ID: "x\r\nA: b"},
		"header of ours":    {Header: nats.Header{"Cantus-Write-Lock": {"a"}}},
		"header like ours":  {Header: nats.Header{"cantus-write-lock": {"a"}}},
		"unknown of ours":   {Header: nats.Header{"Cantus-Foo": {"a"}}},
		"status":            {Header: nats.Header{"Status": {"204"}}},
		"header with space": {Header: nats.Header{"A B": {"x"}}},
		"header with colon": {Header: nats.Header{"A:B": {"x"}}},
		"header no name":    {Header: nats.Header{"": {"x"}}},
		"header line end":   {Header: nats.Header{"A": {"x\ny"}}},
	} {
		before := nc.Stats().OutMsgs
		_, err := c.AppendAsync(soon(t), &req)
		if !errors.Is(err, client.ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "read lock" && !strings.Contains(err.Error(), "ReadLocks[0] is empty") {
			t.Errorf("%s: %v", name, err)
		}
		if after := nc.Stats().OutMsgs; after != before {
			t.Errorf("%s: something was sent", name)
		}
	}
}

func TestOneRefusedDoesNotStopItsBatch(t *testing.T) {
	_, c := newLog(t)
	ctx := soon(t)
	mustAppend(t, c, client.Request{Payload: []byte("x"), WriteLocks: []string{"a"}})
	var futures []*client.Future
	const count = 300
	for i := range count {
		req := &client.Request{Payload: []byte(fmt.Sprint(i))}
		if i%3 == 0 {
			req.WriteLock("a") // at mark 0
		}
		f, err := c.AppendAsync(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	next := uint64(2)
	for i, f := range futures {
		r, err := f.Wait(ctx)
		if i%3 == 0 {
			var conflict *client.ConflictError
			if !errors.As(err, &conflict) || conflict.Txid != 1 || conflict.ID != f.ID() {
				t.Fatalf("append %d: %v", i, err)
			}
			continue
		}
		if err != nil || r.Txid != next {
			t.Fatalf("append %d: %+v, %v; want txid %d", i, r, err, next)
		}
		next++
	}
}

func TestSameIDIsAppendedOnce(t *testing.T) {
	_, c := newLog(t)
	req := client.Request{Payload: []byte("0"), ID: "once"}
	first := mustAppend(t, c, req)
	again := mustAppend(t, c, req)
	if again.Txid != first.Txid || !again.Duplicate || first.Duplicate || !again.Time.Equal(first.Time) {
		t.Errorf("first %+v, again %+v", first, again)
	}
	checkOnce(t, c, 0, 1)
}

func TestKeysLeadWhereTheServerLeadsThem(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 7})
	nc := connect(t, n)
	c := newClient(t, nc, client.Options{})
	ctx := soon(t)
	for i := range 50 {
		key := fmt.Sprint("key-", i)
		want, err := c.Partition(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		m, err := nc.RequestWithContext(ctx, subjects.Names{}.AppendKey(key), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf(`{"partition":%d,`, want); !strings.HasPrefix(string(m.Data), got) {
			t.Fatalf("key %s: the client says %d, the server %s", key, want, m.Data)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	n := openNode(t, broker.Options{})
	nc := connect(t, n)
	for _, o := range []client.Options{
		{Prefix: "a b"}, {MaxInFlight: -1}, {MaxBatch: subjects.MaxBatch + 1}, {AttemptTimeout: -1}, {MaxInFlightBytes: -5},
	} {
		if _, err := client.New(nc, o); !errors.Is(err, client.ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestClosedClientTakesNothingIn(t *testing.T) {
	n := openNode(t, broker.Options{})
	c, err := client.New(connect(t, n), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(soon(t), &client.Request{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Append(soon(t), &client.Request{})
	wantErr(t, err, client.ErrClosed)
	err = c.Follow(soon(t), map[int]uint64{0: 0}, func(context.Context, *client.Transaction) error { return nil }, client.FollowOptions{})
	wantErr(t, err, client.ErrClosed)
}

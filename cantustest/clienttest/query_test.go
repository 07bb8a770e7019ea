package client_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// fillNamed appends 90 transactions of 20 KiB to partition 0: more than one
// read returns. The kinds are a, b and c in turn, the locks room.0 to room.9.
func fillNamed(t *testing.T, c *client.Client) {
	t.Helper()
	for i := range 90 {
		req := &client.Request{Kind: string(rune('a' + i%3)), AppendLocks: []string{fmt.Sprintf("room.%d", i%10)}, ID: fmt.Sprint("id", i+1), Payload: make([]byte, 20<<10)}
		if _, err := c.Append(soon(t), req); err != nil {
			t.Fatal(err)
		}
	}
}

func txidsOf(txs []*client.Transaction) (ids []uint64) {
	for _, tx := range txs {
		ids = append(ids, tx.Txid)
	}
	return ids
}

func TestQuery(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 2})
	c := newClient(t, connect(t, n), client.Options{})
	fillNamed(t, c)
	room := func(locks ...string) []subjects.QueryItem { return []subjects.QueryItem{{Locks: locks}} }
	every := func(from, to, step uint64) (ids []uint64) {
		for i := from; i <= to; i += step {
			ids = append(ids, i)
		}
		return ids
	}
	down := func(ids []uint64) []uint64 { slices.Reverse(ids); return ids }
	for name, q := range map[string]struct {
		q    client.Query
		want []uint64
		more bool
	}{
		"all":             {client.Query{}, every(1, 90, 1), false},
		"from":            {client.Query{From: 80}, every(80, 90, 1), false},
		"at the end":      {client.Query{From: 91}, nil, false},
		"max":             {client.Query{Max: 70}, every(1, 70, 1), true},
		"newest":          {client.Query{NewestFirst: true}, down(every(1, 90, 1)), false},
		"newest, max":     {client.Query{NewestFirst: true, Max: 60}, down(every(31, 90, 1)), true},
		"newest, from":    {client.Query{NewestFirst: true, From: 3}, []uint64{3, 2, 1}, false},
		"a room":          {client.Query{Items: room("room.4")}, every(5, 90, 10), false},
		"a room, newest":  {client.Query{Items: room("room.4"), NewestFirst: true}, down(every(5, 90, 10)), false},
		"a room, last":    {client.Query{Items: room("room.4"), NewestFirst: true, Max: 1}, []uint64{85}, true},
		"two rooms":       {client.Query{Items: room("room.4", "room.5")}, nil, false},
		"a room and kind": {client.Query{Items: []subjects.QueryItem{{Kinds: []string{"b"}, Locks: []string{"room.4"}}}}, every(5, 90, 30), false},
		"one of two":      {client.Query{Items: append(room("room.4"), room("room.9")...), Max: 2}, []uint64{5, 10}, true},
		"to come":         {client.Query{Since: time.Now().Add(time.Hour)}, nil, false},
	} {
		q.q.HeadersOnly = q.q.Max == 0
		f, err := c.Query(soon(t), 0, q.q)
		if err != nil || !slices.Equal(txidsOf(f.Transactions), q.want) || f.HighWaterMark != 90 || f.More != q.more {
			t.Errorf("%s: %v of %d, more %v, %v", name, txidsOf(f.Transactions), f.HighWaterMark, f.More, err)
		}
	}
	if f, err := c.Query(soon(t), 1, client.Query{NewestFirst: true}); err != nil || len(f.Transactions) > 0 || f.More {
		t.Errorf("an empty log: %+v, %v", f, err)
	}
	_, err := c.Query(soon(t), 0, client.Query{From: 92})
	wantErr(t, err, client.ErrAhead)
	_, err = c.Query(soon(t), 0, client.Query{Items: []subjects.QueryItem{{}}})
	wantErr(t, err, client.ErrBadRequest)
	_, err = c.Query(soon(t), 2, client.Query{})
	wantErr(t, err, client.ErrNoPartition)
	if tx, err := c.ByID(soon(t), 0, "id7"); err != nil || tx.Txid != 7 {
		t.Errorf("%+v, %v", tx, err)
	}
	_, err = c.ByID(soon(t), 0, "id91")
	wantErr(t, err, client.ErrNotFound)
}

// What is lost on the way is read again, and nothing comes twice.
func TestQueriesAreWhole(t *testing.T) {
	log := cantustest.New(t, cantustest.Options{})
	c := log.NewClient(t, client.Options{AttemptTimeout: time.Second})
	fillNamed(t, c)
	for _, fault := range []cantustest.Fault{
		cantustest.LosePart(1), cantustest.LosePart(2), cantustest.LosePart(3), cantustest.LoseAnswer(), cantustest.Drop(), cantustest.NoResponders(),
		cantustest.RefuseAs(subjects.Busy), cantustest.RefuseAs(subjects.Unavailable),
	} {
		for _, newest := range []bool{false, true} {
			log.FailNext(1, cantustest.Read, fault)
			var got []uint64
			for tx, err := range c.Read(soon(t), 0, client.Query{NewestFirst: newest}) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, tx.Txid)
			}
			if newest {
				slices.Reverse(got)
			}
			if len(got) != 90 || got[0] != 1 || got[89] != 90 || !slices.IsSorted(got) {
				t.Errorf("%+v: %v", fault, got)
			}
		}
	}
}

// A read from the newest on ends where the log was trimmed.
func TestQueryOfATrimmedLog(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 1, MsgIDWindow: time.Second})
	nc := connect(t, n)
	c := newClient(t, nc, client.Options{})
	fillNamed(t, c)
	var r subjects.TrimReply
	testkit.Until(t, "the log is trimmed", func() bool { // once its message ids no longer count
		m, err := nc.Request(subjects.Names{}.Admin("trim", "0"), []byte(`{"before":40}`), time.Minute)
		if err != nil || json.Unmarshal(m.Data, &r) != nil {
			t.Fatal(err)
		}
		return r.FirstTxid > 1
	})
	first := r.FirstTxid
	f, err := c.Query(soon(t), 0, client.Query{NewestFirst: true})
	if ids := txidsOf(f.Transactions); err != nil || len(ids) != 91-int(first) || ids[len(ids)-1] != first || !f.More {
		t.Errorf("%v, more %v, %v", ids, f.More, err)
	}
	_, err = c.Query(soon(t), 0, client.Query{From: 1})
	wantErr(t, err, client.ErrTrimmed)
	_, err = c.Query(soon(t), 0, client.Query{From: 1, NewestFirst: true})
	wantErr(t, err, client.ErrTrimmed)
}

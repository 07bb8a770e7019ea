package client_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
)

func cursor(t testing.TB, c *client.Client, name string) *client.Cursor {
	t.Helper()
	k, err := c.Cursor(0, name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestCursorIsComparedAndSet(t *testing.T) {
	_, c := newLog(t)
	appendMany(t, c, 0, 20)
	k, ctx := cursor(t, c, "billing"), soon(t)
	pos, err := k.Get(ctx)
	if err != nil || pos != (client.Position{HighWaterMark: 20}) {
		t.Fatalf("never set: %+v, %v", pos, err)
	}
	set, err := k.Move(ctx, 7, 0)
	if err != nil || set.Txid != 7 || set.Time.IsZero() {
		t.Fatalf("%+v, %v", set, err)
	}
	if pos, err = k.Get(ctx); err != nil || pos != set {
		t.Fatalf("%+v, %v; want %+v", pos, err, set)
	}
	_, err = k.Move(ctx, 9, 0)
	wantErr(t, err, client.ErrWrongLast)
	var elsewhere *client.CursorMismatchError
	if !errors.As(err, &elsewhere) || elsewhere.Position != set {
		t.Fatalf("%v tells of %+v; want %+v", err, elsewhere, set)
	}
	// To its present position: only the time changes.
	again, err := k.Move(ctx, 7, 7)
	if err != nil || !again.Time.After(set.Time) {
		t.Fatalf("%+v, %v; first %+v", again, err, set)
	}
	_, err = k.Set(ctx, 21)
	wantErr(t, err, client.ErrAhead)
	if pos, err = k.Set(ctx, 0); err != nil || pos.Txid != 0 {
		t.Fatalf("%+v, %v", pos, err)
	}
	for _, name := range []string{"", "a.b", strings.Repeat("x", 65)} {
		_, err = c.Cursor(0, name)
		wantErr(t, err, client.ErrOptions)
	}
	_, err = c.Cursor(-1, "a")
	wantErr(t, err, client.ErrOptions)
}

// Each goroutine increments the cursor a number of times. None overwrites an
// increment of another.
func TestMoversOfACursorDoNotOverwriteEachOther(t *testing.T) {
	n, c := newLog(t)
	const movers, each = 4, 10
	appendMany(t, c, 0, movers*each)
	var wg sync.WaitGroup
	for range movers {
		k := cursor(t, newClient(t, connect(t, n), client.Options{}), "shared")
		wg.Go(func() {
			at := uint64(0)
			for done := 0; done < each; {
				pos, err := k.Move(soon(t), at+1, at)
				var elsewhere *client.CursorMismatchError
				switch {
				case err == nil:
					done++
				case errors.As(err, &elsewhere):
					pos = elsewhere.Position
				default:
					t.Error(err)
					return
				}
				at = pos.Txid
			}
		})
	}
	wg.Wait()
	if pos, err := cursor(t, c, "shared").Get(soon(t)); err != nil || pos.Txid != movers*each {
		t.Errorf("%+v, %v", pos, err)
	}
}

// The first answer is lost, so the second attempt finds the cursor already
// moved.
func TestUnansweredMoveIsFoundDone(t *testing.T) {
	n := openNode(t, broker.Options{})
	wire, lost := connect(t, n), false
	_, err := wire.Subscribe(proxied+".cursor.0.*", func(m *nats.Msg) {
		answer, err := wire.Request("cantus"+strings.TrimPrefix(m.Subject, proxied), m.Data, patience)
		if err != nil {
			t.Error(err)
			return
		}
		if !lost {
			lost = true
			return
		}
		if err := m.RespondMsg(&nats.Msg{Header: answer.Header, Data: answer.Data}); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Flush(); err != nil {
		t.Fatal(err)
	}
	appendMany(t, newClient(t, connect(t, n), client.Options{}), 0, 5)
	opts := quick
	opts.Prefix = proxied
	k := cursor(t, newClient(t, connect(t, n), opts), "a")
	if pos, err := k.Move(soon(t), 5, 0); err != nil || pos.Txid != 5 || !lost {
		t.Fatalf("%+v, %v", pos, err)
	}
	_, err = k.Move(soon(t), 5, 4) // a refusal that was not preceded by a lost answer is a mismatch
	wantErr(t, err, client.ErrWrongLast)
}

func TestCursorOfAPartitionThatIsNotThere(t *testing.T) {
	_, c := newLog(t)
	k, err := c.Cursor(7, "a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Get(soon(t))
	wantErr(t, err, client.ErrNoPartition)
}

func TestGetGivesOneTransaction(t *testing.T) {
	_, c := newLog(t)
	for i := range 3 {
		mustAppend(t, c, client.Request{Payload: fmt.Append(nil, i), AppendLocks: []string{fmt.Sprintf("a.%d", i%2)}})
	}
	tx, err := c.Get(soon(t), 0, 2)
	if err != nil || tx.Txid != 2 || string(tx.Payload) != "1" {
		t.Fatalf("%+v, %v", tx, err)
	}
	for lock, txid := range map[string]uint64{"a.0": 3, "a.1": 2, "a.>": 3} {
		if tx, err = c.LastWriter(soon(t), 0, lock); err != nil || tx.Txid != txid {
			t.Errorf("%s: %+v, %v", lock, tx, err)
		}
	}
	_, err = c.LastWriter(soon(t), 0, "b")
	wantErr(t, err, client.ErrNotFound)
	_, err = c.Get(soon(t), 0, 4)
	wantErr(t, err, client.ErrAhead)
}

package client_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// counted folds how many transactions there are.
func counted(n int, _ *client.Transaction) (int, error) { return n + 1, nil }

// After a conflict the decision is made again, with what is new and once with
// each transaction, whichever condition or lock was the cause.
func TestDecideAfterAConflict(t *testing.T) {
	_, c := newLog(t)
	items := []subjects.QueryItem{{Locks: []string{"a"}}}
	for what, between := range map[string]client.Request{
		"the query":        {AppendLocks: []string{"a"}},
		"a condition more": {AppendLocks: []string{"b"}},
		"a read lock":      {AppendLocks: []string{"c"}},
	} {
		before, err := c.Query(soon(t), 0, client.Query{Items: items})
		if err != nil {
			t.Fatal(err)
		}
		var states []int
		receipt, err := client.Decide(soon(t), c, items, counted, func(n int, req *client.Request) error {
			if states = append(states, n); len(states) == 1 {
				mustAppend(t, c, between)
			}
			req.Unless = append(req.Unless, subjects.QueryItem{Locks: []string{"b"}})
			req.ReadLock("c")
			req.AppendLock("a")
			req.Set("", nil)
			return nil
		}, client.DecideOptions{})
		first := len(before.Transactions)
		want := []int{first, first}
		if between.AppendLocks[0] == "a" {
			want[1]++
		}
		if err != nil || receipt.Txid == 0 || fmt.Sprint(states) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, %v: the states were %v, want %v", what, receipt, err, states, want)
		}
	}
}

// What decide adds to the condition stays out of the caller's items, which
// other decisions may share.
func TestDecideLeavesTheItemsAlone(t *testing.T) {
	_, c := newLog(t)
	items := append(make([]subjects.QueryItem, 0, 2), subjects.QueryItem{Locks: []string{"a"}})
	if _, err := client.Decide(soon(t), c, items, counted, func(_ int, req *client.Request) error {
		req.Unless = append(req.Unless, subjects.QueryItem{Locks: []string{"b"}})
		req.Set("", nil)
		return nil
	}, client.DecideOptions{}); err != nil {
		t.Fatal(err)
	}
	if beyond := items[:2][1]; beyond.Locks != nil {
		t.Errorf("the items' memory has %v", beyond)
	}
}

func TestDecideAppendsNothing(t *testing.T) {
	_, c := newLog(t)
	mustAppend(t, c, client.Request{AppendLocks: []string{"a"}})
	items := []subjects.QueryItem{{Locks: []string{"a"}}}
	errOwn := errors.New("own")
	nothing := func(int, *client.Request) error { return nil }
	conflicting := func(_ int, req *client.Request) error {
		mustAppend(t, c, client.Request{AppendLocks: []string{"a"}})
		req.Set("mine", nil)
		return nil
	}
	for what, d := range map[string]struct {
		items  []subjects.QueryItem
		fold   func(int, *client.Transaction) (int, error)
		decide func(int, *client.Request) error
		opts   client.DecideOptions
		want   error
	}{
		"nothing set":    {items: items, decide: nothing, want: client.ErrNothing},
		"decide fails":   {items: items, decide: func(int, *client.Request) error { return errOwn }, want: errOwn},
		"fold fails":     {items: items, fold: func(int, *client.Transaction) (int, error) { return 0, errOwn }, decide: nothing, want: errOwn},
		"no items":       {decide: nothing, want: client.ErrOptions},
		"an empty item":  {items: make([]subjects.QueryItem, 1), decide: nothing, want: client.ErrBadRequest},
		"no partition":   {items: items, decide: nothing, opts: client.DecideOptions{Partition: 2}, want: client.ErrNoPartition},
		"bad attempts":   {items: items, decide: nothing, opts: client.DecideOptions{MaxAttempts: -1}, want: client.ErrOptions},
		"bad timeout":    {items: items, decide: nothing, opts: client.DecideOptions{Timeout: -1}, want: client.ErrOptions},
		"never the last": {items: items, decide: conflicting, opts: client.DecideOptions{MaxAttempts: 3}, want: client.ErrAttempts},
	} {
		if d.fold == nil {
			d.fold = counted
		}
		receipt, err := client.Decide(soon(t), c, d.items, d.fold, d.decide, d.opts)
		if !errors.Is(err, d.want) || receipt.Txid != 0 {
			t.Errorf("%s: %+v, %v, want %v", what, receipt, err, d.want)
		}
	}
	for _, tx := range readAll(t, c, 0) {
		if tx.Kind == "mine" {
			t.Errorf("txid %d was appended", tx.Txid)
		}
	}
}

// The query stays the condition, whatever decide sets: here another writer
// appends what it selects after the first attempt has read.
func TestADecisionKeepsItsQuery(t *testing.T) {
	_, c := newLog(t)
	query := []subjects.QueryItem{{Kinds: []string{"reserved"}, Locks: []string{"desk.1"}}}
	for name, set := range map[string]func(req *client.Request){
		"nothing": func(*client.Request) {},
		"another": func(req *client.Request) { req.Unless = []subjects.QueryItem{{Kinds: []string{"none"}}} },
		"one more": func(req *client.Request) {
			req.Unless = append(req.Unless, subjects.QueryItem{Kinds: []string{"none"}})
		},
		"a mark too high": func(req *client.Request) { req.HighWaterMark++ },
	} {
		var seen []int
		_, err := client.Decide(soon(t), c, query, counted, func(n int, req *client.Request) error {
			if seen = append(seen, n); len(seen) == 1 {
				rival := &client.Request{AppendLocks: []string{"desk.1"}}
				rival.Set("reserved", nil)
				if _, err := c.Append(soon(t), rival); err != nil {
					t.Fatal(err)
				}
			}
			req.Set("reserved", nil)
			req.AppendLock("desk.1")
			set(req)
			return nil
		}, client.DecideOptions{})
		if err != nil || len(seen) != 2 || seen[1] != seen[0]+1 {
			t.Errorf("%s: decided with %v transactions: %v", name, seen, err)
		}
	}
}

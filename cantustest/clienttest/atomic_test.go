package client_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// booking returns an atomic batch of n transactions with the payloads 0, 1 and
// so on, which record the append lock "booked".
func booking(n int) *client.AtomicBatch {
	b := new(client.AtomicBatch)
	for i := range n {
		b.Add("room", fmt.Append(nil, i)).AppendLock("booked")
	}
	return b
}

func mustAppendAtomic(t testing.TB, c *client.Client, b *client.AtomicBatch) client.AtomicReceipt {
	t.Helper()
	r, err := c.AppendAtomic(soon(t), b)
	if err != nil {
		t.Fatalf("append an atomic batch of %d: %v", len(b.Transactions), err)
	}
	return r
}

func TestAppendAtomic(t *testing.T) {
	_, c := newLog(t)
	mustAppend(t, c, client.Request{AppendLocks: []string{"a"}})
	last := uint64(1)
	b := &client.AtomicBatch{HighWaterMark: 1, ID: "booking", ExpectedLast: &last, Unless: []subjects.QueryItem{{Kinds: []string{"desk"}}}}
	b.Add("desk", []byte("one")).WriteLock("desk.12")
	two := b.Add("", []byte("two"))
	two.ReadLock("a")
	two.WriteLock("desk.12")
	two.Header = nats.Header{"X-App": {"own"}}
	b.Add("desk", nil)
	r := mustAppendAtomic(t, c, b)
	all := readAll(t, c, 0)
	if r.Partition != 0 || r.First != 2 || r.Last != 4 || !r.Time.Equal(all[1].Time) || r.Duplicate {
		t.Errorf("receipt %+v, the first at %v", r, all[1].Time)
	}
	whole := client.AtomicRange{First: 2, Last: 4}
	for i, want := range []client.Transaction{
		{Txid: 1, Kind: "tx", AppendLocks: []string{"a"}},
		{Txid: 2, Kind: "desk", Payload: []byte("one"), WriteLocks: []string{"desk.12"}, ID: "booking", HighWaterMark: 1, Atomic: whole},
		{Txid: 3, Kind: "tx", Payload: []byte("two"), WriteLocks: []string{"desk.12"}, ReadLocks: []string{"a"}, HighWaterMark: 1, Atomic: whole, Header: nats.Header{"X-App": {"own"}}},
		{Txid: 4, Kind: "desk", HighWaterMark: 1, Atomic: whole},
	} {
		one, err := c.Get(soon(t), 0, want.Txid)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range []*client.Transaction{all[i], one} {
			if i == 0 {
				want.ID = got.ID
			}
			if got.Kind != want.Kind || string(got.Payload) != string(want.Payload) || got.ID != want.ID || got.HighWaterMark != want.HighWaterMark || got.Atomic != want.Atomic ||
				!slices.Equal(got.WriteLocks, want.WriteLocks) || !slices.Equal(got.ReadLocks, want.ReadLocks) || !slices.Equal(got.AppendLocks, want.AppendLocks) || got.Header.Get("X-App") != want.Header.Get("X-App") {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		}
	}
	r.Duplicate = true
	if again := mustAppendAtomic(t, c, b); again != r {
		t.Errorf("a repeat: %+v, want %+v", again, r)
	}
	// One transaction is an append.
	if r := mustAppendAtomic(t, c, booking(1)); r.First != 5 || r.Last != 5 {
		t.Errorf("one transaction: %+v", r)
	}
	if tx := readAll(t, c, 0)[4]; tx.Atomic != (client.AtomicRange{}) || tx.ID == "" {
		t.Errorf("one transaction is %+v", tx)
	}
	for ctx := soon(t); c.Pending() != 0; runtime.Gosched() { // it is counted after the receipt is there
		if ctx.Err() != nil {
			t.Fatalf("%d are pending", c.Pending())
		}
	}
}

// A refusal concerns the batch, and has all that the answer says.
func TestAtomicBatchIsRefused(t *testing.T) {
	_, c := newLog(t)
	mustAppend(t, c, client.Request{AppendLocks: []string{"a"}})
	mustAppend(t, c, client.Request{AppendLocks: []string{"b"}, Kind: "order"})
	wrong := uint64(7)
	for what, change := range map[string]func(b *client.AtomicBatch){
		"lock":      func(b *client.AtomicBatch) { b.Transactions[2].WriteLock("b") },
		"condition": func(b *client.AtomicBatch) { b.Unless = []subjects.QueryItem{{Kinds: []string{"order"}}} },
		"last":      func(b *client.AtomicBatch) { b.ExpectedLast = &wrong },
	} {
		b := booking(3)
		b.HighWaterMark, b.ID = 1, what
		change(b)
		_, err := c.AppendAtomic(soon(t), b)
		var conflict *client.ConflictError
		var refused *client.RefusedError
		switch {
		case !errors.As(err, &refused) || refused.ID != what || refused.Partition != 0 || refused.HighWaterMark != 2:
			t.Errorf("%s: %v, %+v", what, err, refused)
		case what == "last" && !errors.Is(err, client.ErrWrongLast):
			t.Errorf("%s: %v", what, err)
		case what != "last" && (!errors.As(err, &conflict) || conflict.Txid != 2):
			t.Errorf("%s: %v", what, err)
		case what == "lock" && conflict.Lock != "b", what == "condition" && conflict.Unless == nil:
			t.Errorf("%s: %+v", what, conflict)
		}
	}
	b := booking(2)
	b.ID = "used"
	mustAppendAtomic(t, c, b)
	b.Transactions[1].Payload = []byte("other")
	if _, err := c.AppendAtomic(soon(t), b); !errors.Is(err, client.ErrIDReused) {
		t.Errorf("the id was used: %v", err)
	}
	if all := readAll(t, c, 0); len(all) != 4 {
		t.Errorf("%d transactions: a refused batch was appended", len(all))
	}
}

func TestAtomicBatchesAreChecked(t *testing.T) {
	n, c := newLog(t)
	one := uint64(1)
	large := strings.Repeat("x", 300_000)
	for text, b := range map[string]*client.AtomicBatch{
		"it has no transactions":                                            {},
		"transaction 2 of the atomic batch: it is":                          {Transactions: []*client.Request{{}, nil}},
		"has 5001 transactions: at most 5000":                               {Transactions: make([]*client.Request, subjects.MaxBatch+1)},
		"its Partition is 1, and that of the batch 0: leave it out":         {Transactions: []*client.Request{{Partition: 1}}},
		"it has HighWaterMark, which is given for the whole batch":          {Transactions: []*client.Request{{HighWaterMark: 1}}},
		"it has Unless, which is given for the whole batch":                 {Transactions: []*client.Request{{Unless: []subjects.QueryItem{{Kinds: []string{"a"}}}}}},
		"it has ID, which is given for the whole batch: set AtomicBatch.ID": {Transactions: []*client.Request{{ID: "1"}}},
		"it has ExpectedLast, which is given for the whole batch":           {Transactions: []*client.Request{{ExpectedLast: &one}}},
		"transaction 1 of the atomic batch: WriteLocks[0] is empty":         {Transactions: []*client.Request{{WriteLocks: []string{""}}}},
		"partition -1":             {Partition: -1, Transactions: []*client.Request{{}}},
		"Unless[0] has neither":    {Unless: []subjects.QueryItem{{}}, Transactions: []*client.Request{{}}},
		`header "Cantus-Atomic"`:   {Transactions: []*client.Request{{Header: nats.Header{"Cantus-Atomic": {"true"}}}}},
		"value must not contain":   {ID: "a\nb", Transactions: []*client.Request{{}}},
		"takes at most 1048576 (i": {Transactions: []*client.Request{{Payload: []byte(large)}, {Payload: []byte(large)}, {Payload: []byte(large)}, {Payload: []byte(large)}}},
	} {
		_, err := c.AppendAtomic(soon(t), b)
		var refused *client.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Message, strings.TrimPrefix(text, "it ")) || refused.HighWaterMark != 0 {
			t.Errorf("want %q, got %v", text, err)
		}
	}
	if _, err := c.AppendAtomic(soon(t), &client.AtomicBatch{Partition: 99, Transactions: []*client.Request{{}}}); !errors.Is(err, client.ErrNoPartition) {
		t.Errorf("a partition that does not exist: %v", err)
	}
	if all := readAll(t, c, 0); len(all) != 0 {
		t.Errorf("%d transactions", len(all))
	}
	await(t, "nothing is pending", func() bool { return c.Pending() == 0 }) // it is counted after the outcome is there
	small := newClient(t, connect(t, n), client.Options{MaxInFlightBytes: 1000, FailWhenFull: true, MaxBatchBytes: 1000})
	b := &client.AtomicBatch{Transactions: []*client.Request{{Payload: []byte(large)}, {Payload: []byte(large)}}}
	if r := mustAppendAtomic(t, small, b); r.Last != 2 {
		t.Errorf("a batch above the limits of other batches: %+v", r)
	}
}

// Whatever becomes of messages, each batch is in the log once and whole, and
// its receipt says where.
func TestAtomicBatchesOnceUnderEachFault(t *testing.T) {
	for f := pass; f < faults; f++ {
		t.Run(faultNames[f], func(t *testing.T) {
			p, faulty, direct := newProxy(t, quick, first(3, f))
			const count = 20
			for i := range count {
				b := booking(3)
				b.Transactions[0].Payload = fmt.Append(nil, i)
				r := mustAppendAtomic(t, faulty, b)
				if want := uint64(3*i + 1); r.First != want || r.Last != want+2 {
					t.Fatalf("batch %d is %+v", i, r)
				}
				tx := mustGet(t, direct, r.First)
				if string(tx.Payload) != fmt.Sprint(i) || tx.Atomic != (client.AtomicRange{First: r.First, Last: r.Last}) || !tx.Time.Equal(r.Time) {
					t.Errorf("batch %d is %+v", i, tx)
				}
			}
			if all := readAll(t, direct, 0); len(all) != 3*count {
				t.Errorf("%d transactions", len(all))
			}
			if f != pass && f != twice && p.messages() == count {
				t.Error("no message met the fault")
			}
		})
	}
}

func mustGet(t testing.TB, c *client.Client, txid uint64) *client.Transaction {
	t.Helper()
	tx, err := c.Get(soon(t), 0, txid)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// While atomic batches alone are refused, others are appended.
func TestAppendsDoNotWaitForARefusedAtomicBatch(t *testing.T) {
	atomicOnly := func(m *nats.Msg) fault {
		if m.Header.Get(subjects.HeaderAtomic) != "" {
			return unavail
		}
		return pass
	}
	opts := quick
	opts.MinBackoff, opts.MaxBackoff = patience, patience
	p, faulty, _ := newProxy(t, opts, atomicOnly)
	ctx, cancel := context.WithCancel(soon(t))
	defer cancel()
	refused := make(chan error)
	go func() {
		_, err := faulty.AppendAtomic(ctx, booking(2))
		refused <- err
	}()
	for p.messages() == 0 {
		mustAppend(t, faulty, client.Request{Partition: 1})
	}
	for range 5 {
		mustAppend(t, faulty, client.Request{})
	}
	cancel()
	if err := <-refused; !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrUnknown) || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("the batch: %v", err)
	}
}

func TestAtomicBatchWithUnknownOutcome(t *testing.T) {
	opts := quick
	opts.Timeout = opts.AttemptTimeout
	_, faulty, direct := newProxy(t, opts, always(lose))
	b := booking(2)
	b.ID = "lost"
	_, err := faulty.AppendAtomic(soon(t), b)
	var unknown *client.UnknownOutcomeError
	if !errors.As(err, &unknown) || unknown.ID != "lost" {
		t.Fatalf("the answer is lost: %v", err)
	}
	if tx, err := direct.ByID(soon(t), 0, "lost"); err != nil || tx.Atomic != (client.AtomicRange{First: 1, Last: 2}) {
		t.Errorf("%+v, %v", tx, err)
	}
}

// sizes are the numbers of transactions that atomicLog appends together.
var sizes = []int{1, 3, 1, 1, 2, 100, 7, 1, 400, 2, 2, 1}

// spansOf returns the txids of what atomicLog appends after a txid.
func spansOf(after uint64) (spans []client.AtomicRange) {
	for _, n := range sizes {
		spans = append(spans, client.AtomicRange{First: after + 1, Last: after + uint64(n)})
		after += uint64(n)
	}
	return spans
}

// atomicLog appends transactions and atomic batches after a txid, and calls
// each after each of them.
func atomicLog(t *testing.T, c *client.Client, after uint64, each func(last uint64)) {
	t.Helper()
	for _, s := range spansOf(after) {
		b := new(client.AtomicBatch)
		for txid := s.First; txid <= s.Last; txid++ {
			b.Add(kindIn(s, txid), []byte(strings.Repeat("x", 500)))
		}
		if r := mustAppendAtomic(t, c, b); r.First != s.First || r.Last != s.Last {
			t.Fatalf("%+v is not %+v", r, s)
		}
		each(s.Last)
	}
}

// kindIn returns the kind of a transaction of atomicLog.
func kindIn(s client.AtomicRange, txid uint64) string {
	return []string{"even", "odd"}[(txid-s.First)%2]
}

// A handler of several transactions gets atomic batches in one piece, from
// reads and from the feed, with and without a filter. No position is inside
// what it gets of one.
func TestBatchHandlerGetsWholeAtomicBatches(t *testing.T) {
	for _, kinds := range [][]string{nil, {"even"}, {"odd"}} {
		for _, most := range []int{1, 5, 256} {
			t.Run(fmt.Sprint(kinds, most), func(t *testing.T) {
				_, c := newLog(t)
				spans := spansOf(0)
				half := spans[len(spans)-1].Last
				spans = append(spans, spansOf(half)...)
				inside := func(txid uint64) bool { // and something that passes is on both sides
					return slices.ContainsFunc(spans, func(s client.AtomicRange) bool {
						first, last := s.First, s.Last
						for kinds != nil && first <= last && kindIn(s, first) != kinds[0] {
							first++
						}
						for kinds != nil && first <= last && kindIn(s, last) != kinds[0] {
							last--
						}
						return first <= txid && txid < last
					})
				}
				atomicLog(t, c, 0, func(uint64) {})
				var f *client.Follower
				expected := uint64(0) // the least txid that may come
				f, err := c.NewBatchFollower(client.Positions{0: 0}, func(_ context.Context, txs []*client.Transaction) error {
					if at := f.Applied(0); inside(at) {
						t.Errorf("position %d is inside an atomic batch", at)
					}
					wholes := 0
					for i := 0; i < len(txs); {
						k := slices.IndexFunc(spans, func(s client.AtomicRange) bool { return s.First <= txs[i].Txid && txs[i].Txid <= s.Last })
						s := spans[k]
						want := client.AtomicRange{}
						if s.First < s.Last {
							want = s
						}
						wholes++
						for txid := s.First; txid <= s.Last; txid++ {
							if kinds != nil && kinds[0] != kindIn(s, txid) {
								continue
							}
							if i == len(txs) || txs[i].Txid != txid || txs[i].Atomic != want || txid < expected {
								t.Fatalf("txid %d of %+v is missing", txid, s)
							}
							i++
						}
						expected = s.Last + 1
					}
					if len(txs) > most && wholes > 1 {
						t.Errorf("%d transactions at once", len(txs))
					}
					return nil
				}, client.FollowOptions{MaxBatch: most, Kinds: kinds, BufferBytes: 64 << 10})
				if err != nil {
					t.Fatal(err)
				}
				run(t, f)
				applied := func(txid uint64) {
					if err := f.Wait(soon(t), 0, txid); err != nil {
						t.Fatal(err)
					}
				}
				applied(half)
				atomicLog(t, c, half, applied) // from the feed
			})
		}
	}
}

// An atomic batch that is larger than all that a follower buffers arrives.
func TestAtomicBatchLargerThanTheBuffer(t *testing.T) {
	_, c := newLog(t)
	b := new(client.AtomicBatch)
	for range 9 {
		b.Add("", []byte(strings.Repeat("x", 100_000)))
	}
	mustAppend(t, c, client.Request{})
	r := mustAppendAtomic(t, c, b)
	got := 0
	f, err := c.NewBatchFollower(client.Positions{0: 0}, func(_ context.Context, txs []*client.Transaction) error {
		got = max(got, len(txs))
		return nil
	}, client.FollowOptions{BufferBytes: 64 << 10, MaxBatch: 2})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	if err := f.Wait(soon(t), 0, r.Last); err != nil || got != 9 {
		t.Errorf("%d came together: %v", got, err)
	}
	testkit.Until(t, "nothing is buffered", func() bool { return f.Progress(0).Buffered == 0 })
}

// A handler that fails in an atomic batch gets all of it again, as does one
// that gets one transaction at a time once it runs again.
func TestFailuresInAtomicBatches(t *testing.T) {
	_, c := newLog(t)
	mustAppend(t, c, client.Request{})
	mustAppendAtomic(t, c, booking(3))
	mustAppend(t, c, client.Request{})
	broken := errors.New("broken")
	var calls [][]uint64
	record := func(txs []*client.Transaction) {
		var txids []uint64
		for _, tx := range txs {
			txids = append(txids, tx.Txid)
		}
		calls = append(calls, txids)
	}
	failures := 2
	var asked []string
	f, err := c.NewBatchFollower(client.Positions{0: 0}, func(_ context.Context, txs []*client.Transaction) error {
		record(txs)
		for _, tx := range txs {
			if tx.Txid == 3 && failures > 0 {
				failures--
				return broken
			}
		}
		return nil
	}, client.FollowOptions{OnError: func(tx *client.Transaction, err error, attempt int) client.Decision {
		asked = append(asked, fmt.Sprint(tx.Txid, attempt, errors.Is(err, broken)))
		return client.DecideRetry
	}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	if err := f.Wait(soon(t), 0, 5); err != nil {
		t.Fatal(err)
	}
	if want := "[[1 2 3 4 5] [1] [2 3 4] [2 3 4] [5]]"; fmt.Sprint(calls) != want || fmt.Sprint(asked) != "[2 1 true]" {
		t.Errorf("calls %v, want %s; asked %v", calls, want, asked)
	}

	calls, failures = nil, 1
	done := make(chan struct{})
	single, err := c.NewFollower(client.Positions{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		record([]*client.Transaction{tx})
		if tx.Txid == 3 && failures > 0 {
			failures--
			return broken
		}
		if tx.Txid == 5 {
			close(done)
		}
		return nil
	}, client.FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := single.Run(soon(t)); !errors.Is(err, broken) || !strings.Contains(err.Error(), "txid 3") {
		t.Errorf("stopped by %v", err)
	}
	if at := single.Applied(0); at != 1 {
		t.Errorf("stopped at %d", at)
	}
	run(t, single)
	select {
	case <-done:
	case <-soon(t).Done():
		t.Fatal("it does not go on")
	}
	if want := "[[1] [2] [3] [2] [3] [4] [5]]"; fmt.Sprint(calls) != want {
		t.Errorf("calls %v, want %s", calls, want)
	}
}

// Decisions and computations that make several transactions are repeated after
// a conflict, like those that make one.
func TestDecideAtomic(t *testing.T) {
	_, c := newLog(t)
	items := []subjects.QueryItem{{Locks: []string{"booked"}}}
	mustAppend(t, c, client.Request{AppendLocks: []string{"booked"}})
	var states []int
	r, err := client.DecideAtomic(soon(t), c, items, counted, func(n int, b *client.AtomicBatch) error {
		if states = append(states, n); n == 1 {
			mustAppend(t, c, client.Request{AppendLocks: []string{"booked"}})
		}
		b.Transactions = booking(2).Transactions
		return nil
	}, client.DecideOptions{})
	if err != nil || r.First != 3 || r.Last != 4 || fmt.Sprint(states) != "[1 2]" {
		t.Errorf("%+v, %v after the states %v", r, err, states)
	}
	if tx := mustGet(t, c, 4); tx.Atomic != (client.AtomicRange{First: 3, Last: 4}) || tx.HighWaterMark != 2 {
		t.Errorf("%+v", tx)
	}
	own := errors.New("own")
	for what, d := range map[string]func(b *client.AtomicBatch) error{
		"nothing":  func(*client.AtomicBatch) error { return nil },
		"an error": func(*client.AtomicBatch) error { return own },
		"another's conflict": func(b *client.AtomicBatch) error {
			b.Add("", nil)
			_, err := c.Append(soon(t), &client.Request{WriteLocks: []string{"booked"}})
			return errors.Join(own, err)
		},
	} {
		calls, want := 0, own
		if what == "nothing" {
			want = client.ErrNothing
		}
		r, err := client.DecideAtomic(soon(t), c, items, counted, func(_ int, b *client.AtomicBatch) error {
			calls++
			return d(b)
		}, client.DecideOptions{})
		if r != (client.AtomicReceipt{}) || !errors.Is(err, want) || calls != 1 {
			t.Errorf("%s: %+v, %v after %d calls", what, r, err, calls)
		}
		one, err := client.Decide(soon(t), c, items, counted, func(_ int, req *client.Request) error {
			calls++
			return d(new(client.AtomicBatch))
		}, client.DecideOptions{})
		if one != (client.Receipt{}) || !errors.Is(err, want) || calls != 2 {
			t.Errorf("%s: %+v, %v after %d calls", what, one, err, calls)
		}
	}
}

func TestTransactAtomic(t *testing.T) {
	n, c := newLog(t)
	transactor, b, _ := newTransactor(t, n, client.TransactorOptions{WaitApplied: true})
	mustAppend(t, c, client.Request{Payload: []byte("a=5 b=5"), WriteLocks: []string{"a", "b"}})
	calls := 0
	r, err := transactor.TransactAtomic(soon(t), 0, func(batch *client.AtomicBatch) error {
		if calls++; calls == 1 {
			mustAppend(t, c, client.Request{Payload: []byte("b=7"), HighWaterMark: 1, WriteLocks: []string{"b"}})
		}
		batch.Add("", fmt.Appendf(nil, "a=%d", b.get("a")-1)).WriteLock("a")
		batch.Add("", fmt.Appendf(nil, "b=%d", b.get("b")+1)).WriteLock("b")
		return nil
	})
	if err != nil || r.First != 3 || r.Last != 4 || b.get("a") != 4 || b.get("b") != 8 || calls < 2 {
		t.Errorf("%+v, %v: a is %d, b is %d after %d calls", r, err, b.get("a"), b.get("b"), calls)
	}
	if r, err := transactor.TransactAtomic(soon(t), 0, func(*client.AtomicBatch) error { return nil }); !errors.Is(err, client.ErrNothing) || r != (client.AtomicReceipt{}) {
		t.Errorf("nothing to do: %+v, %v", r, err)
	}
	conflict := func() error {
		_, err := c.Append(soon(t), &client.Request{WriteLocks: []string{"a"}})
		return err
	}
	calls = 0
	if _, err := transactor.Transact(soon(t), 0, func(*client.Request) error { calls++; return conflict() }); !errors.Is(err, client.ErrConflict) || calls != 1 {
		t.Errorf("another's conflict: %v after %d calls", err, calls)
	}
}

package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// follow runs a follower until the test ends. It returns a function that
// returns the transactions that its handler got.
func follow(t testing.TB, c *client.Client, after map[int]uint64, opts client.FollowOptions) (*client.Follower, func(partition int) []*client.Transaction) {
	t.Helper()
	var mu sync.Mutex
	seen := map[int][]*client.Transaction{}
	f, err := c.NewFollower(after, func(_ context.Context, tx *client.Transaction) error {
		mu.Lock()
		defer mu.Unlock()
		seen[tx.Partition] = append(seen[tx.Partition], tx)
		return nil
	}, opts)
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	return f, func(partition int) []*client.Transaction {
		mu.Lock()
		defer mu.Unlock()
		return seen[partition]
	}
}

// run runs a follower until the test ends.
func run(t testing.TB, f *client.Follower) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// checkSeen checks that a handler saw txids 1 to n, each once and in order.
func checkSeen(t testing.TB, seen []*client.Transaction, n int) {
	t.Helper()
	for i, tx := range seen {
		if tx.Txid != uint64(i+1) {
			t.Fatalf("txid %d came where %d was next", tx.Txid, i+1)
		}
	}
	if len(seen) != n {
		t.Fatalf("the handler saw %d transactions, want %d", len(seen), n)
	}
}

func TestFollowerGoesFromTheBeginningToTheFeed(t *testing.T) {
	_, c := newLog(t)
	appendMany(t, c, 0, 500)
	f, seen := follow(t, c, map[int]uint64{0: 0, 1: 0}, client.FollowOptions{})
	if err := f.Wait(soon(t), 0, 500); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		for p := range 2 {
			r := mustAppend(t, c, client.Request{Partition: p, Payload: []byte(fmt.Sprint(i))})
			if err := f.Wait(soon(t), p, r.Txid); err != nil {
				t.Fatal(err)
			}
			if g := f.Progress(p); g.Applied != r.Txid || g.HighWaterMark != r.Txid || g.Err != nil {
				t.Fatalf("progress %+v at txid %d", g, r.Txid)
			}
		}
	}
	checkSeen(t, seen(0), 700)
	checkSeen(t, seen(1), 200)
}

// The follower's connection is closed again and again while others append.
func TestFollowerMissesNothingThroughDisconnects(t *testing.T) {
	n := openNode(t, broker.Options{})
	c := newClient(t, connect(t, n), client.Options{})
	nc := connect(t, n)
	// Neither a timeout nor a silent feed causes a read, only the reconnect.
	f, seen := follow(t, newClient(t, nc, client.Options{AttemptTimeout: time.Hour}), map[int]uint64{0: 0}, client.FollowOptions{IdleTimeout: time.Hour})
	const count = 400
	for i := range count {
		mustAppend(t, c, client.Request{Payload: []byte(fmt.Sprint(i))})
		if i%10 == 0 {
			if err := nc.ForceReconnect(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Wait(soon(t), 0, count); err != nil {
		t.Fatal(err)
	}
	checkSeen(t, seen(0), count)
}

// withoutFeed returns a client that receives nothing of the feed, its
// connection, and a client that appends. Timeouts do not help the first client.
func withoutFeed(t *testing.T) (unfed *client.Client, nc *nats.Conn, c *client.Client) {
	t.Helper()
	n := openNode(t, broker.Options{})
	wire, nc := connect(t, n), connect(t, n)
	_, err := wire.Subscribe(proxied+".read.*", func(m *nats.Msg) {
		_ = wire.PublishRequest("cantus"+strings.TrimPrefix(m.Subject, proxied), m.Reply, m.Data) // fails when the test is over
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Flush(); err != nil {
		t.Fatal(err)
	}
	unfed = newClient(t, nc, client.Options{Prefix: proxied, AttemptTimeout: time.Hour})
	return unfed, nc, newClient(t, connect(t, n), client.Options{})
}

func TestReconnectHealsALostLastTransaction(t *testing.T) {
	unfed, nc, c := withoutFeed(t)
	f, seen := follow(t, unfed, map[int]uint64{0: 0}, client.FollowOptions{IdleTimeout: time.Hour})
	const count = 20
	for range count {
		r := mustAppend(t, c, client.Request{})
		if err := nc.ForceReconnect(); err != nil {
			t.Fatal(err)
		}
		if err := f.Wait(soon(t), 0, r.Txid); err != nil {
			t.Fatal(err)
		}
	}
	checkSeen(t, seen(0), count)
}

func TestSilenceIsNotTakenForTheEnd(t *testing.T) {
	unfed, _, c := withoutFeed(t)
	f, seen := follow(t, unfed, map[int]uint64{0: 0}, client.FollowOptions{IdleTimeout: 10 * time.Millisecond})
	const count = 20
	for range count {
		r := mustAppend(t, c, client.Request{})
		if err := f.Wait(soon(t), 0, r.Txid); err != nil {
			t.Fatal(err)
		}
	}
	checkSeen(t, seen(0), count)
}

// noise relays reads and the feed of a node to the prefix "proxied", and drops,
// repeats and refuses some at random.
func noise(t *testing.T, nc *nats.Conn, random *rand.Rand) {
	t.Helper()
	var mu sync.Mutex
	chance := func(n int) bool {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n) == 0
	}
	relay := func(m *nats.Msg, to string, header nats.Header) {
		for copies := 1; copies > 0; copies-- {
			if chance(50) {
				continue
			}
			if chance(50) {
				copies++
			}
			_ = nc.PublishMsg(&nats.Msg{Subject: to, Header: header, Data: m.Data}) // fails when the test is over
		}
	}
	subscribe := func(subject string, handle nats.MsgHandler) {
		if _, err := nc.Subscribe(subject, handle); err != nil {
			t.Fatal(err)
		}
	}
	subscribe("cantus.packed.*", func(m *nats.Msg) {
		relay(m, proxied+strings.TrimPrefix(m.Subject, "cantus"), m.Header)
	})
	subscribe(proxied+".read.*", func(m *nats.Msg) {
		if chance(10) {
			reason := []subjects.Reason{subjects.Busy, subjects.Unavailable, subjects.Internal}[len(m.Data)%3]
			_ = nc.PublishMsg(&nats.Msg{Subject: m.Reply, Header: nats.Header{subjects.HeaderErrorCode: {"1"}},
				Data: []byte(`{"error":{"code":503,"reason":"` + string(reason) + `","message":"?"}}`)})
			return
		}
		inbox := nc.NewInbox()
		var sub *nats.Subscription
		sub, err := nc.Subscribe(inbox, func(r *nats.Msg) {
			relay(r, m.Reply, r.Header)
			if r.Header.Get("Status") != "" || r.Header.Get(subjects.HeaderErrorCode) != "" {
				_ = r.Sub.Unsubscribe()
			}
		})
		if err == nil {
			_ = sub.SetPendingLimits(-1, -1)
			_ = nc.PublishRequest("cantus"+strings.TrimPrefix(m.Subject, proxied), inbox, m.Data)
		}
	})
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestFollowerMissesNothingOnANoisyWire(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := openNode(t, broker.Options{})
	c := newClient(t, connect(t, n), client.Options{})
	noise(t, connect(t, n), rand.New(rand.NewPCG(seed, 0)))
	opts := quick
	// An abandoned read is still relayed to its end. With a timeout shorter
	// than a busy machine takes to relay a read, the follower would never catch
	// up.
	opts.Prefix, opts.AttemptTimeout = proxied, 2*time.Second
	noisy := newClient(t, connect(t, n), opts)
	f, seen := follow(t, noisy, map[int]uint64{0: 0}, client.FollowOptions{IdleTimeout: 20 * time.Millisecond, BufferBytes: 64 << 10})
	const count = 1200
	appendMany(t, c, 0, count/2)
	for i := range count / 2 {
		mustAppend(t, c, client.Request{Payload: []byte(fmt.Sprint(i))})
	}
	if err := f.Wait(soon(t), 0, count); err != nil {
		t.Fatal(err)
	}
	checkSeen(t, seen(0), count)
}

func TestFiltersDecideAsTheNodeDoes(t *testing.T) {
	for _, filter := range []struct {
		opts client.FollowOptions
		asks func(i int) bool
	}{
		{client.FollowOptions{Kinds: []string{"k1", "k2"}, Lock: "account.2"}, func(i int) bool { return (i%4 == 1 || i%4 == 2) && i%3 == 2 }},
		{client.FollowOptions{Items: []subjects.QueryItem{
			{Kinds: []string{"k1"}, Locks: []string{"account.2", "even.>"}}, {Locks: []string{"account.0", "odd"}}, {Kinds: []string{"k3"}},
		}}, func(i int) bool { return i%3 == 0 && i%2 == 1 || i%4 == 3 }},
		{client.FollowOptions{Lock: "account.1", Items: []subjects.QueryItem{{Kinds: []string{"k0", "k1"}, Locks: []string{"even.0"}}}}, func(i int) bool { return i%3 == 1 && i%4 == 0 }},
	} {
		testFilter(t, filter.opts, filter.asks)
	}
}

// testFilter follows with a filter, by reads and by the feed, and compares what
// comes with what the filter asks for.
func testFilter(t *testing.T, filters client.FollowOptions, asks func(i int) bool) {
	t.Helper()
	_, c := newLog(t)
	write := func(i int) {
		mustAppend(t, c, client.Request{
			Payload: []byte(fmt.Sprint(i)), Kind: fmt.Sprint("k", i%4), Header: nats.Header{"I": {fmt.Sprint(i)}},
			AppendLocks: []string{fmt.Sprintf("account.%d", i%3), []string{"even.0", "odd"}[i%2]},
		})
	}
	const half = 60
	for i := range half {
		write(i)
	}
	filters.HeadersOnly = true
	f, seen := follow(t, c, map[int]uint64{0: 0}, filters)
	if err := f.Wait(soon(t), 0, half); err != nil { // by reads
		t.Fatal(err)
	}
	for i := half; i < 2*half; i++ { // by the feed
		write(i)
	}
	if err := f.Wait(soon(t), 0, 2*half); err != nil {
		t.Fatal(err)
	}
	got := seen(0)
	for i := range 2 * half {
		if !asks(i) {
			continue
		}
		if len(got) == 0 || got[0].Header.Get("I") != fmt.Sprint(i) || got[0].Txid != uint64(i+1) || len(got[0].Payload) > 0 {
			t.Fatalf("transaction %d: the handler saw %+v", i, got)
		}
		got = got[1:]
	}
	if len(got) > 0 {
		t.Fatalf("and %d more: %+v", len(got), got[0])
	}
}

func TestSlowHandlerHoldsUpItsPartitionOnly(t *testing.T) {
	_, c := newLog(t)
	stuck := make(chan struct{})
	f, err := c.NewFollower(map[int]uint64{0: 0, 1: 0}, func(ctx context.Context, tx *client.Transaction) error {
		if tx.Partition == 0 {
			<-stuck
		}
		return nil
	}, client.FollowOptions{BufferBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	defer close(stuck)
	const count = 2000 // far more than the blocked one's buffer
	for p := range 2 {
		appendMany(t, c, p, count)
	}
	if err := f.Wait(soon(t), 1, count); err != nil {
		t.Fatal(err)
	}
	if g := f.Progress(0); g.Applied != 0 {
		t.Errorf("the stuck partition is at %+v", g)
	}
}

// Two followers of one partition share a connection. One of them is blocked for
// a while, and gets everything in the end.
func TestSlowFollowerDoesNotSlowOthers(t *testing.T) {
	_, c := newLog(t)
	const before, count = 2000, 4000 // many times the slow one's buffer
	appendMany(t, c, 0, before)
	release, next := make(chan struct{}), uint64(1)
	slow, err := c.NewFollower(map[int]uint64{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		<-release
		if tx.Txid != next {
			t.Errorf("txid %d came where %d was next", tx.Txid, next)
		}
		next++
		return nil
	}, client.FollowOptions{BufferBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	run(t, slow)
	f, seen := follow(t, c, map[int]uint64{0: 0}, client.FollowOptions{})
	appendMany(t, c, 0, count-before)
	if err := f.Wait(soon(t), 0, count); err != nil {
		t.Fatal(err)
	}
	checkSeen(t, seen(0), count)
	if g := slow.Progress(0); g.Applied != 0 || g.Buffered > 128<<10 {
		t.Errorf("the slow one is at %+v", g)
	}
	close(release)
	if err := slow.Wait(soon(t), 0, count); err != nil {
		t.Fatal(err)
	}
}

func TestPoisonIsDecidedUpon(t *testing.T) {
	poison := errors.New("poison")
	for _, tt := range []struct {
		name     string
		decision func(attempt int) client.Decision
		handled  int // of partition 0, the poison included
		stops    bool
	}{
		{"stop", func(int) client.Decision { return client.DecideStop }, 3, true},
		{"no OnError", nil, 3, true},
		{"skip", func(int) client.Decision { return client.DecideSkip }, 5, false},
		{"retry and stop", func(n int) client.Decision {
			if n < 4 {
				return client.DecideRetry
			}
			return client.DecideStop
		}, 6, true},
		{"retry and skip", func(n int) client.Decision {
			if n < 4 {
				return client.DecideRetry
			}
			return client.DecideSkip
		}, 8, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, c := newLog(t)
			for p := range 2 {
				appendMany(t, c, p, 5)
			}
			handled := make([]int, 2) // one goroutine each
			stopped := make(chan error, 2)
			opts := client.FollowOptions{
				OnStop:     func(p int, err error) { stopped <- fmt.Errorf("partition %d: %w", p, err) },
				MinBackoff: time.Millisecond,
			}
			if tt.decision != nil {
				opts.OnError = func(tx *client.Transaction, err error, attempt int) client.Decision {
					if tx.Txid != 3 || !errors.Is(err, poison) {
						t.Errorf("asked about %d, %v", tx.Txid, err)
					}
					return tt.decision(attempt)
				}
			}
			f, err := c.NewFollower(map[int]uint64{0: 0, 1: 0}, func(_ context.Context, tx *client.Transaction) error {
				handled[tx.Partition]++
				if tx.Partition == 0 && string(tx.Payload) == "2" {
					return poison
				}
				return nil
			}, opts)
			if err != nil {
				t.Fatal(err)
			}
			ctx, end := context.WithCancel(soon(t))
			ran := make(chan error, 1)
			go func() { ran <- f.Run(ctx) }()
			if err := f.Wait(soon(t), 1, 5); err != nil {
				t.Fatal(err)
			}
			err = f.Wait(soon(t), 0, 5)
			if tt.stops {
				wantErr(t, err, poison)
				wantErr(t, <-stopped, poison)
				wantErr(t, f.Progress(0).Err, poison)
				if f.Applied(0) != 2 {
					t.Errorf("stopped behind %d", f.Applied(0))
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if handled[0] != tt.handled || handled[1] != 5 {
				t.Errorf("handled %v times, want %d and 5", handled, tt.handled)
			}
			// The other partition goes on.
			r := mustAppend(t, c, client.Request{Partition: 1})
			if err := f.Wait(soon(t), 1, r.Txid); err != nil {
				t.Fatal(err)
			}
			end()
			err = <-ran
			wantErr(t, err, context.Canceled)
			if errors.Is(err, poison) != tt.stops {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

func TestStoppedFollowerGoesOnWhereItWas(t *testing.T) {
	_, c := newLog(t)
	appendMany(t, c, 0, 10)
	var seen []*client.Transaction
	broken, last := errors.New("broken"), make(chan struct{})
	f, err := c.NewFollower(map[int]uint64{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		if tx.Txid == 6 && len(seen) == 5 {
			seen = append(seen, nil)
			return broken
		}
		if seen = append(seen, tx); tx.Txid == 10 {
			close(last)
		}
		return nil
	}, client.FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, f.Run(soon(t)), broken)
	if p := f.Positions(); len(p) != 1 || p[0] != 5 {
		t.Fatalf("positions %v", p)
	}
	run(t, f)
	<-last
	if len(seen) != 11 || seen[6].Txid != 6 || seen[10].Txid != 10 {
		t.Errorf("the handler saw %d", len(seen))
	}
}

// A follower that is far behind reads as fast as its handler works, and buffers
// no more than BufferBytes.
func TestFarBehindCatchesUpInBoundedMemory(t *testing.T) {
	_, c := newLog(t)
	const count, size, buffer = 3000, 4096, 256 << 10
	ctx := soon(t)
	var futures []*client.Future
	for range count {
		f, err := c.AppendAsync(ctx, &client.Request{Payload: make([]byte, size)})
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	waitAll(t, futures)
	var f *client.Follower
	most := 0
	f, err := c.NewFollower(map[int]uint64{0: 0}, func(context.Context, *client.Transaction) error {
		most = max(most, f.Progress(0).Buffered)
		return nil
	}, client.FollowOptions{BufferBytes: buffer})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	if err := f.Wait(ctx, 0, count); err != nil {
		t.Fatal(err)
	}
	if over := buffer + buffer/8; most > over || most < size { // headers count too
		t.Errorf("up to %d bytes were held; the buffer is %d", most, buffer)
	}
}

func TestFollowingWhatIsNotThereEnds(t *testing.T) {
	_, c := newLog(t)
	err := c.Follow(soon(t), map[int]uint64{0: 99}, func(context.Context, *client.Transaction) error { return nil }, client.FollowOptions{})
	wantErr(t, err, client.ErrAhead)
	var r *client.RefusedError
	if !errors.As(err, &r) || r.Partition != 0 || r.Reason != subjects.Ahead {
		t.Errorf("%v", err)
	}
	f, _ := follow(t, c, map[int]uint64{0: 0}, client.FollowOptions{})
	wantErr(t, f.Wait(soon(t), 1, 1), client.ErrNotFollowed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, f.Wait(ctx, 0, 1), context.Canceled)
	for _, err := range c.All(ctx, 0, 0, client.FollowOptions{}) {
		wantErr(t, err, context.Canceled)
	}
}

func TestFollowOptionsAreChecked(t *testing.T) {
	_, c := newLog(t)
	for _, o := range []client.FollowOptions{{BufferBytes: 1}, {Kinds: []string{"a.b"}}, {Lock: "a b"}, {IdleTimeout: -1}, {Items: make([]subjects.QueryItem, 1)}, {Items: make([]subjects.QueryItem, 17)}} {
		if _, err := c.NewFollower(nil, nil, o); !errors.Is(err, client.ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

package cantustest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

// soon returns a context that ends a test that would hang.
var soon = testkit.Soon

// quick are options for tests in which attempts fail.
var quick = client.Options{AttemptTimeout: 100 * time.Millisecond, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond}

// wantPayloads checks that partition 0 contains exactly these payloads.
func wantPayloads(t *testing.T, l *cantustest.Log, want ...string) {
	t.Helper()
	all, err := l.Transactions(soon(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, tx := range all {
		got = append(got, string(tx.Payload))
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("the log holds %v, want %v", got, want)
	}
}

func TestClientsSeeALogUnderTheUsualPrefix(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{Partitions: 3})
	c := l.NewClient(t, client.Options{})
	ctx := soon(t)
	if n, err := c.Partitions(ctx); err != nil || n != 3 {
		t.Fatalf("%d partitions, %v", n, err)
	}
	r, err := c.Append(ctx, &client.Request{Payload: []byte("a"), WriteLocks: []string{"x"}, ID: "mine"})
	if err != nil || r.Txid != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	var conflict *client.ConflictError
	if _, err = c.Append(ctx, &client.Request{WriteLocks: []string{"x"}}); !errors.As(err, &conflict) || conflict.Txid != 1 {
		t.Fatalf("%v", err)
	}
	nc, err := l.Connect()
	if err != nil {
		t.Fatal(err)
	}
	feed, err := nc.SubscribeSync("cantus.feed.1.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(ctx, &client.Request{Partition: 1, Payload: []byte("b"), Kind: "pay"}); err != nil {
		t.Fatal(err)
	}
	m, err := feed.NextMsgWithContext(ctx)
	if err != nil || m.Subject != "cantus.feed.1.pay" || m.Header.Get(subjects.HeaderMsgID) != "cantus.1.1" {
		t.Fatalf("on the feed: %+v, %v", m, err)
	}
	if m, err = nc.RequestWithContext(ctx, "cantus.get.1", []byte(`{"txid":1}`)); err != nil || m.Header.Get(subjects.HeaderMsgID) != "cantus.1.1" {
		t.Fatalf("got: %+v, %v", m, err)
	}
	if _, err = nc.RequestWithContext(ctx, "cantus.append.3", nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Fatalf("a partition that is not there: %v", err)
	}
	if m, err = nc.RequestWithContext(ctx, "cantus.append.key.alice", nil); err != nil || len(m.Data) == 0 {
		t.Fatalf("by key: %v", err)
	}
	wantPayloads(t, l, "a")
}

func TestAppendsMeetFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		fault cantustest.Fault
		sends int // until the client has a receipt; 0 for more than one
	}{
		"none":          {cantustest.Fault{}, 1},
		"busy":          {cantustest.RefuseAs(subjects.Busy), 2},
		"unknown":       {cantustest.RefuseAs(subjects.Unknown), 2},
		"nobody":        {cantustest.NoResponders(), 2},
		"dropped":       {cantustest.Drop(), 0},
		"answer lost":   {cantustest.LoseAnswer(), 0},
		"twice":         {cantustest.Repeat(), 1},
		"answer twice":  {cantustest.RepeatAnswer(), 1},
		"delayed":       {cantustest.Delay(time.Millisecond), 1},
		"answered late": {cantustest.DelayAnswer(time.Millisecond), 1},
		"answered as":   {cantustest.AnswerAs(subjects.Unknown), 2},
		"garbled":       {cantustest.GarbleAnswer(), 2},
		"kept":          {cantustest.LateAnswer(), 0},
	} {
		t.Run(name, func(t *testing.T) {
			opts := quick
			if tt.sends > 0 { // no need to wait for silence
				opts.AttemptTimeout = time.Minute
			}
			// The advisory that the log has begun to serve may come now, and have
			// the client send once more. It does not come each time.
			seen := 0
			for try := 0; try == 0 || try < 5 && tt.sends > 0 && seen > tt.sends; try++ {
				l := cantustest.New(t, cantustest.Options{})
				c := l.NewClient(t, opts)
				l.FailNext(1, cantustest.Append, tt.fault)
				for i := range 2 {
					if _, err := c.Append(soon(t), &client.Request{Payload: fmt.Append(nil, i)}); err != nil {
						t.Fatal(err)
					}
					if i == 0 {
						seen = l.Seen(cantustest.Append)
					}
				}
				wantPayloads(t, l, "0", "1")
			}
			if seen != tt.sends && (tt.sends > 0 || seen < 2) {
				t.Errorf("sent %d times, want %d", seen, tt.sends)
			}
		})
	}
}

func TestRefusedSaysWhatTheTestSays(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	l.FailNext(1, cantustest.Append, cantustest.RefuseConflict("account.42", 7))
	_, err := c.Append(soon(t), &client.Request{})
	var conflict *client.ConflictError
	if !errors.As(err, &conflict) || conflict.Txid != 7 || conflict.Lock != "account.42" || len(conflict.Conflicts) != 1 {
		t.Fatalf("%v", err)
	}
	l.FailNext(1, cantustest.Append, cantustest.RefuseAs(subjects.IDReused))
	if _, err = c.Append(soon(t), &client.Request{}); !errors.Is(err, client.ErrIDReused) {
		t.Fatal(err)
	}
	k, err := c.Cursor(0, "a")
	if err != nil {
		t.Fatal(err)
	}
	l.FailNext(1, cantustest.Cursor, cantustest.RefuseAs(subjects.Ahead))
	if _, err = k.Set(soon(t), 0); !errors.Is(err, client.ErrAhead) {
		t.Fatal(err)
	}
	l.FailNext(1, cantustest.Info, cantustest.RefuseAs(subjects.Unavailable))
	if _, err = c.HighWaterMark(soon(t), 0); err != nil {
		t.Fatal(err)
	}
	l.FailNext(1, cantustest.Get, cantustest.RefuseAs(subjects.Trimmed))
	if _, err = c.Get(soon(t), 0, 1); !errors.Is(err, client.ErrTrimmed) {
		t.Fatal(err)
	}
	l.FailNext(1, cantustest.Read, cantustest.RefuseAs(subjects.Trimmed))
	if err = c.Follow(soon(t), map[int]uint64{0: 0}, nil, client.FollowOptions{}); !errors.Is(err, client.ErrTrimmed) {
		t.Fatal(err)
	}
	if n := l.Seen(cantustest.Read); n != 1 {
		t.Errorf("%d reads", n)
	}
}

// Faults of the feed and of reads are not visible to a follower.
func TestFollowerGetsAllThroughFaults(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, quick)
	n := 0
	l.FailFunc(cantustest.Feed, func(*nats.Msg) cantustest.Fault {
		n++
		return []cantustest.Fault{{}, cantustest.Drop(), cantustest.Repeat(), cantustest.Delay(time.Millisecond)}[n%4]
	})
	l.FailNext(3, cantustest.Read, cantustest.LoseAnswer())
	const count = 200
	next, all := uint64(1), make(chan struct{})
	ctx, stop := context.WithCancel(soon(t))
	followed := make(chan error)
	go func() {
		followed <- c.Follow(ctx, map[int]uint64{0: 0}, func(_ context.Context, tx *client.Transaction) error {
			if tx.Txid != next {
				t.Errorf("txid %d came where %d was next", tx.Txid, next)
			}
			if next++; next > count {
				close(all)
			}
			return nil
		}, client.FollowOptions{IdleTimeout: 10 * time.Millisecond})
	}()
	for i := range count {
		if _, err := c.Append(ctx, &client.Request{}); err != nil {
			t.Fatal(err)
		}
		switch i {
		case 50:
			l.Disconnect()
		case 100:
			if err := l.Restart(ctx); err != nil {
				t.Fatal(err)
			}
		case 150:
			l.Block()
			go l.Unblock()
		}
	}
	<-all
	stop()
	<-followed
}

func TestHeldIsReleased(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	release := make(chan struct{})
	l.FailNext(1, cantustest.Append, cantustest.Hold(release))
	f, err := c.AppendAsync(soon(t), &client.Request{Payload: []byte("held")})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Await(soon(t), cantustest.Append, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(soon(t), &client.Request{Payload: []byte("free")}); err != nil {
		t.Fatal(err)
	}
	wantPayloads(t, l, "free")
	close(release)
	if r, err := f.Wait(soon(t)); err != nil || r.Txid != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestCutOffClientsAreNotAnswered(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{Timeout: 50 * time.Millisecond})
	l.Block()
	if _, err := c.Append(soon(t), &client.Request{Payload: []byte("lost")}); err == nil {
		t.Fatal("appended while blocked")
	}
	l.Unblock()
	// What was in flight may be appended or not; the next one is.
	testkit.Until(t, "an append is answered", func() bool {
		_, err := c.Append(soon(t), &client.Request{Payload: []byte("x")})
		return err == nil
	})
}

func TestClosedLogGivesNothing(t *testing.T) {
	l, err := cantustest.Open(soon(t), cantustest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Client(client.Options{}); err == nil {
		t.Error("a client of a closed log")
	}
}

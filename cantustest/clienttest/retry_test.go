package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

func TestExactlyOnceUnderEachFault(t *testing.T) {
	for f := pass; f < faults; f++ {
		t.Run(faultNames[f], func(t *testing.T) {
			_, faulty, direct := newProxy(t, quick, first(3, f))
			const count = 100
			appendMany(t, faulty, 0, count)
			checkOnce(t, direct, 0, count)
		})
	}
}

func TestExactlyOnceUnderRandomFaultsAndReconnects(t *testing.T) {
	p, nc := openFaultyProxy(t)
	opts := quick
	opts.Prefix, opts.MaxInFlight = proxied, 50
	faulty, direct := newClient(t, nc, opts), p.direct()
	const count = 1500
	receipts := appendMany(t, faulty, 1, count)
	txs := readAll(t, direct, 1)
	for i, r := range receipts {
		if tx := txs[r.Txid-1]; string(tx.Payload) != fmt.Sprint(i) {
			t.Fatalf("the receipt of %d says txid %d, which is %s", i, r.Txid, tx.Payload)
		}
	}
	checkOnce(t, direct, 1, count)
}

// Without a timeout, only the reconnect makes the client resend what was in
// flight.
func TestReconnectSendsAgain(t *testing.T) {
	p := openProxy(t, always(pass))
	nc := p.connect()
	lost := 3
	p.fail(func(*nats.Msg) fault {
		if lost--; lost < 0 {
			return pass
		}
		if lost == 0 {
			if err := nc.ForceReconnect(); err != nil {
				t.Error(err)
			}
		}
		return swallow
	})
	c := newClient(t, nc, client.Options{Prefix: proxied, AttemptTimeout: time.Hour, Timeout: time.Hour, MaxBatch: 1})
	appendMany(t, c, 0, 10)
	checkOnce(t, p.direct(), 0, 10)
}

// If a message is refused as a whole because of one transaction, the others
// commit.
func TestOneRefusalDoesNotFailTheBatch(t *testing.T) {
	for _, reason := range []subjects.Reason{subjects.TooLarge, subjects.BadRequest} {
		t.Run(string(reason), func(t *testing.T) {
			p, faulty, direct := newProxy(t, quick, always(pass))
			p.log.FailFunc(cantustest.Append, func(m *nats.Msg) cantustest.Fault {
				if strings.Contains(string(m.Data), "\r\n\r\n7\x00") || strings.HasSuffix(string(m.Data), "\r\n\r\n7") {
					return cantustest.RefuseMessage(subjects.Errorf(reason, "the test asked for this"))
				}
				return cantustest.Fault{}
			})
			ctx := soon(t)
			var futures []*client.Future
			const count = 40
			for i := range count {
				f, err := faulty.AppendAsync(ctx, &client.Request{Payload: []byte(fmt.Sprint(i))})
				if err != nil {
					t.Fatal(err)
				}
				futures = append(futures, f)
			}
			for i, f := range futures {
				_, err := f.Wait(ctx)
				if i == 7 {
					var r *client.RefusedError
					if !errors.As(err, &r) || r.Reason != reason {
						t.Errorf("append 7: %v", err)
					}
				} else if err != nil {
					t.Errorf("append %d: %v", i, err)
				}
			}
			if got := len(readAll(t, direct, 0)); got != count-1 {
				t.Errorf("%d transactions in the log, want %d", got, count-1)
			}
		})
	}
}

func TestFinalRefusalsAreNotSentAgain(t *testing.T) {
	for _, reason := range []subjects.Reason{
		subjects.BadRequest, subjects.Conflict, subjects.WrongLast, subjects.Ahead, subjects.TooLarge, subjects.IDReused, "later_4xx",
	} {
		t.Run(string(reason), func(t *testing.T) {
			p, faulty, _ := newProxy(t, quick, always(pass))
			e := subjects.Errorf(reason, "no")
			if reason == "later_4xx" {
				e.Code = 418
			}
			p.log.FailFunc(cantustest.Append, func(*nats.Msg) cantustest.Fault { return cantustest.Refuse(e) })
			_, err := faulty.Append(soon(t), &client.Request{Payload: []byte("x")})
			var r *client.RefusedError
			if !errors.As(err, &r) || r.Reason != reason {
				t.Fatalf("error %v", err)
			}
			if errors.Is(err, client.ErrUnknown) || p.messages() != 1 {
				t.Errorf("%v after %d messages", err, p.messages())
			}
		})
	}
}

// The only attempt is answered long before the deadline, and the next one is
// due long after it: what is known at the deadline depends on the answer alone.
func TestDeadlineSaysWhetherTheOutcomeIsKnown(t *testing.T) {
	testkit.NotShort(t, "it waits for deadlines")
	answered := client.Options{Timeout: time.Second, AttemptTimeout: patience, MinBackoff: time.Hour, MaxBackoff: time.Hour}
	silent := client.Options{Timeout: time.Second, AttemptTimeout: 40 * time.Millisecond, MinBackoff: time.Millisecond}
	outcomes := map[fault]bool{
		swallow: false, lose: false, unknown: false, internal: false, garble: false, strange: false,
		busy: true, unavail: true, full: true, nobody: true,
	}
	futures := map[fault]*client.Future{}
	for f := range outcomes { // wait for all first: their deadlines are the same
		opts := answered
		if f == swallow || f == lose {
			opts = silent
		}
		_, faulty, _ := newProxy(t, opts, always(f))
		var err error
		if futures[f], err = faulty.AppendAsync(soon(t), &client.Request{Payload: []byte("x"), ID: "mine"}); err != nil {
			t.Fatal(err)
		}
	}
	for f, known := range outcomes {
		t.Run(faultNames[f], func(t *testing.T) {
			_, err := futures[f].Wait(soon(t))
			wantErr(t, err, client.ErrTimeout)
			var u *client.UnknownOutcomeError
			if known == errors.As(err, &u) {
				t.Fatalf("known is %v, and the error %v", known, err)
			}
			if !known && u.ID != "mine" {
				t.Errorf("the error's id is %q", u.ID)
			}
			if reason, ok := refusals[f]; ok {
				var r *client.RefusedError
				if !errors.As(err, &r) || r.Reason != reason {
					t.Errorf("%v does not say %s", err, reason)
				}
			}
			if f == nobody {
				wantErr(t, err, client.ErrNoLeader)
			}
		})
	}
}

func TestCancelOfWhatWasSentIsUnknown(t *testing.T) {
	came := make(chan struct{}, 1)
	_, faulty, _ := newProxy(t, client.Options{}, func(*nats.Msg) fault { came <- struct{}{}; return swallow })
	ctx, cancel := context.WithCancel(soon(t))
	go func() { <-came; cancel() }()
	_, err := faulty.Append(ctx, &client.Request{Payload: []byte("x")})
	wantErr(t, err, client.ErrUnknown)
	wantErr(t, err, context.Canceled)
}

func TestCancelOfWhatWasNotSentKeepsItFromBeingSent(t *testing.T) {
	release := make(chan struct{})
	opts := client.Options{MaxBatch: 1, AttemptTimeout: patience, Timeout: patience}
	p, held, direct := newProxy(t, opts, func(*nats.Msg) fault { <-release; return pass })
	var futures []*client.Future
	for i := range 3 { // as many as may be in flight: the next one waits
		f, err := held.AppendAsync(soon(t), &client.Request{Payload: []byte(fmt.Sprint(i))})
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	ctx, cancel := context.WithCancel(soon(t))
	_, err := held.Append(cancelledOnWait{ctx, cancel}, &client.Request{Payload: []byte("cancelled")})
	wantErr(t, err, context.Canceled)
	if errors.Is(err, client.ErrUnknown) {
		t.Errorf("it can't have been sent, and the outcome is said to be unknown: %v", err)
	}
	close(release)
	waitAll(t, futures)
	checkOnce(t, direct, 0, 3)
	if n := p.messages(); n != 3 {
		t.Errorf("%d messages were sent, of three transactions", n)
	}
}

// cancelledOnWait is a context that is cancelled when it is first waited for.
type cancelledOnWait struct {
	context.Context
	cancel func()
}

func (c cancelledOnWait) Done() <-chan struct{} {
	c.cancel()
	return c.Context.Done()
}

// The receipts of a batch arrive while their waiters give up. Each waiter gets
// either a complete receipt or an error.
func TestCancelBesideTheAnswer(t *testing.T) {
	_, c := newLog(t)
	for range 50 {
		ctx, cancel := context.WithCancel(soon(t))
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				r, err := c.Append(ctx, &client.Request{})
				cancel()
				if err == nil && (r.Txid == 0 || r.Time.IsZero()) {
					t.Errorf("appended, and the receipt is %+v", r)
				}
			})
		}
		wg.Wait()
		cancel()
	}
}

func TestNobodyThereIsWaitedFor(t *testing.T) {
	n := openNode(t, broker.Options{})
	opts := quick
	opts.Prefix = proxied
	nc := connect(t, n)
	faulty, direct := newClient(t, nc, opts), newClient(t, connect(t, n), client.Options{})
	f, err := faulty.AppendAsync(soon(t), &client.Request{Payload: []byte("0")})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "nobody answered", func() bool { return nc.Stats().InMsgs > 0 })
	relay := connect(t, n)
	if _, err := relay.Subscribe(proxied+".batch.*", func(m *nats.Msg) {
		m.Subject, m.Sub = "cantus"+strings.TrimPrefix(m.Subject, proxied), nil
		_ = relay.PublishMsg(m) // fails when the test is over
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, direct, 0, 1)
}

func TestWaitThatEndsLeavesTheTransactionOnItsWay(t *testing.T) {
	release := make(chan struct{})
	_, faulty, direct := newProxy(t, client.Options{}, func(*nats.Msg) fault { <-release; return pass })
	f, err := faulty.AppendAsync(soon(t), &client.Request{Payload: []byte("0")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.Wait(ctx)
	wantErr(t, err, context.Canceled)
	close(release)
	if r, err := f.Wait(soon(t)); err != nil || r.Txid != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	checkOnce(t, direct, 0, 1)
}

func TestCloseFailsWhatWaits(t *testing.T) {
	came := make(chan struct{}, 10)
	p, _, _ := newProxy(t, client.Options{}, func(*nats.Msg) fault { came <- struct{}{}; return swallow })
	c, err := client.New(p.nc, client.Options{Prefix: proxied, MaxBatch: 1})
	if err != nil {
		t.Fatal(err)
	}
	var futures []*client.Future
	for range 5 { // three are in flight, two wait
		f, err := c.AppendAsync(soon(t), &client.Request{})
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	<-came
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for _, f := range futures {
		_, err := f.Wait(soon(t))
		wantErr(t, err, client.ErrClosed)
		if errors.Is(err, client.ErrUnknown) {
			unknown++
		}
	}
	if unknown < 1 || unknown > 3 {
		t.Errorf("%d outcomes are said to be unknown", unknown)
	}
}

func TestClosedConnectionEndsEverything(t *testing.T) {
	n := openNode(t, broker.Options{})
	nc := connect(t, n)
	c := newClient(t, nc, client.Options{})
	mustAppend(t, c, client.Request{Payload: []byte("0")})
	handled := make(chan struct{})
	followed := make(chan error)
	go func() {
		followed <- c.Follow(soon(t), map[int]uint64{0: 0}, func(context.Context, *client.Transaction) error {
			close(handled)
			return nil
		}, client.FollowOptions{})
	}()
	<-handled
	nc.Close()
	wantErr(t, <-followed, client.ErrClosed)
	_, err := c.Append(soon(t), &client.Request{})
	wantErr(t, err, client.ErrClosed)
}

func TestFullFailsOrWaits(t *testing.T) {
	release := make(chan struct{})
	delay := func(*nats.Msg) fault { <-release; return pass }
	p, waits, direct := newProxy(t, client.Options{MaxInFlight: 2}, delay)
	fails := newClient(t, p.nc, client.Options{Prefix: proxied, MaxInFlight: 2, FailWhenFull: true})
	narrow := newClient(t, p.nc, client.Options{Prefix: proxied, MaxInFlightBytes: 1, FailWhenFull: true})
	ctx := soon(t)
	var futures []*client.Future
	for i, c := range []*client.Client{waits, waits, fails, fails, narrow} {
		f, err := c.AppendAsync(ctx, &client.Request{Payload: []byte(fmt.Sprint(i))})
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	for _, c := range []*client.Client{fails, narrow} {
		_, err := c.AppendAsync(ctx, &client.Request{})
		wantErr(t, err, client.ErrFull)
	}
	ended, cancel := context.WithCancel(ctx)
	failed := make(chan error)
	go func() { _, err := waits.AppendAsync(ended, &client.Request{}); failed <- err }()
	cancel()
	wantErr(t, <-failed, context.Canceled)
	var wg sync.WaitGroup
	for i := 5; i < 10; i++ {
		wg.Go(func() {
			if _, err := waits.Append(ctx, &client.Request{Payload: []byte(fmt.Sprint(i))}); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	waitAll(t, futures)
	checkOnce(t, direct, 0, 10)
}

// A node is stopped and started again while appenders and a follower run.
func TestExactlyOnceThroughRestarts(t *testing.T) {
	dir := t.TempDir()
	listen := "127.0.0.1:0"
	open := func() *broker.Node {
		n, err := broker.Open(soon(t), dir, broker.Options{Partitions: 1, ClientListen: listen})
		if err != nil {
			t.Fatal(err)
		}
		listen = strings.TrimPrefix(n.ClientURL(), "nats://")
		return n
	}
	n := open()
	nc, err := nats.Connect(n.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := newClient(t, nc, client.Options{MinBackoff: 5 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, MaxInFlight: 64})
	ctx := soon(t)
	follower, seen := follow(t, c, map[int]uint64{0: 0}, client.FollowOptions{})
	const rounds, each = 3, 300
	var wg sync.WaitGroup
	halfway := make(chan struct{}, rounds)
	wg.Go(func() {
		var futures []*client.Future
		for i := range rounds * each {
			f, err := c.AppendAsync(ctx, &client.Request{Payload: []byte(fmt.Sprint(i))})
			if err != nil {
				t.Error(err)
				return
			}
			futures = append(futures, f)
			if i%each == each/2 {
				halfway <- struct{}{}
			}
		}
		for i, f := range futures {
			if _, err := f.Wait(ctx); err != nil {
				t.Errorf("append %d: %v", i, err)
			}
		}
	})
	for range rounds {
		<-halfway
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		n = open()
	}
	wg.Wait()
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	checkOnce(t, c, 0, rounds*each)
	if err := follower.Wait(ctx, 0, rounds*each); err != nil {
		t.Fatal(err)
	}
	checkSeen(t, seen(0), rounds*each)
}

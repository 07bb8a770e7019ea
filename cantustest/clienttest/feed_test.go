package client_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// still are options with which neither a timeout nor a silent feed causes a
// read.
var (
	still      = client.Options{AttemptTimeout: time.Hour, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond}
	stillQuiet = client.FollowOptions{IdleTimeout: time.Hour}
)

// newKey returns a key to sign a feed with.
func newKey(t testing.TB) (private ed25519.PrivateKey, text string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return private, subjects.FeedKey(public)
}

// packedOf returns a message of the packed feed of partition 0. It is signed
// unless key is nil.
func packedOf(subject string, key ed25519.PrivateKey, txid uint64, payload string) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Data = subjects.AppendPacked(nil, subjects.Packed{Txid: txid, Time: 1, Payload: []byte(payload)})
	if key != nil {
		hashes := string(subjects.AppendFeedHash(nil, m.Data))
		m.Header.Set(subjects.HeaderHashes, hashes)
		m.Header.Set(subjects.HeaderSignature, subjects.SignFeed(key, 0, hashes))
	}
	return m
}

// checkPayloads checks that a handler saw payloads "0" to "n-1", in order.
func checkPayloads(t testing.TB, seen []*client.Transaction, n int) {
	t.Helper()
	checkSeen(t, seen, n)
	for i, tx := range seen {
		if string(tx.Payload) != fmt.Sprint(i) {
			t.Fatalf("txid %d has the payload %q, want %d", tx.Txid, tx.Payload, i)
		}
	}
}

// pinned returns a client with a configured feed key, and its connection.
func pinned(t testing.TB, l *cantustest.Log, key string) (*client.Client, *nats.Conn) {
	t.Helper()
	nc, err := l.Connect()
	if err != nil {
		t.Fatal(err)
	}
	opts := still
	opts.FeedKey = key
	return newClient(t, nc, opts), nc
}

// keyOf returns the feed key of a log.
func keyOf(t testing.TB, nc *nats.Conn) string {
	t.Helper()
	m, err := nc.Request("cantus.info", nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	var info subjects.ClusterInfo
	if err := json.Unmarshal(m.Data, &info); err != nil {
		t.Fatal(err)
	}
	return info.FeedKey
}

// level waits until the only follower of a pinned client is subscribed to the
// feed.
func level(t testing.TB, nc *nats.Conn) {
	t.Helper()
	const all = 4 // answers, advisories, reads, and the feed
	await(t, "listening to the feed", func() bool { return nc.NumSubscriptions() == all })
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestForgedFeedMessagesMoveNothing publishes on the feed what an attacker can
// make up, or derive from messages that it received.
func TestForgedFeedMessagesMoveNothing(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{Partitions: 2})
	nc, err := l.Connect()
	if err != nil {
		t.Fatal(err)
	}
	c, its := pinned(t, l, keyOf(t, nc))
	heard := make([]*nats.Subscription, 2)
	for p := range heard {
		if heard[p], err = nc.SubscribeSync(fmt.Sprint("cantus.packed.", p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	appendMany(t, c, 0, 3)
	appendMany(t, c, 1, 6)
	real := make([]*nats.Msg, 2) // the last of each partition
	for p, n := range []int{3, 6} {
		for range n {
			if real[p], err = heard[p].NextMsg(patience); err != nil {
				t.Fatal(err)
			}
		}
		_ = heard[p].Unsubscribe() // fails if the connection is closed
	}
	f, seen := follow(t, c, map[int]uint64{0: 0}, stillQuiet)
	level(t, its)
	foreign, _ := newKey(t)
	made := func(change func(m *nats.Msg)) *nats.Msg {
		m := nats.NewMsg("cantus.packed.0")
		m.Data = append([]byte(nil), real[0].Data...)
		for k, v := range real[0].Header {
			m.Header[k] = v
		}
		change(m)
		return m
	}
	const absurd = 1 << 63
	began, reads := time.Now(), l.Seen(cantustest.Read)
	for i, m := range []*nats.Msg{
		packedOf("cantus.packed.0", nil, 4, "forged"),
		packedOf("cantus.packed.0", nil, absurd, "forged"),
		packedOf("cantus.packed.0", foreign, 4, "forged"),
		packedOf("cantus.packed.0", foreign, absurd, "forged"),
		packedOf("cantus.packed.0", foreign, 1<<64-1, "forged"),
		made(func(m *nats.Msg) { m.Data[7] = 4 }),                                                   // its txid
		made(func(m *nats.Msg) { m.Data[0] = 0x80 }),                                                // its txid, absurd
		made(func(m *nats.Msg) { m.Data = packedOf("", nil, 4, "forged").Data }),                    // another payload
		made(func(m *nats.Msg) { m.Data = append(m.Data, packedOf("", nil, 4, "forged").Data...) }), // one more
		made(func(m *nats.Msg) { m.Data = m.Data[:len(m.Data)-1] }),
		made(func(m *nats.Msg) { m.Data = real[1].Data }),
		made(func(m *nats.Msg) { m.Data, m.Header = real[1].Data, real[1].Header }), // txid 6 of the other partition
		made(func(m *nats.Msg) { m.Header.Del(subjects.HeaderSignature) }),
		made(func(m *nats.Msg) {
			m.Data, m.Header = packedOf("", nil, 4, "forged").Data, nats.Header{"Status": {"204"}}
		}),
	} {
		before := f.Progress(0)
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		await(t, fmt.Sprint("rejected, message ", i), func() bool { return f.Progress(0).Rejected == before.Rejected+1 })
		if g := f.Progress(0); g.HighWaterMark != 3 {
			t.Fatalf("message %d: progress %+v", i, g)
		}
	}
	for i := range 3 { // no genuine message takes their place
		mustAppend(t, c, client.Request{Payload: []byte(fmt.Sprint(3 + i))})
	}
	if err := f.Wait(soon(t), 0, 6); err != nil {
		t.Fatal(err)
	}
	checkPayloads(t, seen(0), 6)
	if more, most := l.Seen(cantustest.Read)-reads, 3+int(time.Since(began)/time.Second); more > most {
		t.Errorf("%d reads for nothing, at most %d are due", more, most)
	}
}

// TestFeedMessagesMayComeAgain publishes genuine messages of the feed a second
// time.
func TestFeedMessagesMayComeAgain(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	nc, err := l.Connect()
	if err != nil {
		t.Fatal(err)
	}
	c, its := pinned(t, l, keyOf(t, nc))
	heard, err := nc.SubscribeSync("cantus.packed.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	const count = 10
	appendMany(t, c, 0, count)
	var all []*nats.Msg
	for range count {
		m, err := heard.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	_ = heard.Unsubscribe() // fails if the connection is closed
	f, seen := follow(t, c, map[int]uint64{0: 0}, stillQuiet)
	level(t, its)
	rejected := f.Progress(0).Rejected
	for range 3 {
		for _, m := range all {
			if err := nc.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := nc.Publish("cantus.packed.0", nil); err != nil { // once this has arrived, all have
		t.Fatal(err)
	}
	await(t, "through", func() bool { return f.Progress(0).Rejected > rejected })
	mustAppend(t, c, client.Request{Payload: []byte(fmt.Sprint(count))})
	if err := f.Wait(soon(t), 0, count+1); err != nil {
		t.Fatal(err)
	}
	checkPayloads(t, seen(0), count+1)
	if got := f.Progress(0).Rejected; got != rejected+1 {
		t.Errorf("%d messages were rejected, %d were not good", got, rejected+1)
	}
}

// TestWhatIsAlteredIsRead alters the last message of the feed, and precedes it
// with a forged one. Nothing else makes the follower read.
func TestWhatIsAlteredIsRead(t *testing.T) {
	for name, fault := range map[string]cantustest.Fault{"altered": cantustest.Alter(), "forged": cantustest.Forge()} {
		t.Run(name, func(t *testing.T) {
			l := cantustest.New(t, cantustest.Options{})
			c := l.NewClient(t, still)
			reports := make(chan error, 100)
			f, seen := follow(t, c, map[int]uint64{0: 0}, client.FollowOptions{
				IdleTimeout: time.Hour, OnRejected: func(partition int, count uint64, err error) {
					if partition != 0 || count == 0 {
						t.Errorf("OnRejected got %d messages of partition %d", count, partition)
					}
					reports <- err
				},
			})
			const count = 3
			for i := range count {
				l.FailNext(1, cantustest.Feed, fault)
				r := mustAppend(t, c, client.Request{Payload: []byte(fmt.Sprint(i))})
				if err := f.Wait(soon(t), 0, r.Txid); err != nil {
					t.Fatal(err)
				}
			}
			checkPayloads(t, seen(0), count)
			var err error
			select {
			case err = <-reports:
			case <-soon(t).Done():
			}
			if !errors.Is(err, client.ErrFeed) || !errors.Is(err, subjects.ErrAltered) && !errors.Is(err, subjects.ErrForged) {
				t.Errorf("OnRejected got %v", err)
			}
		})
	}
}

func TestAPinnedFeedKey(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	nc, err := l.Connect()
	if err != nil {
		t.Fatal(err)
	}
	key := keyOf(t, nc)
	asked := l.Seen(cantustest.Info)
	good, goods := pinned(t, l, key)
	_, wrong := newKey(t)
	other, others := pinned(t, l, wrong)
	followed, seen := follow(t, good, map[int]uint64{0: 0}, stillQuiet)
	deceived, seenToo := follow(t, other, map[int]uint64{0: 0}, stillQuiet)
	level(t, goods)
	level(t, others)
	for i := range 2 {
		r := mustAppend(t, good, client.Request{Payload: []byte(fmt.Sprint(i))})
		for _, f := range []*client.Follower{followed, deceived} {
			if err := f.Wait(soon(t), 0, r.Txid); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkPayloads(t, seen(0), 2)
	checkPayloads(t, seenToo(0), 2)
	if g := deceived.Progress(0); g.Rejected != 2 {
		t.Errorf("with another key the feed is believed: %+v", g)
	}
	if n := l.Seen(cantustest.Info); n != asked {
		t.Errorf("info was asked %d times for a key that is known", n-asked)
	}
	if _, err := client.New(nc, client.Options{FeedKey: "?"}); !errors.Is(err, client.ErrOptions) {
		t.Errorf("a key that is none: %v", err)
	}
}

// TestWithoutAFeedKeyTheFeedIsNotUsed starts without an answer to cantus.info,
// and then allows it.
func TestWithoutAFeedKeyTheFeedIsNotUsed(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	l.FailFunc(cantustest.Info, func(*nats.Msg) cantustest.Fault { return cantustest.NoResponders() })
	opts := still
	opts.AttemptTimeout = 100 * time.Millisecond // how long info is attempted before Progress has the error
	c := l.NewClient(t, opts)
	f, seen := follow(t, c, map[int]uint64{0: 0}, stillQuiet)
	r := mustAppend(t, c, client.Request{Payload: []byte("0")})
	if err := f.Wait(soon(t), 0, r.Txid); err != nil {
		t.Fatal(err)
	}
	await(t, "said", func() bool { return errors.Is(f.Progress(0).Err, client.ErrNoLeader) })
	reads := l.Seen(cantustest.Read)
	l.FailFunc(cantustest.Info, nil)
	await(t, "keyed", func() bool { return f.Progress(0).Err == nil })
	// The follower reads what it dropped before.
	await(t, "read", func() bool { return l.Seen(cantustest.Read) > reads })
	l.FailFunc(cantustest.Read, func(*nats.Msg) cantustest.Fault { return cantustest.Drop() }) // leaves only the feed
	r = mustAppend(t, c, client.Request{Payload: []byte("1")})
	if err := f.Wait(soon(t), 0, r.Txid); err != nil {
		t.Fatal(err)
	}
	checkPayloads(t, seen(0), 2)
	if g := f.Progress(0); g.Rejected != 0 {
		t.Errorf("%+v", g)
	}
}

// scripted is a node played by the test: info, reads, and the feed.
type scripted struct {
	nc  *nats.Conn
	mu  sync.Mutex
	key string
	n   atomic.Int64 // reads
}

// script plays a node. It calls read for each read, with the read's number from
// 1.
func script(t *testing.T, n *broker.Node, read func(s *scripted, m *nats.Msg, n int)) *scripted {
	t.Helper()
	s := &scripted{nc: connect(t, n)}
	for subject, handle := range map[string]nats.MsgHandler{
		proxied + ".info": func(m *nats.Msg) {
			s.mu.Lock()
			defer s.mu.Unlock()
			_ = m.Respond(fmt.Appendf(nil, `{"partitions":1,"feed_key":%q}`, s.key)) // fails when the test is over
		},
		proxied + ".read.*": func(m *nats.Msg) { read(s, m, int(s.n.Add(1))) },
	} {
		if _, err := s.nc.Subscribe(subject, handle); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

// end sends the end of a read without transactions.
func (s *scripted) end(m *nats.Msg, next, mark uint64) {
	_ = s.nc.PublishMsg(&nats.Msg{Subject: m.Reply, Header: nats.Header{ // fails when the test is over
		"Status": {"204"}, subjects.HeaderNext: {fmt.Sprint(next)}, subjects.HeaderHighWaterMark: {fmt.Sprint(mark)},
		subjects.HeaderCount: {"0"}, subjects.HeaderLast: {"0"},
	}})
}

func (s *scripted) pass(m *nats.Msg) {
	_ = s.nc.PublishRequest("cantus"+strings.TrimPrefix(m.Subject, proxied), m.Reply, m.Data) // fails when the test is over
}

func (s *scripted) setKey(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
}

// TestAChangedFeedKeyIsFound changes the cluster's key while a client follows.
func TestAChangedFeedKeyIsFound(t *testing.T) {
	var last atomic.Uint64
	s := script(t, openNode(t, broker.Options{}), func(s *scripted, m *nats.Msg, _ int) { s.end(m, last.Load()+1, last.Load()) })
	opts := quick
	opts.Prefix = proxied
	old, text := newKey(t)
	s.setKey(text)
	f, seen := follow(t, newClient(t, s.nc, opts), map[int]uint64{0: 0}, stillQuiet)
	send := func(key ed25519.PrivateKey, txid uint64) {
		await(t, fmt.Sprint("given txid ", txid), func() bool {
			if err := s.nc.PublishMsg(packedOf(proxied+".packed.0", key, txid, fmt.Sprint(txid-1))); err != nil {
				t.Fatal(err)
			}
			return f.Applied(0) == txid
		})
		last.Store(txid)
	}
	send(old, 1)
	renewed, text := newKey(t)
	s.setKey(text)
	send(renewed, 2)
	checkPayloads(t, seen(0), 2)
}

// TestAnAbsurdMarkDoesNotKeepAFollowerReading ends reads with a far too high
// high-water mark.
func TestAnAbsurdMarkDoesNotKeepAFollowerReading(t *testing.T) {
	const absurd = 1 << 63
	s := script(t, openNode(t, broker.Options{}), func(s *scripted, m *nats.Msg, _ int) { s.end(m, 1, absurd) })
	_, key := newKey(t)
	s.setKey(key)
	opts := client.Options{Prefix: proxied, AttemptTimeout: time.Hour, MinBackoff: time.Hour, MaxBackoff: time.Hour}
	f, _ := follow(t, newClient(t, s.nc, opts), map[int]uint64{0: 0}, stillQuiet)
	await(t, "backing off", func() bool { return f.Progress(0).Err != nil })
	if n := s.n.Load(); n != 2 {
		t.Errorf("%d reads for nothing, want 2", n)
	}
}

// TestAnAbsurdEndIsForgotten ends some reads with an impossible high-water mark
// or position. Later reads are correct.
func TestAnAbsurdEndIsForgotten(t *testing.T) {
	const absurd = 1 << 63
	for _, opts := range []client.FollowOptions{{IdleTimeout: time.Hour}, {IdleTimeout: time.Hour, Kinds: []string{"a", "b"}}} {
		n := openNode(t, broker.Options{})
		s := script(t, n, func(s *scripted, m *nats.Msg, n int) {
			switch n {
			case 1, 2, 3:
				s.end(m, 1, absurd)
			case 4:
				s.end(m, absurd+1, 3)
			case 5:
				s.end(m, absurd+1, absurd-1)
			default:
				s.pass(m)
			}
		})
		fillWide(t, newClient(t, connect(t, n), client.Options{}), 1, 5)
		_, key := newKey(t)
		s.setKey(key)
		clientOpts := still
		clientOpts.Prefix = proxied
		f, seen := follow(t, newClient(t, s.nc, clientOpts), map[int]uint64{0: 0}, opts)
		if err := f.Wait(soon(t), 0, 5); err != nil {
			t.Fatal(err)
		}
		checkSeen(t, seen(0), 5)
		await(t, "level", func() bool { g := f.Progress(0); return g.HighWaterMark == 5 && g.Err == nil })
	}
}

func TestAnAbsurdNumberOfPartitionsIsRefused(t *testing.T) {
	n := openNode(t, broker.Options{})
	nc := connect(t, n)
	if _, err := nc.Subscribe(proxied+".info", func(m *nats.Msg) {
		_ = m.Respond([]byte(`{"partitions":1073741824}`)) // fails when the test is over
	}); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc, client.Options{Prefix: proxied})
	if got, err := c.Partitions(soon(t)); err == nil {
		t.Errorf("%d partitions are believed", got)
	}
}

package client

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// offlineClient returns a client without a connection: what it sends fails.
func offlineClient(tb testing.TB) *Client {
	tb.Helper()
	opts, err := Options{}.withDefaults()
	if err != nil {
		tb.Fatal(err)
	}
	return &Client{
		opts: opts, names: subjects.Names{Prefix: opts.Prefix}, limiter: newLimiter(opts.MaxInFlight, opts.MaxInFlightBytes),
		closing: make(chan struct{}), closed: ErrClosed, // it starts no goroutines
		senders: map[int]*sender{}, streams: map[*stream]struct{}{}, calls: map[*call]struct{}{}, attempts: map[uint64]*attempt{},
	}
}

// message returns a message with a header block, as it comes from the wire.
func message(block, data []byte) *nats.Msg {
	m := &nats.Msg{Data: data}
	if h, err := nats.DecodeHeadersMsg(block); err == nil {
		m.Header = h
	}
	return m
}

// FuzzTransaction parses a message of the plain feed, or of a get.
func FuzzTransaction(f *testing.F) {
	f.Add([]byte("NATS/1.0\r\nCantus-Txid: 7\r\nCantus-Partition: 0\r\nCantus-Time: 2026-11-22T09:00:00.1Z\r\nCantus-Kind: tx\r\nCantus-Write-Lock: a,b\r\nApp: x\r\n\r\n"), []byte("p"))
	f.Add([]byte("NATS/1.0\r\nCantus-Txid: 18446744073709551616\r\nCantus-Partition: -1\r\n\r\n"), []byte{})
	f.Add([]byte("NATS/1.0\r\nCantus-Txid: 1\r\nCantus-Partition: 18446744073709551615\r\nCantus-Time: x\r\n\r\n"), []byte{})
	f.Add([]byte("NATS/1.0 204 End\r\nCantus-Next:\r\n\r\n"), []byte{})
	f.Fuzz(func(t *testing.T, block, data []byte) {
		m := message(block, data)
		tx, err := parseTransaction(m)
		if err != nil {
			if !errors.Is(err, errNotTransaction) || tx != nil {
				t.Fatalf("%+v, %v", tx, err)
			}
			return
		}
		if tx.Txid == 0 || tx.Partition < 0 || string(tx.Payload) != string(data) || fmt.Sprint(tx.Txid) != m.Header.Get(subjects.HeaderTxid) && m.Header.Get(subjects.HeaderTxid)[0] != '0' {
			t.Fatalf("%q is taken for %+v", block, tx)
		}
		tx.passes(&FollowOptions{Kinds: []string{"a"}, Lock: "a.>"})
	})
}

// FuzzPacked parses a packed message, of a read or of the feed.
func FuzzPacked(f *testing.F) {
	two := subjects.AppendPacked(nil, subjects.Packed{Txid: 7, Time: 5, Header: []byte("NATS/1.0\r\nCantus-Write-Lock: a\r\nCantus-Write-Lock: b,c\r\nCantus-Kind: pay\r\nX: y\r\n\r\n"), Payload: []byte("p")})
	two = subjects.AppendPacked(two, subjects.Packed{Txid: 8, Payload: []byte("q")})
	f.Add(two)
	f.Add(two[:len(two)-1])
	f.Add(make([]byte, 24))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		txs, err := parsePacked(3, b)
		if err != nil {
			if !errors.Is(err, errNotTransaction) {
				t.Fatal(err)
			}
			return
		}
		payloads := 0
		for _, tx := range txs {
			if payloads += len(tx.Payload); tx.Partition != 3 {
				t.Fatalf("%+v", tx)
			}
			tx.passes(&FollowOptions{Lock: ">"})
		}
		if payloads > len(b) || len(txs) > len(b)/24 {
			t.Fatalf("%d transactions with %d bytes out of %d", len(txs), payloads, len(b))
		}
	})
}

// FuzzFollow gives a follower messages as anybody could send them: of its read,
// and of the feed. What it queues are transactions without a gap.
func FuzzFollow(f *testing.F) {
	packed := func(txids ...uint64) (b []byte) {
		for _, txid := range txids {
			b = subjects.AppendPacked(b, subjects.Packed{Txid: txid, Payload: []byte("p")})
		}
		return b
	}
	f.Add([]byte("NATS/1.0\r\nCantus-Previous: 0\r\n\r\n"), packed(5, 6, 7), []byte("NATS/1.0 204 End\r\nCantus-Next: 8\r\nCantus-High-Water-Mark: 9\r\nCantus-Last: 7\r\n\r\n"), packed(8, 9), []byte(`{"partition":0}`))
	f.Add([]byte("NATS/1.0\r\nCantus-Previous: 0\r\n\r\n"), packed(6, 7), []byte("NATS/1.0 204 End\r\nCantus-Next: 18446744073709551615\r\nCantus-High-Water-Mark: 18446744073709551615\r\nCantus-Last: 0\r\n\r\n"), packed(5), []byte(`{}`))
	f.Add([]byte("NATS/1.0\r\nNats-Service-Error-Code: 410\r\n\r\n"), []byte(`{"error":{"code":410,"reason":"trimmed","first_txid":9}}`), []byte("NATS/1.0 503\r\n\r\n"), []byte{}, []byte(`{"partition":-1}`))
	f.Add([]byte("NATS/1.0\r\nCantus-Previous: 4\r\n\r\n"), packed(5, 6), []byte("NATS/1.0 100\r\n\r\n"), packed(18446744073709551615), []byte(`x`))
	private := ed25519.NewKeyFromSeed(make([]byte, 32))
	f.Fuzz(func(t *testing.T, header, data, header2, data2, advisory []byte) {
		for _, lock := range []string{"", "a.>"} {
			c := offlineClient(t)
			c.feedKey.key, c.feedKey.pinned = private.Public().(ed25519.PublicKey), true
			opts, err := FollowOptions{Lock: lock}.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			s := &stream{c: c, partition: 0, readSize: firstRead, opts: opts, next: 5, seenTxid: 4, inbox: "in.", requestSuffix: "}",
				ready: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
			c.streams[s] = struct{}{}
			s.read = &activeRead{subject: "in.1", from: s.next}
			for _, m := range []*nats.Msg{message(header, data), message(header2, data2), message(header2, data)} {
				m.Subject = "in.1"
				s.onReadMessage(m)
			}
			c.onLeader(&nats.Msg{Data: advisory})
			was, mark := s.next, s.highWaterMark()
			s.onFeedMessage(message(header, data2)) // not signed
			if s.next != was || s.highWaterMark() != mark {
				t.Fatalf("a forged message of the feed moved the follower from %d to %d", was, s.next)
			}
			hashes := string(subjects.AppendFeedHash(nil, data2))
			signed := message(nil, data2)
			signed.Header = nats.Header{subjects.HeaderHashes: {hashes}, subjects.HeaderSignature: {subjects.SignFeed(private, 0, hashes)}}
			s.onFeedMessage(signed)
			s.tick(time.Now())
			next := uint64(5)
			for _, e := range s.queue {
				if lock == "" && (e.tx == nil || e.tx.Txid != next) || e.upTo < next-1 || e.tx != nil && e.tx.Txid != e.upTo {
					t.Fatalf("%+v is queued where %d is due", e, next)
				}
				next = e.upTo + 1
			}
			if next != s.next || s.buffered < 0 || c.window.used < 0 {
				t.Fatalf("the queue ends at %d of %d, %d bytes, %d in the window", next, s.next, s.buffered, c.window.used)
			}
		}
	})
}

// FuzzAnswer answers a batch of three transactions. One that the answer does
// not call committed does not succeed.
func FuzzAnswer(f *testing.F) {
	for _, reply := range replies {
		f.Add([]byte(reply))
	}
	for _, s := range []string{
		`{"partition":0,"results":[{"index":-1,"count":9,"txid":1}],"high_water_mark":1}`,
		`{"results":[{"index":0,"count":9223372036854775807,"txid":18446744073709551615},{"index":2,"count":1,"error":{}}]}`,
		`{"results":[{"index":0,"count":0,"txid":1}]}`, `{"error":{"code":429,"reason":"busy"}}`, `{"error":{"code":599,"reason":"new"}}`, `null`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := offlineClient(t)
		s := newSender(c, 0)
		b := newBatch(1)
		futures := make([]*Future, 3)
		for i := range futures {
			futures[i] = &Future{sender: s, id: fmt.Sprint(i), deadline: time.Now().Add(time.Hour)}
			b.add(&Request{Payload: []byte("p")}, futures[i])
		}
		a := &attempt{sender: s, token: 1, batch: b}
		s.inflight = []*attempt{a}
		s.onAnswer(a, &nats.Msg{Data: body}, nil)
		var r subjects.BatchReply
		if json.Unmarshal(body, &r) != nil || r.Error != nil {
			r.Results = nil
		}
		for i, future := range futures {
			if !future.completed.Load() {
				continue
			}
			receipt, err := future.Wait(t.Context())
			said := slices.ContainsFunc(r.Results, func(run subjects.BatchRun) bool {
				return run.Error == nil && run.Txid != 0 && run.Index <= i && i < run.Index+min(run.Count, 3) && run.Txid+uint64(i-run.Index) == receipt.Txid
			})
			if err == nil && !said {
				t.Fatalf("transaction %d succeeded by %q: %+v", i, body, receipt)
			}
		}
	})
}

// FuzzReply decodes the answers to other requests: of cursors, descriptions and
// refusals.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		`{"partition":0,"name":"b","txid":8,"time":"2026-11-22T09:00:00Z","high_water_mark":9}`, `{"error":{"code":410,"reason":"trimmed","first_txid":5}}`,
		`{"partitions":4,"feed_key":"zJNavsxqJQLz0TBYia2pVux2z0UVaYjzbhqMMB4mRoA="}`, `{"error":{"code":"x"}}`, `{"error":{"reason":"conflict","conflicts":[null]}}`, `[]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, to := range []any{new(subjects.Reply), new(subjects.CursorReply), new(subjects.PartitionInfo)} {
			if json.Unmarshal(body, to) != nil {
				continue
			}
			e, ok := reflect.ValueOf(to).Elem().FieldByName("Error").Interface().(*subjects.Error)
			if !ok || e == nil {
				continue
			}
			err := refusal(*e, 0, "id", 1)
			var refused *RefusedError
			if !errors.As(err, &refused) || err.Error() == "" || errors.Is(err, ErrConflict) != (e.Reason == subjects.Conflict) {
				t.Fatalf("%q is %v", body, err)
			}
			dispositionOf(e)
		}
		var info subjects.ClusterInfo
		if json.Unmarshal(body, &info) == nil {
			if key, err := subjects.ParseFeedKey(info.FeedKey); err == nil && len(key) != ed25519.PublicKeySize {
				t.Fatalf("a key of %d bytes", len(key))
			}
		}
	})
}

package broker_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

func TestFeed(t *testing.T) {
	_, nc := openNode(t, t.TempDir(), broker.Options{})
	subscribe := func(subject string) *nats.Subscription {
		t.Helper()
		sub, err := nc.SubscribeSync(subject)
		if err != nil {
			t.Fatal(err)
		}
		return sub
	}
	whole, kindB, other := subscribe("cantus.feed.0.>"), subscribe("cantus.feed.*.b"), subscribe("cantus.feed.1.>")
	packed := subscribe("cantus.packed.0")
	fill(t, nc)
	const more = 500
	var appending sync.WaitGroup
	for i := range 5 {
		appending.Go(func() {
			for j := range more / 5 {
				var batch []byte
				if j%2 == 0 {
					batch = item("even")
				}
				batch = append(batch, item("x", "Cantus-Kind", fmt.Sprint("k", i))...)
				if m, err := nc.Request("cantus.batch.0", batch, patience); err != nil || m.Header.Get(subjects.HeaderErrorCode) != "" {
					t.Error(err, m)
				}
			}
		})
	}
	appending.Wait()
	all := checkLog(t, nc, 0)
	var fed []*nats.Msg
	for range all {
		m, err := whole.NextMsg(patience)
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(fed), len(all), err)
		}
		fed = append(fed, m)
	}
	for i, m := range all {
		f := fed[i]
		delete(m.Header, subjects.HeaderPrevious) // of the read, and not of the transaction
		if !maps.EqualFunc(m.Header, f.Header, slices.Equal) || string(m.Data) != string(f.Data) {
			t.Fatalf("transaction %d\nread %v %q\nfed  %v %q", i+1, m.Header, m.Data, f.Header, f.Data)
		}
		if want := "cantus.feed.0." + m.Header.Get("Cantus-Kind"); f.Subject != want || f.Header.Get(msgID) != fmt.Sprint("cantus.0.", i+1) {
			t.Fatalf("subject %s, %s %s", f.Subject, msgID, f.Header.Get(msgID))
		}
	}
	messages := 0
	verifier := feedVerifier(t, nc, 0)
	for rest := all; len(rest) > 0; messages++ {
		m, err := packed.NextMsg(patience)
		if err != nil {
			t.Fatalf("packed, with %d to come: %v", len(rest), err)
		}
		if err := verifier.Verify(m.Header.Get(subjects.HeaderHashes), m.Header.Get(subjects.HeaderSignature), m.Data); err != nil {
			t.Fatalf("%v: %v", err, m.Header)
		}
		for _, f := range unpack(t, m) {
			if !reflect.DeepEqual(f.Header, rest[0].Header) || string(f.Data) != string(rest[0].Data) {
				t.Fatalf("read   %v %q\npacked %v %q", rest[0].Header, rest[0].Data, f.Header, f.Data)
			}
			rest = rest[1:]
		}
	}
	if messages > len(all)-more/5/2 { // of one batch, two are committed together
		t.Errorf("%d packed messages for %d transactions", messages, len(all))
	}
	for i := range 5 {
		if m, err := kindB.NextMsg(patience); err != nil || number(t, m, subjects.HeaderTxid) != uint64(2*i+2) {
			t.Fatalf("%v, %v", m, err)
		}
	}
	if n, _, _ := other.Pending(); n != 0 {
		t.Errorf("partition 1 has fed %d", n)
	}
}

// feedVerifier verifies the packed feed of a partition with the key that info
// shows.
func feedVerifier(t *testing.T, nc *nats.Conn, partition int) subjects.FeedVerifier {
	t.Helper()
	var info subjects.ClusterInfo
	request(t, nc, message("cantus.info", ""), &info)
	key, err := subjects.ParseFeedKey(info.FeedKey)
	if err != nil {
		t.Fatal(err)
	}
	return subjects.FeedVerifier{Key: key, Partition: partition}
}

// Transactions that commit together share packed messages, as far as these stay
// small.
func TestPackedFeedMessages(t *testing.T) {
	n, nc := one(t, broker.Options{})
	sub, err := nc.SubscribeSync("cantus.packed.0")
	if err != nil {
		t.Fatal(err)
	}
	large := strings.Repeat("x", 10_000)
	var batch []byte
	for _, payload := range []string{large, "small", large, large, strings.Repeat("y", 900_000), "small", "small"} {
		batch = append(batch, item(payload)...)
	}
	if _, err := nc.Request("cantus.batch.0", batch, patience); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{10_000 + 5 + 2*24, 10_000 + 24, 10_000 + 24, 900_000 + 24, 2 * (5 + 24)} {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("a message of %d bytes: %v", want, err)
		}
		if len(m.Data) != want {
			t.Errorf("a message has %d bytes, want %d", len(m.Data), want)
		}
	}
	if got := broker.Fed(n); got != 5 {
		t.Errorf("%d messages were published for the feed", got)
	}
}

// Transactions that commit together are more than one signature covers, and
// messages stay within the server's limit.
func TestPackedFeedWithLittleRoom(t *testing.T) {
	config := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(config, []byte("host: 127.0.0.1\nport: -1\nmax_payload: 8192\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n, nc := openNode(t, t.TempDir(), broker.Options{Partitions: 1, NATSConfig: config})
	sub, err := nc.SubscribeSync("cantus.packed.0")
	if err != nil {
		t.Fatal(err)
	}
	verifier := feedVerifier(t, nc, 0)
	const count = 200
	release := broker.HoldFeed(n)
	for range count {
		if err := nc.PublishMsg(message("cantus.append.0", strings.Repeat("x", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	release()
	for next := 1; next <= count; {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("before txid %d: %v", next, err)
		}
		hashes := m.Header.Get(subjects.HeaderHashes)
		if err := verifier.Verify(hashes, m.Header.Get(subjects.HeaderSignature), m.Data); err != nil {
			t.Fatalf("%v: %v", err, m.Header)
		}
		if n := len(strings.Fields(hashes)); n > subjects.FeedGroup {
			t.Errorf("a signature covers %d messages", n)
		}
		for _, f := range unpack(t, m) {
			if number(t, f, subjects.HeaderTxid) != uint64(next) {
				t.Fatalf("%v came where txid %d was next", f.Header, next)
			}
			next++
		}
	}
}

// Replies do not wait for a feed that is behind, and the feed misses nothing,
// not even what its publisher had no space for.
func TestAFeedThatIsBehindHoldsNoAnswersUp(t *testing.T) {
	n, nc := one(t, broker.Options{})
	sub, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(broker.HoldFeed(n))
	defer release()
	const held = 5 // one with the publisher, three that wait for it, one that has no room
	for range held {
		appendTx(t, nc, "cantus.append.0", "x")
	}
	release()
	appendTx(t, nc, "cantus.append.0", "x")
	for i := range held + 1 {
		if m, err := sub.NextMsg(patience); err != nil || number(t, m, subjects.HeaderTxid) != uint64(i+1) {
			t.Fatalf("after %d: %v, %v", i, err, m)
		}
	}
}

// Nothing is published for kinds without a subscriber.
func TestTheFeedIsPublishedForListenersOnly(t *testing.T) {
	n, nc := one(t, broker.Options{})
	sub, err := nc.SubscribeSync("cantus.feed.0.wanted")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		kind := "unwanted"
		if i%4 == 3 {
			kind = "wanted"
		}
		appendTx(t, nc, "cantus.append.0", "x", "Cantus-Kind", kind)
	}
	for i := range 5 {
		if m, err := sub.NextMsg(patience); err != nil || number(t, m, subjects.HeaderTxid) != uint64(4*i+4) {
			t.Fatalf("%v, %v", m, err)
		}
	}
	if got := broker.Fed(n); got != 5 {
		t.Errorf("%d messages were published for the feed", got)
	}
}

func TestAdvisories(t *testing.T) {
	dir := t.TempDir()
	n, nc := openNode(t, dir, broker.Options{Partitions: 1, Name: "alpha"})
	sub, err := nc.SubscribeSync("cantus.advisory.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishMsg(message("cantus.append.0", "x", write, "a", msgID, "m1")); err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("cantus.cursor.0.c", []byte(`{"txid":9}`)); err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for range 2 {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		var a struct {
			Type, Node, Endpoint string
			Time                 time.Time
			Partition            *int
			MsgID                string `json:"msg_id"`
			Error                *subjects.Error
		}
		if err := json.Unmarshal(m.Data, &a); err != nil {
			t.Fatalf("%s: %v", m.Data, err)
		}
		if m.Subject != "cantus.advisory."+a.Type || a.Node != "alpha" || a.Time.IsZero() || a.Partition == nil || *a.Partition != 0 {
			t.Errorf("%s: %s", m.Subject, m.Data)
		}
		seen[a.Endpoint] = fmt.Sprint(a.Type, " ", a.MsgID, " ", a.Error.Reason)
	}
	if want := map[string]string{"append": "refused m1 bad_request", "cursor": "refused  ahead"}; !maps.Equal(seen, want) {
		t.Errorf("got %v", seen)
	}
	_ = n
}

func TestInfo(t *testing.T) {
	dir := t.TempDir()
	opts := broker.Options{Partitions: 2, Name: "alpha", Cluster: "prod", Version: "1.2.3"}
	n, nc := openNode(t, dir, opts)
	key := subjects.FeedKey(feedVerifier(t, nc, 0).Key)
	for _, body := range []string{"", "{}"} {
		wantBody(t, ask(t, nc, "cantus.info", body), `{"cluster":"prod","id":"`+broker.ClusterID(n)+`","version":"1.2.3","partitions":2,"nodes":[{"name":"alpha","ready":true}],"feed_key":"`+key+`"}`)
	}
	wantRefusal(t, ask(t, nc, "cantus.info", `{"x":1}`), subjects.BadRequest)
	wantRefusal(t, ask(t, nc, "cantus.info.0", `{"x":1}`), subjects.BadRequest)
	empty := info(t, nc, 1)
	wantBody(t, ask(t, nc, "cantus.info.1", ""), `{"partition":1,"first_txid":1,"high_water_mark":0,"digest":"`+empty.Digest+`","base_digest":"`+empty.Digest+`","leader":"alpha","term":`+fmt.Sprint(empty.Term)+
		`,"replicas":[{"name":"alpha","state":"leader","voter":true,"high_water_mark":0}],"locks":{"tracked":0,"capacity":1000000,"floor":0}}`)
	fill(t, nc)
	filled := info(t, nc, 0)
	if filled.HighWaterMark != 10 || filled.Locks.Tracked != 5 || len(filled.Digest) != 64 || filled.Digest == empty.Digest {
		t.Errorf("info %+v", filled)
	}
	if again := info(t, nc, 0); again.Digest != filled.Digest {
		t.Errorf("the digest changes by itself")
	}
	appendTx(t, nc, "cantus.append.0", "x")
	last := info(t, nc, 0)
	if last.Digest == filled.Digest {
		t.Errorf("the digest is the same after another transaction")
	}
	_, nc = reopen(t, n, dir, opts)
	if again := subjects.FeedKey(feedVerifier(t, nc, 0).Key); again != key {
		t.Errorf("after a restart the feed's key is %s, it was %s", again, key)
	}
	if after := info(t, nc, 0); after.Digest != last.Digest || after.HighWaterMark != 11 || after.Term <= last.Term || after.Locks != last.Locks {
		t.Errorf("before the restart %+v, after it %+v", last, after)
	}
}

func TestDiscovery(t *testing.T) {
	_, nc := one(t, broker.Options{Version: "1.2.3", Name: "alpha", Cluster: "prod"})
	appendTx(t, nc, "cantus.append.0", "x")
	appendTx(t, nc, "cantus.append.0", "x", write, "a") // refused
	collect(t, nc, "cantus.read.0", "")
	ask(t, nc, "cantus.info", "")
	wantRefusal(t, ask(t, nc, "cantus.info", "x"), subjects.BadRequest)
	var ping micro.Ping
	request(t, nc, message("$SRV.PING", ""), &ping)
	if ping.Type != micro.PingResponseType || ping.Name != "cantus" || ping.Version != "1.2.3" || ping.ID == "" ||
		ping.Metadata["node"] != "alpha" || ping.Metadata["cluster"] != "prod" {
		t.Fatalf("ping %+v", ping)
	}
	for _, suffix := range []string{"", ".cantus", ".cantus." + ping.ID} {
		var p micro.Ping
		var i micro.Info
		var s micro.Stats
		request(t, nc, message("$SRV.PING"+suffix, ""), &p)
		request(t, nc, message("$SRV.INFO"+suffix, ""), &i)
		for appends := 0; appends < 2; { // they are counted when they have been answered
			s = micro.Stats{}
			request(t, nc, message("$SRV.STATS"+suffix, ""), &s)
			for _, e := range s.Endpoints {
				if e.Name == "append" {
					appends = e.NumRequests
				}
			}
		}
		if p.ID != ping.ID || i.ID != ping.ID || s.ID != ping.ID || i.Type != micro.InfoResponseType || s.Type != micro.StatsResponseType {
			t.Fatalf("%+v %+v %+v", p, i, s)
		}
		var names []string
		for _, e := range i.Endpoints {
			names = append(names, e.Name+" "+e.Subject)
		}
		want := []string{"append cantus.append.*", "batch cantus.batch.*", "read cantus.read.*", "replica_read cantus.replica.read.*",
			"get cantus.get.*", "info cantus.info", "partition_info cantus.info.*", "cursor cantus.cursor.*.*",
			"cursors cantus.cursors.*"}
		if !slices.Equal(names, want) {
			t.Errorf("endpoints %q", names)
		}
		for _, e := range s.Endpoints {
			if e.Name == "append" && (e.NumRequests != 2 || e.NumErrors != 1 || e.LastError == "" || e.ProcessingTime <= 0 || e.AverageProcessingTime <= 0) {
				t.Errorf("%+v", e)
			}
			if e.Name == "info" && (e.NumRequests != 2 || e.NumErrors != 1) {
				t.Errorf("%+v", e)
			}
			if e.Name == "get" && e.NumRequests != 0 {
				t.Errorf("%+v", e)
			}
		}
		if s.Started.IsZero() || len(s.Endpoints) != len(want) {
			t.Errorf("stats %+v", s)
		}
	}
}

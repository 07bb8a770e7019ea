package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// setNamespace makes, changes or removes a namespace.
func setNamespace(t *testing.T, nc *nats.Conn, body string) {
	t.Helper()
	var r subjects.AdminReply
	m := askServed(t, nc, "cantus.admin.cluster.namespace", body)
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error != nil {
		t.Fatalf("namespace %s: %s", body, m.Data)
	}
}

// askNamespace asks until the namespace is served.
func askNamespace(t *testing.T, nc *nats.Conn, subject, body string) (m *nats.Msg) {
	t.Helper()
	eventually(t, subject+" is served", func() (is bool) {
		var err error
		m, err = nc.Request(subject, []byte(body), patience)
		if err != nil && !errors.Is(err, nats.ErrNoResponders) {
			t.Fatal(err)
		}
		return err == nil && !strings.Contains(string(m.Data), `"reason":"unavailable"`)
	})
	return m
}

// A partition gets into a namespace and out of it again with what is in it, on
// every node.
func TestPartitionsChangeTheirNamespace(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 2})
	nc := c.conn("n2")
	askServed(t, nc, "cantus.append.1", "first")
	setNamespace(t, nc, `{"name":"orders","partitions":[1]}`)
	if m := askNamespace(t, nc, "cantus.ns.orders.append.0", "second"); !strings.Contains(string(m.Data), `{"partition":0,"txid":2`) {
		t.Errorf("%s", m.Data)
	}
	if m := askNamespace(t, nc, "cantus.ns.orders.get.0", `{"txid":1}`); string(m.Data) != "first" || m.Header.Get("Cantus-Partition") != "0" {
		t.Errorf("%+v", m)
	}
	i := info(t, nc, 1)
	if i.Partition != 1 || i.Namespace != "orders" || i.Number != 0 || i.HighWaterMark != 2 {
		t.Errorf("%+v", i)
	}
	// A message for a cursor gets the number of the names that it is asked by.
	for subject, number := range map[string]int{"cantus.cursor.1.c": 1, "cantus.ns.orders.cursor.0.c": 0} {
		for _, body := range []string{`{"txid":1}`, `{"txid":9}`} {
			if m := askServed(t, nc, subject, body); !strings.HasPrefix(string(m.Data), fmt.Sprintf(`{"partition":%d,`, number)) {
				t.Errorf("%s %s: %s", subject, body, m.Data)
			}
		}
	}
	for _, name := range c.names {
		eventually(t, name+" serves the namespace", func() bool {
			m, err := c.conn(name).Request("cantus.ns.orders.info", nil, patience)
			return err == nil && strings.Contains(string(m.Data), `"partitions":1,`)
		})
	}
	setNamespace(t, nc, `{"name":"orders","remove":true}`)
	if m := askNamespace(t, nc, "cantus.append.1", "third"); !strings.Contains(string(m.Data), `{"partition":1,"txid":3`) {
		t.Errorf("%s", m.Data)
	}
	eventually(t, "the namespace is gone", func() bool {
		_, err := nc.Request("cantus.ns.orders.info", nil, patience)
		return errors.Is(err, nats.ErrNoResponders)
	})
	if ms := checkLog(t, nc, 1); len(ms) != 3 {
		t.Errorf("the partition has %d transactions", len(ms))
	}
	wantSameTables(t, c, "n1", "n2", "n3")
}

// A stream captures what is committed while its subjects are those of the
// partition: before a namespace, in it and after it. Captured by both names,
// each transaction is there once.
func TestJetStreamCapturesANamespace(t *testing.T) {
	_, nc := openNode(t, t.TempDir(), broker.Options{Partitions: 2, NATSConfig: config(t, fmt.Sprintf("jetstream { store_dir: %q }", t.TempDir()))})
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	create := func(name string, subjects ...string) jetstream.Stream {
		s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: subjects, Storage: jetstream.MemoryStorage})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	cluster := create("CLUSTER", "cantus.feed.>")
	orders := create("ORDERS", "cantus.ns.orders.feed.>")
	askServed(t, nc, "cantus.append.1", "first")
	askServed(t, nc, "cantus.append.0", "of another service")
	setNamespace(t, nc, `{"name":"orders","partitions":[1]}`)
	askNamespace(t, nc, "cantus.ns.orders.append.0", "second")
	setNamespace(t, nc, `{"name":"orders","remove":true}`)
	askNamespace(t, nc, "cantus.append.1", "third")
	for _, c := range []struct {
		stream jetstream.Stream
		want   string
	}{
		{cluster, "[cantus.1.1 first cantus.0.1 of another service cantus.1.3 third]"},
		{orders, "[cantus.ns.orders.0.2 second]"},
	} {
		captured := func() (all []string) {
			info, err := c.stream.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for seq := uint64(1); seq <= info.State.Msgs; seq++ {
				m, err := c.stream.GetMsg(t.Context(), seq)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, m.Header.Get("Nats-Msg-Id")+" "+string(m.Data))
			}
			return all
		}
		eventually(t, c.want, func() bool { return fmt.Sprint(captured()) == c.want })
	}
}

// A service that appends without end, past its limits, takes nothing from
// another one: its refused requests get into no queue, no batch and no sync.
func TestLimitsOfANamespace(t *testing.T) {
	dir := t.TempDir()
	n, nc := openNode(t, dir, broker.Options{Partitions: 2})
	setNamespace(t, nc, `{"name":"loud","partitions":[0],"limits":{"transactions":1}}`)
	setNamespace(t, nc, `{"name":"quiet","partitions":[1]}`)
	askNamespace(t, nc, "cantus.ns.quiet.append.0", "first")
	askNamespace(t, nc, "cantus.ns.loud.info.0", "")
	loud := func(body string) *nats.Msg { return ask(t, nc, "cantus.ns.loud.append.0", body) }
	eventually(t, "the limit is in force", func() bool { return strings.Contains(string(loud("x").Data), `"limit":"transactions"`) })

	// In debt for a long time: of what follows nothing may pass.
	batch := []byte{}
	for range subjects.MaxBatch {
		batch = append(batch, item("x")...)
	}
	eventually(t, "a batch passes, however large it is", func() bool {
		return !strings.Contains(string(ask(t, nc, "cantus.ns.loud.batch.0", string(batch)).Data), `"limit"`)
	})
	mark := info(t, nc, 0).HighWaterMark
	const many = 2000
	inbox, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	for i := range many {
		if err := nc.PublishRequest("cantus.ns.loud.append.0", inbox.Subject, []byte("flood")); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			if m := ask(t, nc, "cantus.ns.quiet.append.0", "x"); strings.Contains(string(m.Data), "error") {
				t.Fatalf("%s", m.Data)
			}
		}
	}
	for range many {
		m, err := inbox.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		e := wantRefusal(t, m, subjects.Busy)
		if e.Limit != "transactions" || e.RetryAfter < 60 || !strings.Contains(e.Message, "allows 1 transactions a second") {
			t.Fatalf("%+v", e)
		}
	}
	i := info(t, nc, 0)
	if i.HighWaterMark != mark || i.Limits == nil || i.Limits.Transactions != 1 || !strings.Contains(i.Limits.Refusing, "try again in") {
		t.Errorf("%+v, %+v", i, i.Limits)
	}
	if m := ask(t, nc, "cantus.ns.loud.cursor.0.c", `{"txid":1}`); wantRefusal(t, m, subjects.Busy).Limit != "transactions" {
		t.Errorf("%s", m.Data)
	}
	if got := info(t, nc, 1).HighWaterMark; got != 1+many/20 {
		t.Errorf("the quiet service has appended %d", got)
	}

	// Bytes that are kept: a trim makes room, and another limit too.
	known := func() string {
		return string(ask(t, nc, "cantus.ns.loud.append.0", "known", "Nats-Msg-Id", "known").Data)
	}
	setNamespace(t, nc, `{"name":"loud"}`)
	eventually(t, "there is no limit", func() bool { return strings.Contains(known(), `"txid"`) })
	setNamespace(t, nc, `{"name":"loud","limits":{"kept":1000}}`)
	eventually(t, "the log is full", func() bool { return strings.Contains(string(loud("x").Data), `"limit":"kept"`) })
	if e := wantRefusal(t, loud("x"), subjects.StorageFull); e.RetryAfter != 0 {
		t.Errorf("%+v", e)
	}
	// What was committed before is not said to be refused.
	if got := known(); !strings.Contains(got, `"duplicate":true`) {
		t.Errorf("a repeat: %s", got)
	}
	before := broker.Metric(t, n, "cantus_limit_refusals_total")
	if e := wantRefusal(t, ask(t, nc, "cantus.ns.loud.append.0", "new", "Nats-Msg-Id", "new"), subjects.StorageFull); e.Limit != "kept" {
		t.Errorf("%+v", e)
	}
	if m := ask(t, nc, "cantus.ns.loud.batch.0", string(item("x"))); !strings.Contains(string(m.Data), `"limit":"kept"`) {
		t.Errorf("a batch: %s", m.Data)
	}
	if n := broker.Metric(t, n, "cantus_limit_refusals_total"); n != before+2 {
		t.Errorf("%v refusals are counted, want %v", n, before+2)
	}
	askServed(t, nc, "cantus.ns.loud.cursor.0.c", `{"txid":1}`)
	askServed(t, nc, "cantus.admin.trim.0", fmt.Sprintf(`{"before":%d}`, i.HighWaterMark+1))
	if m := loud("x"); strings.Contains(string(m.Data), "error") {
		t.Errorf("after a trim: %s", m.Data)
	}
	_, nc = reopen(t, n, dir, broker.Options{Partitions: 2})
	askNamespace(t, nc, "cantus.ns.quiet.append.0", "after a restart")
	eventually(t, "the limit is in force after a restart", func() bool {
		l := info(t, nc, 0).Limits
		return l != nil && l.Kept == 1000
	})
	setNamespace(t, nc, `{"name":"loud"}`)
	eventually(t, "there is no limit", func() bool { return info(t, nc, 0).Limits == nil })
}

// What is wrong with a namespace is said, and nothing changes.
func TestRefusedNamespaces(t *testing.T) {
	_, nc := openNode(t, t.TempDir(), broker.Options{})
	setNamespace(t, nc, `{"name":"orders","partitions":[1]}`)
	for body, text := range map[string]string{
		`{}`:                                               `name: "" is not a name`,
		`{"name":"a.b","partitions":[0]}`:                  "is not a name",
		`{"name":"*","partitions":[0]}`:                    "is not a name",
		`{"name":"$x","partitions":[0]}`:                   "tokens that start with $",
		`{"name":"x"}`:                                     "name its partitions",
		`{"name":"x","partitions":[2]}`:                    "no partition 2",
		`{"name":"x","partitions":[1]}`:                    "belongs to the namespace orders",
		`{"name":"orders","partitions":[0]}`:               "can't change",
		`{"name":"x","remove":true}`:                       "no namespace x",
		`{"name":"orders","remove":true,"partitions":[1]}`: "takes no partitions",
		`{"name":"orders","limits":{"bytes":-1}}`:          "bytes",
		`{"name":"orders","limit":{}}`:                     "limit",
	} {
		e := wantRefusal(t, ask(t, nc, "cantus.admin.cluster.namespace", body), subjects.BadRequest)
		if !strings.Contains(e.Message, text) {
			t.Errorf("%s: %s", body, e.Message)
		}
	}
}

package broker_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// documented takes a NATS configuration out of subjects.md.
func documented(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../subjects.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)<!-- nats: " + name + " -->\n```\n(.*?)```").FindSubmatch(text)
	if found == nil {
		t.Fatalf("subjects.md has no NATS configuration %q", name)
	}
	return string(found[1])
}

// requests has one request of each kind that a client may try.
var requests = map[string]string{
	"cantus.append.0": "x", "cantus.append.key.alice": "x", "cantus.append.key.bob": "x",
	"cantus.batch.0": string(item("x")), "cantus.read.0": "", "cantus.replica.read.0": "", "cantus.get.0": `{"txid":1}`,
	"cantus.info": "", "cantus.info.0": "", "cantus.cursor.0.billing": "", "cantus.cursor.0.other": "",
	"cantus.cursors.0": "", "cantus.admin.batches.0": "",
	"cantus.admin.status": "", "cantus.admin.trim.0": `{"before":1}`, "cantus.admin.cluster.balance": "", "$SRV.PING.cantus": "",
}

// publications are what only nodes publish; subscriptions are what a client may
// try to subscribe to.
var (
	publications = []string{"cantus.packed.0", "cantus.feed.0.tx", "cantus.advisory.leader", "cantus.admin.hello", "cantus.admin.join", "cantus.admin.node.n1.member",
		"cantus.admin.pace", "cantus.admin.pace.n1", "$SYS.REQ.USER.INFO", "$SYS.REQ.ACCOUNT.PING.CONNZ"}
	subscriptions = []string{
		"cantus.append.0", "cantus.append.>", "cantus.append.0.alice", "cantus.append.key.*", "cantus.batch.*", "cantus.read.0", "cantus.replica.read.*",
		"cantus.get.0", "cantus.info", "cantus.info.0", "cantus.cursor.>", "cantus.cursors.*", "cantus.admin.>", "cantus.admin.hello", "$SRV.PING.cantus",
		"cantus.>", ">", "_INBOX.>", "cantus.packed.0", "cantus.feed.>", "cantus.advisory.>",
	}
)

// role is what a user of the documented configurations may do.
type role struct {
	name, password string
	asks, hears    []string
}

var (
	readerAsks = []string{"cantus.read.0", "cantus.replica.read.0", "cantus.get.0", "cantus.info", "cantus.info.0"}
	roles      = []role{
		{"writer", "w", []string{"cantus.append.0", "cantus.append.key.alice", "cantus.append.key.bob", "cantus.batch.0", "cantus.info", "cantus.info.0"}, nil},
		{"alice", "a", []string{"cantus.append.key.alice"}, nil},
		{"reader", "r", readerAsks, nil},
		{"follower", "f", append([]string{"cantus.cursor.0.billing"}, readerAsks...), []string{"cantus.packed.0", "cantus.feed.>"}},
		{"backup", "b", []string{"cantus.info", "cantus.info.0", "cantus.cursors.0", "cantus.admin.batches.0"}, nil},
		{"operator", "o", []string{"cantus.info", "cantus.info.0", "cantus.cursors.0", "cantus.admin.batches.0", "cantus.admin.status", "cantus.admin.trim.0",
			"cantus.admin.cluster.balance", "$SRV.PING.cantus"}, []string{"cantus.advisory.>"}},
	}
)

// refused does something on a connection of its own, and reports whether the
// NATS server forbids it.
func refused(t *testing.T, n *broker.Node, do func(*nats.Conn) error, opts ...nats.Option) bool {
	t.Helper()
	nc := connect(t, n, append(opts, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	defer nc.Close()
	if err := errors.Join(do(nc), nc.FlushTimeout(patience)); err != nil {
		t.Fatal(err)
	}
	return errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}

// Each role of subjects.md can do what the table there says, and nothing else,
// with both of the configurations there.
func TestPermissionsOfTheDocument(t *testing.T) {
	for name, account := range map[string]string{"users": "", "account": "LOG"} {
		t.Run(name, func(t *testing.T) {
			n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, documented(t, name)), Account: account, Partitions: 1})
			if r := appendTx(t, nc, "cantus.append.0", "first"); r.Error != nil {
				t.Fatal(r.Error)
			}
			for _, r := range roles {
				as := []nats.Option{nats.UserInfo(r.name, r.password), nats.CustomInboxPrefix("_INBOX_" + r.name)}
				r.tryRequests(t, n, as)
				r.tryOthers(t, n, as)
			}
			feedIsHeard(t, n, nc)
		})
	}
}

// feedIsHeard checks that both forms of the feed reach the follower.
func feedIsHeard(t *testing.T, n *broker.Node, nc *nats.Conn) {
	t.Helper()
	follower := connect(t, n, nats.UserInfo("follower", "f"))
	var subs []*nats.Subscription
	for _, subject := range []string{"cantus.packed.*", "cantus.feed.>"} {
		sub, err := follower.SubscribeSync(subject)
		if err != nil {
			t.Fatal(err)
		}
		subs = append(subs, sub)
	}
	if err := follower.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	if r := appendTx(t, nc, "cantus.append.0", "fed"); r.Error != nil {
		t.Fatal(r.Error)
	}
	for _, sub := range subs {
		if m, err := sub.NextMsg(patience); err != nil || !strings.HasSuffix(string(m.Data), "fed") {
			t.Fatalf("%s: %v, %v", sub.Subject, m, err)
		}
	}
}

func (r role) tryRequests(t *testing.T, n *broker.Node, as []nats.Option) {
	for subject, body := range requests {
		may := slices.Contains(r.asks, subject)
		if got := refused(t, n, func(nc *nats.Conn) error { return nc.Publish(subject, []byte(body)) }, as...); got == may {
			t.Errorf("%s asks %s: refused is %t", r.name, subject, got)
		}
		if !may {
			continue
		}
		nc := connect(t, n, as...)
		if m, err := nc.Request(subject, []byte(body), patience); err != nil || m.Header.Get(subjects.HeaderErrorCode) != "" {
			t.Errorf("%s asks %s: %v, %v", r.name, subject, m, err)
		}
		if strings.Contains(subject, ".read.") {
			if a := collect(t, nc, subject, ""); a.end == nil || len(a.transactions) == 0 {
				t.Errorf("%s reads %s: %+v", r.name, subject, a)
			}
		}
		nc.Close()
	}
}

func (r role) tryOthers(t *testing.T, n *broker.Node, as []nats.Option) {
	for _, subject := range publications {
		if !refused(t, n, func(nc *nats.Conn) error { return nc.Publish(subject, nil) }, as...) {
			t.Errorf("%s publishes %s", r.name, subject)
		}
	}
	for _, subject := range subscriptions {
		for _, queue := range []string{"", "cantus"} {
			got := refused(t, n, func(nc *nats.Conn) error { _, err := nc.QueueSubscribeSync(subject, queue); return err }, as...)
			if may := slices.Contains(r.hears, subject); got == may {
				t.Errorf("%s subscribes to %s, queue %q: refused is %t", r.name, subject, queue, got)
			}
		}
	}
	if !refused(t, n, func(nc *nats.Conn) error { _, err := nc.SubscribeSync("_INBOX_other.>"); return err }, as...) {
		t.Errorf("%s reads another's inbox", r.name)
	}
}

// unconfigured are NATS configurations that say nothing of Cantus, and how a
// client connects.
func unconfigured(t *testing.T) map[string]func() (*broker.Node, []nats.Option) {
	open := func(text string, opts ...nats.Option) func() (*broker.Node, []nats.Option) {
		return func() (*broker.Node, []nats.Option) {
			n, _ := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, text), Partitions: 1})
			return n, opts
		}
	}
	return map[string]func() (*broker.Node, []nats.Option){
		"nothing":             open(""),
		"JetStream":           open(fmt.Sprintf("jetstream { store_dir: %q }", t.TempDir())),
		"a system account":    open(`accounts { SYS: { users: [ {user: s, password: s} ] } }` + "\nsystem_account: SYS"),
		"a user":              open(`authorization { user: u, password: p }`, nats.UserInfo("u", "p")),
		"a token":             open(`authorization { token: secret }`, nats.Token("secret")),
		"users":               open(`authorization { users: [ {user: u, password: p} ] }`, nats.UserInfo("u", "p")),
		"default permissions": open(`authorization { default_permissions: {publish: ">", subscribe: ">"}, users: [ {user: u, password: p}, {user: v, password: p} ] }`, nats.UserInfo("u", "p")),
		"wide permissions": open(`authorization { users: [ {user: u, password: p, permissions: {publish: {allow: ["cantus.packed.0", ">"]}, `+
			`subscribe: {allow: [">", "cantus.append.0 cantus"]}, allow_responses: true}} ] }`, nats.UserInfo("u", "p")),
		"no listener": func() (*broker.Node, []nats.Option) {
			n, _ := openNode(t, t.TempDir(), broker.Options{Partitions: 1})
			return n, nil
		},
	}
}

// Whatever the NATS configuration says, nobody but nodes can feed or answer.
func TestPermissionsByDefault(t *testing.T) {
	testkit.NotShort(t, "many nodes are started")
	for name, open := range unconfigured(t) {
		t.Run(name, func(t *testing.T) {
			n, as := open()
			try := func(do func(*nats.Conn) error) bool { return refused(t, n, do, as...) }
			if n.ClientURL() == "" { // a connection within the process
				try = func(do func(*nats.Conn) error) bool {
					nc, err := n.Conn(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
					if err = errors.Join(err, do(nc), nc.FlushTimeout(patience)); err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					return errors.Is(nc.LastError(), nats.ErrPermissionViolation)
				}
			}
			for _, subject := range publications {
				if !try(func(nc *nats.Conn) error { return nc.Publish(subject, nil) }) {
					t.Errorf("anybody publishes %s", subject)
				}
			}
			for _, subject := range subscriptions {
				wide := subject == ">" || subject == "cantus.>" || subject == "_INBOX.>"
				heard := slices.Contains([]string{"cantus.packed.0", "cantus.feed.>", "cantus.advisory.>"}, subject)
				if got := try(func(nc *nats.Conn) error { _, err := nc.SubscribeSync(subject); return err }); got == (wide || heard) {
					t.Errorf("anybody subscribes to %s: refused is %t", subject, got)
				}
			}
			for subject, body := range requests {
				if try(func(nc *nats.Conn) error { return nc.Publish(subject, []byte(body)) }) {
					t.Errorf("%s is refused", subject)
				}
			}
		})
	}
}

// A configuration permits no more than before.
func TestPermissionsStayNarrow(t *testing.T) {
	n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, `authorization { users: [
		{user: u, password: p, permissions: {publish: "cantus.append.0", subscribe: "_INBOX.>"}},
		{user: mute, password: p, permissions: {publish: {deny: ["secret"]}, subscribe: {allow: ["a", "x.>"], deny: ["x.secret"]}}},
		{user: responder, password: p, permissions: {subscribe: "a", allow_responses: true}} ] }`)})
	for _, c := range []struct {
		user, verb, subject string
		refused             bool
	}{
		{"u", "pub", "cantus.append.0", false}, {"u", "pub", "cantus.append.1", true}, {"u", "pub", "cantus.info", true},
		{"u", "sub", "_INBOX.x", false}, {"u", "sub", "cantus.feed.>", true}, {"u", "sub", "a", true},
		{"mute", "sub", "a", false}, {"mute", "sub", "x.y", false}, {"mute", "sub", "x.secret", true}, {"mute", "sub", "c", true},
		{"mute", "pub", "secret", true}, {"mute", "pub", "b", false}, {"mute", "pub", "cantus.packed.0", true},
		{"responder", "pub", "b", true}, {"responder", "sub", "a", false},
	} {
		got := refused(t, n, func(nc *nats.Conn) error {
			if c.verb == "pub" {
				return nc.Publish(c.subject, nil)
			}
			_, err := nc.SubscribeSync(c.subject)
			return err
		}, nats.UserInfo(c.user, "p"))
		if got != c.refused {
			t.Errorf("%s: %s %s: refused is %t", c.user, c.verb, c.subject, got)
		}
	}
	responder := connect(t, n, nats.UserInfo("responder", "p"))
	if _, err := responder.Subscribe("a", func(m *nats.Msg) { _ = m.Respond([]byte("yes")) }); err != nil {
		t.Fatal(err)
	}
	if err := responder.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	if m := ask(t, nc, "a", ""); string(m.Data) != "yes" {
		t.Errorf("a user that may only respond answers %q", m.Data)
	}
}

// A subscriber to everything, in the nodes' former queue group or in any other,
// takes no request from them, and sees none.
func TestNobodyTakesRequests(t *testing.T) {
	n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, ""), Partitions: 1})
	spy := connect(t, n)
	var subs []*nats.Subscription
	for _, queue := range []string{"", "cantus", "other"} {
		for _, subject := range []string{">", "cantus.>", "*.append.0"} {
			sub, err := spy.QueueSubscribeSync(subject, queue)
			if err != nil {
				t.Fatal(err)
			}
			subs = append(subs, sub)
		}
	}
	if err := spy.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if r := appendTx(t, nc, "cantus.append.0", fmt.Sprint(i)); r.Txid != uint64(i+1) {
			t.Fatalf("append %d: %+v", i, r)
		}
	}
	if err := spy.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	feed := 0
	for _, sub := range subs {
		for m, err := sub.NextMsg(1); err == nil; m, err = sub.NextMsg(1) {
			if strings.HasPrefix(m.Subject, "cantus.append.") {
				t.Fatalf("%s, queue %q: %s %q", sub.Subject, sub.Queue, m.Subject, m.Data)
			}
			if strings.HasPrefix(m.Subject, "cantus.feed.") {
				feed++
			}
		}
	}
	if feed == 0 {
		t.Error("the subscriptions hear nothing at all")
	}
}

// Where a node can't add permissions, still no client can join the queue group
// that leaders answer in.
func TestNobodyTakesRequestsInOperatorMode(t *testing.T) {
	opts, file := operatorMode(t)
	n, nc := openNode(t, t.TempDir(), opts)
	spy := connect(t, n, nats.UserCredentials(file))
	if _, err := spy.QueueSubscribeSync(">", "cantus"); err != nil {
		t.Fatal(err)
	}
	if err := spy.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if m, err := nc.Request("cantus.append.0", nil, patience); err != nil || !strings.Contains(string(m.Data), "txid") {
			t.Fatalf("append %d: %v, %v", i, m, err)
		}
	}
}

// A node does not publish to its own subjects, or to the server's, on behalf of
// a client.
func TestAnswersAreNoRequests(t *testing.T) {
	n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, "")})
	watch, err := nc.SubscribeSync("cantus.packed.*")
	if err != nil {
		t.Fatal(err)
	}
	if r := appendTx(t, nc, "cantus.append.0", `{"node":"n1"}`); r.Txid != 1 {
		t.Fatalf("%+v", r)
	}
	client := connect(t, n)
	for _, reply := range []string{
		"cantus.append.0", "cantus.append.key.k", "cantus.batch.0", "cantus.packed.0", "cantus.feed.0.tx", "cantus.admin.cluster.drain",
		"cantus.cursor.0.c", "cantus.cursors.0", "cantus.read.0", "$JS.API.STREAM.CREATE.s", "$SRV.PING.cantus",
	} {
		for subject, body := range map[string]string{
			"cantus.read.0": `{"packed":true,"headers_only":true}`, "cantus.replica.read.0": `{"packed":true}`, "cantus.get.0": `{"txid":1}`,
			"cantus.append.1": "x", "cantus.info": "", "cantus.admin.status": "", "$SRV.PING.cantus": "",
		} {
			if err := client.PublishRequest(subject, reply, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := client.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	if r := appendTx(t, nc, "cantus.append.0", "last"); r.Txid != 2 {
		t.Fatalf("answers were appended: %+v", r)
	}
	if r := appendTx(t, nc, "cantus.append.1", "last"); r.Txid != 1 {
		t.Fatalf("a request with such a reply subject was carried out: %+v", r)
	}
	for range 3 {
		if _, err := watch.NextMsg(patience); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := watch.NextMsg(1); err == nil {
		t.Fatalf("an answer was fed: %q", m.Data)
	}
}

// A key is a permission of its own: it opens neither other keys nor partitions.
func TestKeysOnly(t *testing.T) {
	n, _ := openNode(t, t.TempDir(), broker.Options{Partitions: 4, NATSConfig: config(t, `authorization { users: [
		{user: alice, password: p, permissions: {publish: ["cantus.append.*.alice"], subscribe: ["_INBOX.>"]}},
		{user: keys, password: p, permissions: {publish: ["cantus.append.*.*"], subscribe: ["_INBOX.>"]}},
		{user: direct, password: p, permissions: {publish: ["cantus.append.*"], subscribe: ["_INBOX.>"]}} ] }`)})
	for _, c := range []struct {
		user, subject string
		forbidden     bool
		reason        subjects.Reason
	}{
		{user: "alice", subject: "cantus.append.key.alice"}, {user: "alice", subject: "cantus.append.3.alice"},
		{user: "alice", subject: "cantus.append.0.alice", reason: subjects.BadRequest},
		{user: "alice", subject: "cantus.append.key.bob", forbidden: true}, {user: "alice", subject: "cantus.append.3", forbidden: true},
		{user: "keys", subject: "cantus.append.key.alice"}, {user: "keys", subject: "cantus.append.key.bob"},
		{user: "keys", subject: "cantus.append.3", forbidden: true},
		{user: "direct", subject: "cantus.append.3"}, {user: "direct", subject: "cantus.append.key.alice", forbidden: true},
	} {
		as := nats.UserInfo(c.user, "p")
		if got := refused(t, n, func(nc *nats.Conn) error { return nc.Publish(c.subject, nil) }, as); got != c.forbidden {
			t.Errorf("%s: %s: refused is %t", c.user, c.subject, got)
		}
		if c.forbidden {
			continue
		}
		r := appendTx(t, connect(t, n, as), c.subject, "x")
		switch {
		case c.reason != "" && (r.Error == nil || r.Error.Reason != c.reason):
			t.Errorf("%s: %+v, want %s", c.subject, r, c.reason)
		case c.reason == "" && r.Error != nil:
			t.Errorf("%s: %v", c.subject, r.Error)
		case strings.HasSuffix(c.subject, ".alice") && r.Partition != 3 && c.reason == "":
			t.Errorf("%s went to partition %d", c.subject, r.Partition)
		}
	}
}

package broker_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// retention asks for what a policy means for partition 0.
func retention(t *testing.T, nc *nats.Conn, body string) (r subjects.RetentionReply) {
	t.Helper()
	m := askServed(t, nc, subjects.Names{}.Admin("retention", "0"), body)
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error != nil {
		t.Fatalf("retention %s: %s", body, m.Data)
	}
	return r
}

// setRetention sets or removes a policy.
func setRetention(t *testing.T, nc *nats.Conn, body string) (r subjects.AdminReply) {
	t.Helper()
	m := askServed(t, nc, subjects.Names{}.Admin("cluster", "retention"), body)
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error != nil {
		t.Fatalf("set %s: %s", body, m.Data)
	}
	return r
}

// isOfThePolicy reports whether a warning is not of a node that was too slow to
// apply a change of the facts.
func isOfThePolicy(warning string) bool {
	return !strings.Contains(warning, "has not applied this yet")
}

// Whoever leads trims by the policy: exactly as far as the cursor allows, and
// the same on every replica. It says when the archive is behind.
func TestRetentionThroughLeaderChanges(t *testing.T) {
	opts := broker.Options{Partitions: 1, RetentionInterval: 100 * time.Millisecond}
	broker.PointEvery(&opts, 64)
	c := openNodes(t, 3, opts)
	c.awaitPlaced("n1")
	nc := c.conn("n3")
	events, err := nc.SubscribeSync("cantus.advisory.archive")
	if err != nil {
		t.Fatal(err)
	}
	want := func(behind bool) {
		t.Helper()
		var e struct {
			Partition int
			Cursor    string
			Behind    bool
		}
		for {
			m, err := events.NextMsgWithContext(testkit.Soon(t))
			if err != nil {
				t.Fatalf("no advisory says that behind is %v: %v", behind, err)
			}
			if err := json.Unmarshal(m.Data, &e); err != nil || e.Cursor != "archive" || e.Partition != 0 {
				t.Fatalf("%s", m.Data)
			}
			if e.Behind == behind {
				return
			}
		}
	}
	reply := setRetention(t, nc, `{"policy":{"count":1,"archive":"archive","archive_lag":"200ms"}}`)
	if slices.ContainsFunc(reply.Warnings, isOfThePolicy) || reply.Facts == 0 {
		t.Errorf("%+v", reply)
	}
	for round, leader := range []string{"n2", "n3", "n1"} {
		end := uint64(100 * (round + 1))
		fillTo(t, nc, end)
		want(true)
		askServed(t, nc, "cantus.cursor.0.archive", fmt.Sprintf(`{"txid":%d}`, end-30))
		eventually(t, "what the cursor has passed is trimmed", func() bool { return info(t, nc, 0).FirstTxid == end-50+1 })
		r := retention(t, nc, "")
		if r.Goes != nil || r.FirstTxid != end-49 || len(r.Cursors) != 1 || r.Cursors[0].LagTransactions != 30 {
			t.Errorf("%+v", r)
		}
		c.operate("n3", subjects.AdminRequest{Partition: new(int), To: leader}, "cluster", "transfer")
		eventually(t, leader+" leads", func() bool { return c.leader(0, "n3") == leader })
	}
	want(true)
	askServed(t, nc, "cantus.cursor.0.archive", `{"txid":300}`)
	want(false)
	for _, name := range c.names {
		eventually(t, name+" has trimmed its log", func() bool { return broker.Trimmed(c.node(name), 0) })
	}
	wantSameTables(t, c, "n1", "n2", "n3")
	if r := setRetention(t, nc, `{}`); !strings.Contains(r.Done, "removed") {
		t.Errorf("%+v", r)
	}
	if r := retention(t, nc, ""); r.Policy != nil {
		t.Errorf("the policy is still there: %+v", r)
	}
}

// What is wrong with a policy is said, and nothing changes.
func TestRefusedPolicies(t *testing.T) {
	_, nc := one(t, broker.Options{Partitions: 1})
	for body, text := range map[string]string{
		`{"policy":{}}`:                              "it says nothing",
		`{"policy":{"age":"0s"}}`:                    "policy.age",
		`{"policy":{"age":"-1h"}}`:                   "policy.age",
		`{"policy":{"age":"a month"}}`:               `"a month" is not a time`,
		`{"policy":{"bytes":-1}}`:                    "bytes",
		`{"policy":{"cursors":["a b"]}}`:             "policy.cursors",
		`{"policy":{"cursors":[""]}}`:                "policy.cursors",
		`{"policy":{"age":"1h","archive_lag":"1h"}}`: "there is no archive",
		`{"partition":-1,"policy":{"age":"1h"}}`:     "no partition -1",
		`{"partition":1,"policy":{"age":"1h"}}`:      "no partition 1",
		`{"partition":0}`:                            "partition 0 has no policy to remove",
		`{}`:                                         "there is no policy of all partitions to remove",
		`{"policy":{"count":1,"ages":"1h"}}`:         "ages",
		`{"policy":{"cursors":[` + strings.Repeat(`"a",`, 3) + `"b"],"archive":"a"},"x":1}`: "x",
	} {
		m := ask(t, nc, "cantus.admin.cluster.retention", body)
		e := wantRefusal(t, m, subjects.BadRequest)
		if !strings.Contains(e.Message, text) {
			t.Errorf("%s: %s", body, e.Message)
		}
	}
	var many []string
	for i := range subjects.MaxRetentionCursors + 1 {
		many = append(many, fmt.Sprintf("%q", fmt.Sprint("c", i)))
	}
	for _, subject := range []string{"cantus.admin.cluster.retention", "cantus.admin.retention.0"} {
		e := wantRefusal(t, ask(t, nc, subject, `{"policy":{"cursors":[`+strings.Join(many, ",")+`]}}`), subjects.BadRequest)
		if !strings.Contains(e.Message, "at most 32") {
			t.Errorf("%s", e.Message)
		}
	}
	if r := retention(t, nc, ""); r.Policy != nil || r.FirstTxid != 1 {
		t.Errorf("%+v", r)
	}
}

// Whatever node answers next, a change that was answered is in its answer: the
// nodes apply it one after the other.
func TestAChangeIsSeenByTheNextRequest(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 3})
	c.awaitPlaced("n1")
	nc := c.conn("n2")
	for count := range uint64(10) {
		r := setRetention(t, nc, fmt.Sprintf(`{"policy":{"count":%d}}`, count+1))
		if !slices.ContainsFunc(r.Warnings, isOfThePolicy) {
			t.Errorf("no warning that there is no archive: %+v", r)
		}
		if len(r.Warnings) > 1 {
			t.Errorf("%+v", r)
		}
		for p := range 3 {
			var got subjects.RetentionReply
			m := askServed(t, nc, subjects.Names{}.Admin("retention", fmt.Sprint(p)), "")
			if err := json.Unmarshal(m.Data, &got); err != nil || got.Policy == nil || got.Policy.Count != count+1 {
				t.Errorf("after a count of %d was set, partition %d has %s", count+1, p, m.Data)
			}
		}
		for _, name := range c.names {
			if s := c.status(name); s.Facts < r.Facts {
				t.Errorf("node %s is at %d of the facts after the answer of %d", name, s.Facts, r.Facts)
			}
		}
	}
}

// An operation does not wait for a node that can't apply it, and says which one
// it is.
func TestAChangeThatANodeHasNotAppliedIsSaid(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	cut := c.cableTo("n3")
	c.start(c.names...)
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	cut(true)
	t.Cleanup(func() { cut(false) })
	eventually(t, "the answer names n3", func() bool { // another one has to lead the facts, if n3 does
		m := askLeader(t, nc, subjects.Names{}.Admin("cluster", "retention"), `{"policy":{"count":1}}`)
		return strings.Contains(string(m.Data), "node n3 has not applied this yet")
	})
}

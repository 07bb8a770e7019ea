package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

func TestMessageIDReused(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	first := mustAppend(t, c, 1, "one", "Nats-Msg-Id", "id-1")
	again := mustAppend(t, c, 1, "one", "Nats-Msg-Id", "id-1")
	if again.Txid != first.Txid || !again.Duplicate || again.Time != first.Time {
		t.Errorf("the repeat gave %v at %s, the first %v at %s", again, again.Time, first, first.Time)
	}
	checkReused := func() {
		t.Helper()
		answer, err := c.Append(t.Context(), "cantus.append.1", []byte("two"), "Nats-Msg-Id", "id-1")
		if err != nil || answer.Error == nil || answer.Error.Code != 422 || answer.Error.Reason != "id_reused" {
			t.Fatalf("another payload under the same id: %v %v", answer, err)
		}
		if !strings.Contains(answer.Error.Message, "id-1") {
			t.Errorf("the message does not name the id: %s", answer.Error.Message)
		}
	}
	checkReused()
	// The id identifies its payload before any lock is checked.
	mustAppend(t, c, 1, "hot", "Cantus-Append-Lock", "hot")
	stale := mustAppend(t, c, 1, "one", "Nats-Msg-Id", "id-1", "Cantus-Write-Lock", "hot", "Cantus-High-Water-Mark", "0")
	if stale.Txid != first.Txid || !stale.Duplicate {
		t.Errorf("a repeat with a lock that is taken gave %v", stale)
	}
	// Another partition has ids of its own.
	if other := mustAppend(t, c, 2, "two", "Nats-Msg-Id", "id-1"); other.Duplicate || other.Txid != 1 {
		t.Errorf("the same id in another partition gave %v", other)
	}

	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"a clean stop", "a kill"} {
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		c = dial(t, n.url)
		if again := mustAppend(t, c, 1, "one", "Nats-Msg-Id", "id-1"); again.Txid != first.Txid || !again.Duplicate || again.Time != first.Time {
			t.Errorf("after %s the repeat gave %v", how, again)
		}
		checkReused()
		if mark := mustInfo(t, c, 1).HighWaterMark; mark != 2 {
			t.Errorf("after %s the high-water mark is %d", how, mark)
		}
		n.kill()
	}
}

// TestWithoutReply sends appends without a reply subject: the valid ones
// commit, the others are reported in advisories.
func TestWithoutReply(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c, r := dial(t, n.url), dialRaw(t, n.url)
	advisories, err := c.Conn.SubscribeSync("cantus.advisory.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Conn.Flush(); err != nil {
		t.Fatal(err)
	}
	r.publish("cantus.append.2", "", nil, []byte("unanswered"))
	got, _, refused, err := c.Read(t.Context(), 2, map[string]any{"from": 1, "wait": "30s"})
	if err != nil || refused != nil || len(got) != 1 || string(got[0].Data) != "unanswered" {
		t.Fatalf("read %d messages, %v %v", len(got), refused, err)
	}

	for _, b := range []struct {
		block  []byte
		reason string
		names  string
	}{
		{block("Cantus-Wirte-Lock: a"), "bad_request", "Cantus-Wirte-Lock"},
		{block("Nats-Expected-Last-Sequence: 7"), "wrong_last", "7"},
		{[]byte("NATS/1.0\r\nnonsense\r\n\r\n"), "bad_request", "nonsense"},
	} {
		r.publish("cantus.append.2", "", b.block, []byte("refused"))
		m := nextAdvisory(t, advisories, b.reason)
		if !strings.Contains(string(m.Data), b.names) {
			t.Errorf("the advisory does not name %q: %s", b.names, m.Data)
		}
	}
	if mark := mustInfo(t, c, 2).HighWaterMark; mark != 1 {
		t.Errorf("the high-water mark is %d, want 1", mark)
	}
}

// nextAdvisory returns the next advisory of a refusal for reason, skipping
// others.
func nextAdvisory(t *testing.T, sub *nats.Subscription, reason string) *nats.Msg {
	t.Helper()
	for {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("no advisory of %s: %v", reason, err)
		}
		if !json.Valid(m.Data) {
			t.Fatalf("%s: not JSON: %q", m.Subject, m.Data)
		}
		if strings.Contains(string(m.Data), reason) {
			return m
		}
	}
}

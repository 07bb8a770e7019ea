package broker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// openNode runs a node on dir with two partitions and closes it in cleanup.
func openNode(t *testing.T, dir string, opts broker.Options) (*broker.Node, *nats.Conn) {
	t.Helper()
	if opts.Partitions == 0 {
		opts.Partitions = 2
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, err := broker.Open(ctx, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return n, nc
}

// appendTx sends an append and decodes the reply. Headers are given as
// "Key", "value" pairs.
func appendTx(t *testing.T, nc *nats.Conn, subject, payload string, headers ...string) subjects.Reply {
	t.Helper()
	m := nats.NewMsg(subject)
	m.Data = []byte(payload)
	for i := 0; i < len(headers); i += 2 {
		m.Header.Add(headers[i], headers[i+1])
	}
	var r subjects.Reply
	request(t, nc, m, &r)
	return r
}

func request(t *testing.T, nc *nats.Conn, m *nats.Msg, reply any) *nats.Msg {
	t.Helper()
	answer, err := nc.RequestMsg(m, patience)
	if err != nil {
		t.Fatalf("request %s: %v", m.Subject, err)
	}
	if err := json.Unmarshal(answer.Data, reply); err != nil {
		t.Fatalf("reply %q: %v", answer.Data, err)
	}
	return answer
}

// readAll reads a partition from a txid to its end.
func readAll(t *testing.T, nc *nats.Conn, partition int, from uint64) []*nats.Msg {
	t.Helper()
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	var all []*nats.Msg
	for {
		body := fmt.Sprintf(`{"from":%d,"max":1000}`, from)
		if err := nc.PublishRequest(subjects.Names{}.Read(partition), inbox, []byte(body)); err != nil {
			t.Fatal(err)
		}
		n := len(all)
		for {
			m, err := sub.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			if m.Header.Get("Status") == subjects.StatusEnd {
				if _, err := fmt.Sscan(m.Header.Get(subjects.HeaderNext), &from); err != nil {
					t.Fatal(err)
				}
				break
			}
			if code := m.Header.Get(subjects.HeaderErrorCode); code == "503" && len(all) == n {
				n = -1 // a leader that has ended: ask again
				break
			} else if code != "" {
				t.Fatalf("read refused: %s", m.Data)
			}
			all = append(all, m)
		}
		if len(all) == n {
			return all
		}
	}
}

func TestAppendConflictReadRestart(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		base := uint64(round * 3)
		n, nc := openNode(t, dir, broker.Options{})
		first := appendTx(t, nc, "cantus.append.0", "a", subjects.HeaderWriteLock, "account.1", subjects.HeaderHighWaterMark, fmt.Sprint(base), "App", "x")
		if first.Error != nil || first.Txid != base+1 {
			t.Fatalf("round %d: first append: %+v", round, first)
		}
		refused := appendTx(t, nc, "cantus.append.0", "b", subjects.HeaderWriteLock, "account.>", subjects.HeaderHighWaterMark, fmt.Sprint(base))
		if refused.Error == nil || refused.Error.Reason != subjects.Conflict || refused.Error.Txid != base+1 {
			t.Fatalf("round %d: conflicting append: %+v", round, refused)
		}
		for i := range uint64(2) {
			r := appendTx(t, nc, "cantus.append.0", "c", subjects.HeaderMsgID, fmt.Sprint("id", round, i))
			if r.Txid != base+2+i {
				t.Fatalf("round %d: plain append: %+v", round, r)
			}
		}
		if again := appendTx(t, nc, "cantus.append.0", "c", subjects.HeaderMsgID, fmt.Sprint("id", 0, 1)); again.Txid != 3 || !again.Duplicate {
			t.Fatalf("round %d: repeat: %+v", round, again)
		}
		ms := readAll(t, nc, 0, 1)
		if len(ms) != int(base)+3 {
			t.Fatalf("round %d: read %d transactions", round, len(ms))
		}
		for i, m := range ms {
			if m.Header.Get(subjects.HeaderTxid) != fmt.Sprint(i+1) {
				t.Fatalf("round %d: transaction %d has txid %s", round, i+1, m.Header.Get(subjects.HeaderTxid))
			}
		}
		nc.Close()
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

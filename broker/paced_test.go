package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/relay"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// slowly connects to a node over a slow line.
func slowly(t *testing.T, n *broker.Node, rate int) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(relay.Slow(t, n.ClientURL(), rate), nats.NoReconnect(), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// wide appends transactions of 16 KiB to a partition, kinds a and b in turn,
// each with its txid as the first of its payload.
func wide(t *testing.T, nc *nats.Conn, partition, count int) {
	t.Helper()
	for from := 1; from <= count; from += 50 {
		var body []byte
		for i := from; i < min(from+50, count+1); i++ {
			payload := fmt.Sprintf("%08d", i) + strings.Repeat("x", 16<<10)
			body = append(body, item(payload, subjects.HeaderKind, string(rune('b'-i%2)), subjects.HeaderMsgID, fmt.Sprint(i))...)
		}
		eventually(t, "a batch is appended", func() bool {
			m, err := nc.Request(subjects.Names{}.Batch(partition), body, patience)
			return err == nil && bytes.Contains(m.Data, []byte(`"results":[{"index":0`)) && !bytes.Contains(m.Data, []byte(`"error"`))
		})
	}
}

// wholly reads a partition of wide from end to end, in as many reads as it
// takes, and fails the test if any of them has a gap: compared with the log,
// and with what the answers say of themselves.
func wholly(t *testing.T, nc *nats.Conn, subject, options string, step, count uint64) {
	from, want := uint64(1), uint64(1)
	for tries := 0; from <= count; tries++ {
		body := fmt.Sprintf(`{"from":%d,"max":65536,"max_bytes":8388608%s}`, from, options)
		inbox := nc.NewRespInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err != nil {
			t.Error(err)
			return
		}
		_ = sub.SetPendingLimits(-1, -1)
		if err := nc.PublishRequest(subject, inbox, []byte(body)); err != nil {
			t.Error(err)
			return
		}
		var got, previous uint64
		for {
			m, err := sub.NextMsg(patience)
			if errors.Is(err, nats.ErrNoResponders) { // the leader changes
				tries--
				break
			}
			if err != nil {
				t.Errorf("%s %s: %v after %d transactions", subject, body, err, got)
				return
			}
			if code := m.Header.Get(subjects.HeaderErrorCode); code == "429" || code == "503" {
				if got > 0 {
					t.Errorf("%s: refused after %d transactions", body, got)
				}
				break
			}
			if m.Header.Get("Status") == subjects.StatusEnd {
				if last, sent := number(t, m, subjects.HeaderLast), number(t, m, subjects.HeaderCount); last != previous || sent != got {
					t.Errorf("%s: the end says %d transactions up to %d, %d up to %d came", body, sent, last, got, previous)
				}
				from = number(t, m, subjects.HeaderNext)
				if from > want+step {
					t.Errorf("%s: the next read is from %d, and %d did not come", body, from, want)
				}
				break
			}
			if at := number(t, m, subjects.HeaderPrevious); at != previous {
				t.Errorf("%s: a message says that %d was sent before it, %d was", body, at, previous)
			}
			ms := []*nats.Msg{m}
			if strings.Contains(options, "packed") {
				ms = unpack(t, m)
			}
			for _, m := range ms {
				previous = number(t, m, subjects.HeaderTxid)
				if got++; previous != want || fmt.Sprintf("%08d", want) != string(m.Data[:8]) {
					t.Errorf("%s: txid %d came where %d was next", body, previous, want)
					return
				}
				want += step
			}
		}
		_ = sub.Unsubscribe()
		if tries > 100 {
			t.Errorf("%s is at %d after %d reads", body, from, tries)
			return
		}
	}
	if want <= count {
		t.Errorf("%s %s: the log ends at %d, and %d did not come", subject, options, count, want)
	}
}

// manyReads reads a partition many times at once on one connection.
func manyReads(t *testing.T, nc *nats.Conn, partition, count int) {
	t.Helper()
	names := subjects.Names{}
	var reads sync.WaitGroup
	for i := range 4 {
		for _, options := range []string{"", `,"packed":true`, `,"kinds":["a"]`, `,"kinds":["a"],"packed":true,"wait":"10s"`} {
			step := uint64(1)
			if strings.Contains(options, "kinds") {
				step = 2
			}
			subject := names.Read(partition)
			if i%2 == 1 {
				subject = names.ReplicaRead(partition)
			}
			reads.Go(func() { wholly(t, nc, subject, options, step, uint64(count)) })
		}
	}
	reads.Wait()
}

// smallPending is a configuration of a NATS server that lets its clients be at
// most 8 MiB behind.
func smallPending(t *testing.T) string { return config(t, "max_pending: 8388608") }

// TestParallelReadsAreWhole reads much at once on a connection with a slow line
// and a small buffer in the server: each read is complete.
func TestParallelReadsAreWhole(t *testing.T) {
	testkit.NotShort(t, "it appends and reads some hundred megabytes")
	const count = 400
	n, nc := one(t, broker.Options{NATSConfig: smallPending(t)})
	wide(t, nc, 0, count)
	manyReads(t, slowly(t, n, 60<<20), 0, count)
}

// TestParallelReadsAreWholeAcrossNodes does the same through each node of a
// cluster.
func TestParallelReadsAreWholeAcrossNodes(t *testing.T) {
	const count = 200
	c := openNodes(t, 3, broker.Options{NATSConfig: smallPending(t), Partitions: 1})
	wide(t, c.conn("n1"), 0, count)
	for _, name := range c.names {
		manyReads(t, slowly(t, c.node(name), 60<<20), 0, count)
	}
}

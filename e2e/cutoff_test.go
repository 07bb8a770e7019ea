package e2e_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// TestClusterCutOffLeader cuts a leader off from both other nodes while clients
// still reach it.
func TestClusterCutOffLeader(t *testing.T) {
	c := newWiredCluster(t, 3, "--partitions", "1")
	c.startAll()
	c.awaitPlaced()
	c.record(1, 3, 2*time.Minute, 0)
	checkCutOff(t, c, c.cutOff())
}

// TestClusterFarApart does the same, and replays a part of the history with all
// its faults, over wires with a delay of 20 ms in each direction.
func TestClusterFarApart(t *testing.T) {
	testkit.OnlyLong(t, "minutes of a cluster: make cluster")
	c := newWiredCluster(t, 3, "--partitions", "2", "--msg-id-window", "30m")
	c.wires.delay = 20 * time.Millisecond
	c.startAll()
	c.awaitPlaced()
	faults := []fault{killed, paused.lasting(5 * time.Second), c.cutOff().lasting(5 * time.Second)}
	r := newReplayOf(t, loadHistory(t).head(t, 1000), workload.Backoff{}, c.writers(), 1)
	replayFaults(t, c, r, 2*len(faults), faults...)
	c.startAll()
	c.awaitPlaced()
	checkCutOff(t, c, c.cutOff())
}

// checkCutOff cuts the leader of partition 0 off while writers on both sides
// append. Clients of the cut-off node are refused or get no answer, and never
// see what is not committed; the other nodes continue. When the node is
// reconnected it discards its uncommitted entries, and its log becomes that of
// the others.
func checkCutOff(t *testing.T, c *cluster, cut fault) {
	t.Helper()
	watcher := c.dial(c.nodes[0].name)
	leader, err := c.leader(t.Context(), watcher, 0)
	if err != nil {
		t.Fatal(err)
	}
	inside := c.dialOnly(leader)
	outside := c.dialOnly(c.others(leader)[0])
	feed, err := inside.Conn.SubscribeSync("cantus.feed.0.>")
	if err := errors.Join(err, feed.SetPendingLimits(-1, -1), inside.Conn.Flush()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		c.mustKeep(watcher, 0, fmt.Sprintf("before-%d", i))
	}
	if err := cut.begin(leader); err != nil {
		t.Fatal(err)
	}
	lost := c.appendInVain(t, inside)
	for i := range 20 {
		c.mustKeep(outside, 0, fmt.Sprintf("meanwhile-%d", i))
	}
	c.checkUnseen(t, inside, lost)
	if err := cut.heal(leader); err != nil {
		t.Fatal(err)
	}
	c.awaitPlaced()
	again := c.mustKeep(inside, 0, lost[0])
	if again.Duplicate {
		t.Errorf("%s, sent to a leader without a majority, is there as txid %d", lost[0], again.Txid)
	}
	log := drain(t, c.dial(leader.name), 0)
	var payloads []string
	for _, m := range log {
		payloads = append(payloads, string(m.Data))
	}
	for _, payload := range lost[1:] {
		if slices.Contains(payloads, payload) {
			t.Errorf("%s is in the log", payload)
		}
	}
	if len(log) != 41 {
		t.Errorf("%d transactions, want 41: %v", len(log), payloads)
	}
	checkFed(t, feed, log)
	c.checkSame(t, map[int][]*nats.Msg{0: log})
}

// appendInVain appends to a leader that was cut off until it no longer accepts
// requests, and returns the payloads.
func (c *cluster) appendInVain(t *testing.T, client *workload.Client) (lost []string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		payload := fmt.Sprintf("lost-%d", len(lost))
		lost = append(lost, payload)
		r, err := client.AppendMsg(t.Context(), workload.NewAppend(0, payload, "Nats-Msg-Id", payload))
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			if len(lost) > 1 {
				return lost
			}
		case errors.Is(err, workload.ErrNoAnswer):
		case err != nil:
			t.Fatal(err)
		case r.Error == nil:
			t.Fatalf("a leader without a majority answered %s with %v", payload, r)
		case r.Error.Reason != "unavailable" && r.Error.Reason != "unknown":
			t.Fatalf("a leader without a majority refused %s with %v", payload, r)
		}
		if time.Now().After(deadline) {
			t.Fatal("a leader without a majority still takes appends")
		}
	}
}

// checkUnseen reads from a node that was cut off, by every kind of read.
func (c *cluster) checkUnseen(t *testing.T, client *workload.Client, lost []string) {
	t.Helper()
	got, _, refused, err := client.ReadFrom(t.Context(), "replica.read", 0, map[string]any{})
	if err != nil || refused != nil {
		t.Errorf("the replica is not read any more: %v %v", err, refused)
	}
	if len(got) != 20 {
		t.Errorf("the replica has %d transactions, of which 20 were committed", len(got))
	}
	for _, m := range got {
		if slices.Contains(lost, string(m.Data)) {
			t.Errorf("%s, which was not committed, is read", m.Data)
		}
	}
	if got, end, refused, err := client.Read(t.Context(), 0, map[string]any{}); err == nil && refused == nil {
		t.Errorf("a leader without a majority gave %d transactions, high-water mark %d", len(got), end.HighWaterMark)
	}
	if info, err := client.Info(t.Context(), 0); err == nil {
		t.Errorf("a leader without a majority says that it leads: %+v", info)
	}
}

// checkFed checks that everything on a feed is in the log, unchanged.
func checkFed(t *testing.T, feed *nats.Subscription, log []*nats.Msg) {
	t.Helper()
	for {
		m, err := feed.NextMsg(time.Millisecond) // it has come long ago
		if errors.Is(err, nats.ErrTimeout) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if id := workload.Txid(m); id == 0 || id > uint64(len(log)) || string(log[id-1].Data) != string(m.Data) {
			t.Errorf("fed %s as txid %d, which is not in the log", m.Data, id)
		}
	}
}

// others returns all nodes but one.
func (c *cluster) others(one *node) (others []*node) {
	for _, n := range c.nodes {
		if n != one {
			others = append(others, n)
		}
	}
	return others
}

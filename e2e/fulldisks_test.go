//go:build fulldisk && linux

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
)

// TestFullDisksOfFollowers has both followers of three nodes fill their disks
// with what they replicate, while the leader has space. Every append is
// answered, with a txid or storage_full. A trim succeeds, and is answered even
// if no byte is free.
func TestFullDisksOfFollowers(t *testing.T) {
	disks := map[string]disk{}
	c := &cluster{
		tb: t, common: []string{"--partitions", "1", "--reserve", "10MB", "--msg-id-window", "5s"}, routes: map[string]string{},
		disks: func(node string) string {
			d := newDisk(t, "tmpfs", "220M")
			disks[node] = d
			return d.path + "/data"
		},
	}
	c.found(3)
	c.startAll()
	c.awaitPlaced()
	client := c.dial("n1")
	client.Limit = patience
	leader, err := c.leader(t.Context(), client, 0)
	if err != nil {
		t.Fatal(err)
	}
	followers := c.others(leader)
	for _, n := range followers {
		disks[n.name].fill(90 << 20)
	}

	var acked, full atomic.Uint64
	payload := bytes.Repeat([]byte("x"), 40_000)
	stop := make(chan struct{})
	done := make(chan string, 8)
	for range cap(done) {
		w := c.dial(leader.name)
		w.Limit = patience
		go func() {
			for {
				select {
				case <-stop:
					done <- ""
					return
				default:
				}
				r, err := w.Append(t.Context(), "cantus.append.0", payload)
				switch {
				case err != nil && !errors.Is(err, nats.ErrNoResponders):
					done <- err.Error()
					return
				case err != nil:
				case r.Error == nil:
					acked.Add(1)
				case r.Error.Reason == "storage_full":
					full.Add(1)
				case r.Error.Reason != "unavailable":
					done <- r.String()
					return
				}
			}
		}()
	}
	await := func(what string, is func() bool) {
		t.Helper()
		defer func() {
			if t.Failed() {
				t.Logf("%s: %d acknowledged, %d times full", what, acked.Load(), full.Load())
			}
		}()
		testkit.Until(t, what, func() bool {
			for _, n := range c.nodes {
				mustNotTrace(t, n.running())
			}
			return is()
		})
	}
	trim := func(before uint64) string {
		t.Helper()
		body, _ := json.Marshal(map[string]uint64{"before": before})
		m, err := client.Request(t.Context(), &nats.Msg{Subject: "cantus.admin.trim.0", Data: body})
		if err != nil {
			t.Fatalf("trim: %v", err)
		}
		return string(m.Data)
	}
	await("storage_full", func() bool { return full.Load() > 5_000 })
	if said := trim(acked.Load() / 2); !strings.Contains(said, "first_txid") || strings.Contains(said, "error") {
		t.Errorf("trim: %s", said)
	}
	for _, n := range followers {
		disks[n.name].fill(0)
	}
	// The writers may all wait for what they proposed.
	if r, err := client.Append(t.Context(), "cantus.append.0", payload); err != nil || r.Error != nil && r.Error.Reason != "storage_full" {
		t.Errorf("an append without a byte: %+v, %v", r, err)
	}
	if said := trim(acked.Load() / 2); strings.Contains(said, "error") && !strings.Contains(said, "free space there") {
		t.Errorf("trim without a byte: %s", said)
	}
	was := acked.Load()
	for _, n := range followers {
		disks[n.name].empty()
	}
	await("appends", func() bool { return acked.Load() > was+10 })
	close(stop)
	for range cap(done) {
		if why := <-done; why != "" {
			t.Error(why)
		}
	}
	if now := mustInfo(t, client, 0).HighWaterMark; now < acked.Load() {
		t.Errorf("it ends at %d, %d were acknowledged", now, acked.Load())
	}
}

package e2e_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/workload"
)

// mix is a workload.Mix on a cluster.
type mix struct {
	*workload.Mix
	cluster *cluster
}

// startMix starts a few writers and readers for each partition, on all nodes.
// Their choices come from the seed.
func startMix(c *cluster, partitions int, seed uint64) *mix {
	o := workload.MixOptions{Partitions: partitions, Seed: seed, Conditions: true, Atomic: true, Sessions: true, Moves: true}
	for i := range 6 * partitions {
		o.Clients = append(o.Clients, c.dial(c.nodes[i%len(c.nodes)].name))
	}
	return &mix{Mix: workload.StartMix(c.tb.Context(), o), cluster: c}
}

// reach waits until more requests were answered.
func (m *mix) reach(ctx context.Context, more int) error {
	want := m.Answered() + int64(more)
	return m.cluster.until(ctx, fmt.Sprintf("at %d answers", want), func(context.Context) string {
		if n := m.Answered(); n < want {
			return fmt.Sprint(n)
		}
		return ""
	})
}

// judgeAlone stops all nodes, reads each node's replicas while it runs alone,
// and has the judge decide.
func (c *cluster) judgeAlone(t *testing.T, partitions int) {
	t.Helper()
	client := c.dial(c.nodes[0].name)
	infos := map[int]workload.PartitionInfo{}
	for p := range partitions {
		infos[p] = mustInfo(t, client, p)
		c.awaitMark(client, p, infos[p].HighWaterMark)
	}
	client.Conn.Close()
	c.stopAll()
	for _, n := range c.nodes {
		if err := n.launch(); err != nil {
			t.Fatal(err)
		}
		alone := dial(t, n.url, nats.RetryOnFailedConnect(true))
		for p := range partitions {
			log, first := c.readAlone(t, n, alone, p, infos[p].HighWaterMark)
			c.recorder.Drained(n.name, p, first, infos[p].Digest, log)
		}
		alone.Conn.Close()
		n.kill()
	}
	c.judge(t)
}

// readAlone reads a replica of a node that runs alone, from its first
// transaction up to a txid.
func (c *cluster) readAlone(t *testing.T, n *node, alone *workload.Client, partition int, mark uint64) (log []*nats.Msg, first uint64) {
	t.Helper()
	first = 1
	next := first
	if err := c.until(t.Context(), "drained", func(ctx context.Context) string {
		for next <= mark {
			msgs, end, refused, err := alone.ReadFrom(ctx, "replica.read", partition, map[string]any{"from": next, "max_bytes": 8 << 20, "max": 65536})
			switch {
			case refused != nil && refused.Reason == "trimmed" && len(log) == 0:
				first, next = refused.FirstTxid, refused.FirstTxid
				continue
			case err != nil || refused != nil:
				return fmt.Sprintf("%v %v", refused, err)
			}
			log, next = append(log, msgs...), end.Next
			if len(msgs) == 0 {
				return fmt.Sprintf("at %d, high-water mark %d", next, end.HighWaterMark)
			}
		}
		return ""
	}); err != nil {
		t.Fatalf("node %s: %v", n.name, err)
	}
	return log, first
}

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/workload"
)

// view is one writer's view of a partition: for each path the step that last
// touched it. It follows the feed, with a channel that is short on purpose, and
// reads what the feed left out.
type view struct {
	service   workload.Service
	client    *workload.Client
	partition int
	feed      chan *nats.Msg

	mark uint64 // the txid of the last transaction applied
	last map[string]string

	// fed and healed count the transactions that came from the feed and from
	// reads.
	fed, healed int
}

func newView(s workload.Service, c *workload.Client, partition int) (*view, error) {
	v := &view{service: s, client: c, partition: partition, feed: make(chan *nats.Msg, 64), last: map[string]string{}}
	if _, err := c.Conn.ChanSubscribe(fmt.Sprintf("cantus.feed.%d.>", partition), v.feed); err != nil {
		return nil, err
	}
	return v, c.Conn.Flush()
}

// apply applies the transaction that follows the mark.
func (v *view) apply(m *nats.Msg) error {
	if id := workload.Txid(m); id != v.mark+1 {
		return fmt.Errorf("transaction %d follows %d", id, v.mark)
	}
	var c commit
	if err := json.Unmarshal(m.Data, &c); err != nil {
		return fmt.Errorf("transaction %d: %q: %w", workload.Txid(m), m.Data, err)
	}
	v.mark++
	for _, f := range c.Files {
		v.last[f[1]] = c.id()
	}
	return nil
}

// takeFed applies the transactions that have come on the feed, and reads those
// that it left out.
func (v *view) takeFed(ctx context.Context) error {
	for {
		select {
		case m := <-v.feed:
			if err := v.takeOne(ctx, m); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (v *view) takeOne(ctx context.Context, m *nats.Msg) error {
	id := workload.Txid(m)
	if id == 0 {
		return fmt.Errorf("fed without a txid: %v", m.Header)
	}
	if id <= v.mark {
		return nil // the feed repeats, or a read was ahead of it
	}
	if err := v.heal(ctx, id-1); err != nil {
		return err
	}
	if id <= v.mark {
		return nil // healing read past it
	}
	v.fed++
	return v.apply(m)
}

// catchUp reads until the view has applied the transaction to.
func (v *view) catchUp(ctx context.Context, to uint64) error {
	if err := v.takeFed(ctx); err != nil {
		return err
	}
	return v.heal(ctx, to)
}

// heal reads until the transaction to is applied.
func (v *view) heal(ctx context.Context, to uint64) error {
	for v.mark < to {
		var got []*nats.Msg
		_, _, err := workload.Retry(ctx, v.service, v.client, func() (workload.Reply, error) {
			msgs, _, refused, err := v.client.Read(ctx, v.partition, map[string]any{"from": v.mark + 1, "wait": "30s"})
			got = msgs
			return workload.Reply{Error: refused}, err
		})
		if err != nil {
			return err
		}
		if len(got) == 0 {
			return fmt.Errorf("nothing to read from %d on, though %d is committed", v.mark+1, to)
		}
		for _, m := range got {
			v.healed++
			if err := v.apply(m); err != nil {
				return err
			}
		}
	}
	return nil
}

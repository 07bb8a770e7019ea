package broker

import (
	"context"
	"time"
)

// watchAway says of each member when it is away and when it is back, once.
func (n *Node) watchAway(ctx context.Context) {
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	for {
		facts, changed := n.meta.current()
		n.lookForAway(time.Now())
		look := tick.C
		if len(facts.Nodes) < 2 {
			look = nil // there is nobody else
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-look:
		}
	}
}

// lookForAway compares who is there with who was.
func (n *Node) lookForAway(now time.Time) {
	facts, _ := n.meta.current()
	n.mu.Lock()
	defer n.mu.Unlock()
	for name := range facts.Nodes {
		if name == n.opts.Name {
			continue
		}
		q, heard := n.peers.get(name)
		since, was := n.away[name]
		switch alive := heard && now.Sub(q.at) < aliveTime; {
		case alive && was:
			delete(n.away, name)
			n.log.Info("node is back", "node", name, "after", now.Sub(since).Round(time.Second/10))
		case alive || was:
		case !heard:
			if now.Sub(n.started) > aliveTime {
				n.away[name] = n.started.Local()
				n.log.Warn("node is away", "node", name, "since", "this node started")
			}
		default:
			n.away[name] = q.at
			n.log.Warn("node is away", "node", name, "since", q.at.UTC().Format(time.RFC3339))
		}
	}
	for name := range n.away {
		if _, member := facts.Nodes[name]; !member {
			delete(n.away, name)
		}
	}
}

// awaySince is when a member was last heard that is away, zero if it is not.
func (n *Node) awaySince(name string) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.away[name].UTC()
}

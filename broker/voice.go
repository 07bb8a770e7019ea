package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// Any node answers questions about the cluster, and any replica reads; the NATS
// server chooses which. A node that has lost touch with the cluster must not be
// chosen: one that was removed, and is started again on its old directory, would
// answer with the cluster of that time. So such subjects are subscribed to only
// while the node is in touch.

// voice holds the subscriptions to what any node answers.
type voice struct {
	wake  chan struct{} // capacity 1: look again
	ledAt atomic.Int64  // when the facts last had a leader here, Unix nanoseconds; 0 for never

	mu  sync.Mutex
	on  bool
	all map[*common]struct{}
}

// common is a subject that any node answers.
type common struct {
	subject string
	handle  func(*natslink.Message)
	id      int
}

// leaderlessTime is how long a node counts as in touch after it last followed a
// leader of the facts: an election is no reason to be silent.
const leaderlessTime = 2 * aliveTime

// inTouch reports whether this node knows the cluster as it is now, or nobody knows
// it better.
func (n *Node) inTouch() bool {
	n.mu.Lock()
	meta := n.meta
	n.mu.Unlock()
	now := time.Now()
	switch {
	case meta == nil, n.doubt.Load() != nil, errors.Is(n.Err(), ErrRemoved):
		return false
	case meta.group.Status().Leader != "":
		n.voice.ledAt.Store(now.UnixNano())
		return true
	case now.Sub(time.Unix(0, n.voice.ledAt.Load())) < leaderlessTime:
		return true
	}
	select {
	case <-n.cleared:
	default:
		return false // it has not heard the others yet
	}
	for _, q := range n.peers.all(now) {
		if q.Meta != nil && q.Meta.leads() {
			return false
		}
	}
	return true
}

// answerInCommon has this node answer a subject as any other would, while it is in
// touch. end ends that.
func (n *Node) answerInCommon(subject string, handle func(*natslink.Message)) (end func(), err error) {
	c := &common{subject: subject, handle: func(m *natslink.Message) {
		if m.Reply != "" && !n.inTouch() { // it came before the subscription ended
			e := subjects.Errorf(subjects.Unavailable, "node %s is out of touch with its cluster: ask again", n.opts.Name)
			n.readSender.Send(appendRefusal(nil, m.Reply, e, map[string]any{"error": e}))
			return
		}
		handle(m)
	}}
	v := &n.voice
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.on {
		if c.id, err = n.reads.Subscribe(subject, n.queueGroup(), c.handle); err != nil {
			return func() {}, err
		}
	}
	v.all[c] = struct{}{}
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.all, c)
		if v.on {
			n.unsubscribeAll([]subscribed{{n.reads, c.id}})
		}
	}, nil
}

// updateVoice begins or ends the subscriptions, as the node is in touch or not.
func (n *Node) updateVoice() error {
	v := &n.voice
	v.mu.Lock()
	defer v.mu.Unlock()
	in := n.inTouch()
	if in == v.on {
		return nil
	}
	var all []subscribed
	var err error
	for c := range v.all {
		if in {
			var failed error
			c.id, failed = n.reads.Subscribe(c.subject, n.queueGroup(), c.handle)
			err = errors.Join(err, failed)
		}
		all = append(all, subscribed{n.reads, c.id})
	}
	if v.on = in && err == nil; !v.on {
		n.unsubscribeAll(all)
	}
	return err
}

// watchVoice keeps the subscriptions as they should be until ctx ends.
func (n *Node) watchVoice(ctx context.Context) {
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	look := tick.C
	if !n.opts.clustered() {
		look = nil // it is always in touch
	}
	for {
		n.checkOwnFacts()
		if err := n.updateVoice(); err != nil && ctx.Err() == nil {
			n.log.Warn("questions about the cluster are not answered", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.voice.wake:
		case <-look:
		}
	}
}

// wake lets whoever waits on a channel of capacity 1 go on.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

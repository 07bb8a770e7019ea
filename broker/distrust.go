package broker

import (
	"fmt"
	"sync"
	"time"
)

// limited lets through one thing in a while, and counts the others.
type limited struct {
	mu   sync.Mutex
	last time.Time
	more int
}

// limitEvery is how often something that strangers can bring about is logged.
const limitEvery = 10 * time.Second

// pass reports whether it is time again, and how many were not let through since.
func (l *limited) pass(now time.Time) (ok bool, withheld int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && now.Sub(l.last) < limitEvery {
		l.more++
		return false, 0
	}
	withheld, l.more, l.last = l.more, 0, now
	return true, withheld
}

// repeats lets each text through once in a while.
type repeats struct {
	mu  sync.Mutex
	all map[string]*repeat
}

type repeat struct {
	last time.Time
	more int
}

const (
	// repeatEvery is how often the same text is logged.
	repeatEvery = time.Minute
	// maxRepeats bounds the texts that are remembered.
	maxRepeats = 256
)

// pass reports whether it is time for a text again, and how often it was not let
// through since.
func (r *repeats) pass(text string, now time.Time) (ok bool, withheld int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.all[text]; q != nil {
		if now.Sub(q.last) < repeatEvery {
			q.more++
			return false, 0
		}
		withheld, q.more, q.last = q.more, 0, now
		return true, withheld
	}
	if r.all == nil || len(r.all) >= maxRepeats {
		r.all = map[string]*repeat{}
	}
	r.all[text] = &repeat{last: now}
	return true, 0
}

// once remembers what was complained of. When there is too much it forgets.
type once struct {
	mu   sync.Mutex
	said map[string]bool
}

// maxOnce bounds what is remembered.
const maxOnce = 256

// first reports whether it is asked for key the first time.
func (o *once) first(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said[key] {
		return false
	}
	if o.said == nil || len(o.said) >= maxOnce {
		o.said = map[string]bool{}
	}
	o.said[key] = true
	return true
}

// distrust counts a message between nodes that is not believed, and logs it once
// in a while. The name is what it claims.
func (n *Node) distrust(what, name string, err error) {
	n.metrics.distrusted.WithLabelValues(what).Inc()
	ok, withheld := n.distrusted.pass(time.Now())
	if !ok {
		return
	}
	args := []any{"what", what, "not_logged_before", withheld}
	if name != "" {
		args = append(args, "says_it_is", fmt.Sprintf("%.64q", name))
	}
	if err != nil {
		args = append(args, "err", err)
	}
	n.log.Warn("a message for nodes is not believed: it may be from a stranger, or from a node that has no cluster secret, or another one", args...)
}

// foreign looks at a hello of another cluster. A node that was started on another
// cluster's routes must find that out before it answers for that one. Anybody can
// say such a hello; only if the server of the node that it names, which is no
// member here, is connected as a route, and it goes on, is it believed.
func (n *Node) foreign(e envelope) {
	n.mu.Lock()
	serving := n.served
	n.mu.Unlock()
	if serving || e.id == "" || n.isMember(e.name, e.id) || !n.nats.routed(e.name, e.id) {
		return
	}
	if n.foreigners.Add(1) < foreignHellos {
		return
	}
	n.fail(fmt.Errorf("%w: node %q is of the cluster %q with id %s, this one's data directory belongs to one of that name with id %s",
		ErrIdentity, e.name, n.opts.Cluster, e.cluster, n.clusterID()))
}

// foreignHellos is how many are heard before a node that is starting gives way.
const foreignHellos = 3

// isMember reports whether the facts have a node.
func (n *Node) isMember(name, id string) bool {
	n.mu.Lock()
	meta := n.meta
	n.mu.Unlock()
	facts := foundingFacts(n.store.Identity())
	if meta != nil {
		facts, _ = meta.current()
	}
	m, is := facts.Nodes[name]
	return is && m.ID == id
}

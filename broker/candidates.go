package broker

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// candidates are the nodes that belong to no cluster yet. A node that belongs
// to none itself counts every node that it hears as a candidate. What
// candidates say is not trusted: it only tells which nodes want to found or
// join the cluster, and with which keys.
type candidates struct {
	mu  sync.Mutex
	all map[string]candidate // by name and node id
}

type candidate struct {
	announcement
	at     time.Time // of the last announcement
	proved bool      // it has the cluster's secret
}

// maxCandidates bounds how many are remembered. The oldest is forgotten first.
const maxCandidates = 64

func newCandidates() *candidates { return &candidates{all: map[string]candidate{}} }

// hear records an announcement. It reports whether the node is new, has
// restarted, or has got the secret since.
func (c *candidates) hear(a announcement, proved bool, now time.Time) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.Groups, a.Meta, a.Members, a.Heard = nil, nil, nil, nil
	key := a.Name + " " + a.NodeID
	last, known := c.all[key]
	if known && last.proved && !proved && last.Instance == a.Instance {
		return false // it is not from that node, which would prove itself
	}
	if !known && len(c.all) >= maxCandidates {
		c.forgetOldest()
	}
	c.all[key] = candidate{a, now, proved}
	return !known || last.Instance != a.Instance || last.proved != proved
}

// forgetOldest forgets the candidate that has been silent for longest. It
// forgets one that has the secret only if all have. mu is held.
func (c *candidates) forgetOldest() {
	oldest := ""
	for key, q := range c.all {
		o := c.all[oldest]
		if oldest == "" || o.proved && !q.proved || o.proved == q.proved && q.at.Before(o.at) {
			oldest = key
		}
	}
	delete(c.all, oldest)
}

// resetProofs forgets which candidates have proved that they have the secret,
// because the secret has changed.
func (c *candidates) resetProofs() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, q := range c.all {
		q.proved = false
		c.all[key] = q
	}
}

// alive returns the candidates that were heard lately, in order of names.
func (c *candidates) alive(now time.Time) (all []candidate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.all {
		if now.Sub(q.at) < aliveTime {
			all = append(all, q)
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.NodeID, b.NodeID))
	})
	return all
}

// named returns the candidates of a name that were heard lately.
func (c *candidates) named(name string, now time.Time) (all []candidate) {
	for _, q := range c.alive(now) {
		if q.Name == name {
			all = append(all, q)
		}
	}
	return all
}

package broker

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// candidates are nodes that belong to no cluster yet, or that are heard by one
// that does not. Their words are not believed: they say who wants to be a founder
// or to be added, and with which key.
type candidates struct {
	mu  sync.Mutex
	all map[string]candidate // by name and node id
}

type candidate struct {
	hello
	at     time.Time // of the last hello
	proved bool      // it has the cluster's secret
}

// maxCandidates bounds how many are remembered. The oldest makes room.
const maxCandidates = 64

func newCandidates() *candidates { return &candidates{all: map[string]candidate{}} }

// hear takes a hello in; anew is true for a node that has begun anew, or has come
// by the secret.
func (c *candidates) hear(h hello, proved bool, now time.Time) (anew bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.Groups, h.Meta, h.Members, h.Heard = nil, nil, nil, nil
	key := h.Name + " " + h.NodeID
	last, known := c.all[key]
	if known && last.proved && !proved && last.Instance == h.Instance {
		return false // somebody else says this
	}
	if !known && len(c.all) >= maxCandidates {
		c.forgetOldest()
	}
	c.all[key] = candidate{h, now, proved}
	return !known || last.Instance != h.Instance || last.proved != proved
}

// forgetOldest forgets the one that was not heard for longest; those that have
// proved themselves stay if others are there. mu is held.
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

// doubtAll has all prove anew that they have the secret, which is another now.
func (c *candidates) doubtAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, q := range c.all {
		q.proved = false
		c.all[key] = q
	}
}

// alive returns those that were heard lately, in order of names.
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

// named returns those of a name that were heard lately.
func (c *candidates) named(name string, now time.Time) (all []candidate) {
	for _, q := range c.alive(now) {
		if q.Name == name {
			all = append(all, q)
		}
	}
	return all
}

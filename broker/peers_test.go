package broker

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// An unknown instance is accepted once it has heard this one, and has heard it
// since another instance of its name was accepted last.
func TestWhichAnnouncementsAreOldOnes(t *testing.T) {
	said := uint64(0)
	p, now := newPeers("me", func() uint64 { return said }), time.Now()
	for i, step := range []struct {
		instance       string
		number         uint64
		hears          string
		heard          uint64 // the number of what it hears
		said           uint64 // what this node says meanwhile
		fresh, unheard bool
	}{
		{instance: "a", number: 1, unheard: true},
		{instance: "a", number: 2},
		{instance: "a", number: 3, hears: "another", heard: 99},
		{instance: "a", number: 4, hears: "me", heard: 0},
		{instance: "a", number: 5, hears: "me", heard: 5, said: 10, fresh: true},
		{instance: "a", number: 5, hears: "me", heard: 99}, // again
		{instance: "a", number: 4, hears: "me", heard: 99},
		{instance: "a", number: 6, fresh: true},
		{instance: "b", number: 1, hears: "me", heard: 10, unheard: true}, // which a had heard, too
		{instance: "b", number: 2, hears: "me", heard: 11, said: 20, fresh: true},
		{instance: "a", number: 7, hears: "me", heard: 10, unheard: true}, // a is no more
		{instance: "a", number: 8, hears: "me", heard: 20},
		{instance: "b", number: 3, fresh: true},
	} {
		a := announcement{Name: "n2", Instance: step.instance, Heard: []seen{{"x", 99}}}
		if step.hears != "" {
			a.Heard = append(a.Heard, seen{step.hears, step.heard})
		}
		if step.said > 0 {
			said = step.said
		}
		fresh, unheard := p.fresh(a, step.number, now)
		if fresh != step.fresh || unheard != step.unheard {
			t.Errorf("step %d, %s %d: fresh is %t, unheard %t", i, step.instance, step.number, fresh, unheard)
		}
		if fresh {
			p.accept(a, step.number, now)
		}
	}
}

// A node that is no member hears so only from a node that lists it as heard,
// also if its first announcement that comes through is known to be fresh.
func TestWhatIsFreshAndNotAcceptedIsHeard(t *testing.T) {
	p, now := newPeers("me", func() uint64 { return 1 }), time.Now()
	p.accept(announcement{Name: "n3", Instance: "before its removal"}, 7, now)
	again := announcement{Name: "n3", Instance: "again", Heard: []seen{{"me", 2}}}
	if fresh, unheard := p.fresh(again, 3, now); !fresh || !unheard {
		t.Errorf("fresh is %t, unheard %t", fresh, unheard)
	}
	if all := p.heardNow(now); !slices.Contains(all, seen{"again", 3}) {
		t.Errorf("these are heard: %v", all)
	}
	p.accept(again, 3, now)
	if n := len(p.pending["n3"]); n != 0 {
		t.Errorf("%d instances are pending though one is accepted", n)
	}
}

// A node remembers a bounded number of names, however many the holders of the
// secret make up.
func TestNamesThatAreRememberedAreBounded(t *testing.T) {
	p, now := newPeers("me", func() uint64 { return 0 }), time.Now()
	for i := range 2 * maxPeers {
		p.fresh(announcement{Name: fmt.Sprint("x", i), Instance: "i"}, 1, now)
	}
	if n := len(p.pending); n != maxPeers {
		t.Errorf("%d names are pending", n)
	}
	for i := range 2 * maxPending {
		p.fresh(announcement{Name: "x1", Instance: fmt.Sprint("other", i)}, 1, now)
	}
	if n := len(p.pending["x1"]); n != maxPending {
		t.Errorf("%d instances of one name are pending", n)
	}
	p.fresh(announcement{Name: "late", Instance: "i"}, 1, now.Add(2*pendingTime))
	if n := len(p.pending); n != 1 {
		t.Errorf("%d names are pending that were not heard for long", n-1)
	}
	for i := range 2 * maxPeers {
		p.accept(announcement{Name: fmt.Sprint("x", i), Instance: "i"}, 1, now)
	}
	if n := len(p.heard); n != maxPeers {
		t.Errorf("%d names are heard", n)
	}
	c := newCandidates()
	for i := range 2 * maxCandidates {
		c.hear(announcement{Name: fmt.Sprint("x", i), NodeID: "x"}, false, now)
	}
	if len(c.all) > maxCandidates {
		t.Errorf("%d candidates are remembered", len(c.all))
	}
}

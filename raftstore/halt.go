package raftstore

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// halt says whether a replica takes part in its group. A halted replica neither
// votes nor asks for votes, neither sends nor accepts entries, and answers no
// heartbeat: to the others it is away. Its log stays readable.
type halt struct {
	// haltedItself is Options.HaltedItself; it may be nil.
	haltedItself func(error)
	reason       atomic.Pointer[error] // nil while the replica takes part

	mu        sync.Mutex
	requested error // why its owner has halted it
	own       error // why it has halted by itself, for good
}

// err returns why the replica is halted, nil if it takes part.
func (h *halt) err() error {
	if h == nil {
		return nil
	}
	if why := h.reason.Load(); why != nil {
		return *why
	}
	return nil
}

// request halts the replica for a reason of its owner, or for nil ends that.
func (h *halt) request(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requested = why
	h.update()
}

// haltForGood halts the replica for good, since raft would have it do what no
// replica ever does, and returns the error.
func (h *halt) haltForGood(why error) error {
	if h == nil {
		return why
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.own == nil {
		h.own = why
		h.update()
		if h.haltedItself != nil {
			go h.haltedItself(why) // does not block raft's goroutine
		}
	}
	return why
}

func (h *halt) update() {
	why := h.own
	if why == nil {
		why = h.requested
	}
	if why == nil {
		h.reason.Store(nil)
		return
	}
	why = fmt.Errorf("%w: %w", ErrHalted, why)
	h.reason.Store(&why)
}

// Halt excludes the replica from its group: it neither votes nor leads, and
// acknowledges nothing, but can be read. The peers get the reason.
func (g *Group) Halt(why error) { g.log.halt.request(why) }

// Resume ends a Halt. A replica that halted by itself stays halted.
func (g *Group) Resume() { g.log.halt.request(nil) }

// Halted returns why the replica takes no part in its group, nil if it does.
// The error wraps [ErrHalted], and [ErrCommittedCut] or [ErrTermBack] if the
// replica has halted by itself.
func (g *Group) Halted() error { return g.log.halt.err() }

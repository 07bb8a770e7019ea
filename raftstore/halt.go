package raftstore

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// halt says whether a replica takes part in its group. One that does not gives
// and asks for no vote, neither sends nor takes entries, and answers no
// heartbeat: to the others it is away. Its log stays readable.
type halt struct {
	// contradicted is told once why the replica has halted by itself; it may be
	// nil.
	onOwn  func(error)
	reason atomic.Pointer[error] // nil while it takes part

	mu        sync.Mutex
	requested error // why its owner has it halted
	own       error // what it found wrong by itself: for good
}

// err returns why the replica takes no part, nil if it does.
func (h *halt) err() error {
	if h == nil {
		return nil
	}
	if why := h.reason.Load(); why != nil {
		return *why
	}
	return nil
}

// ask has the replica halted for a reason, or for nil no longer.
func (h *halt) request(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requested = why
	h.update()
}

// contradict halts the replica for good, since Raft would have it do what no
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
		if h.onOwn != nil {
			go h.onOwn(why) // raft's goroutine is not held up
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

// Halt has the replica take no part in its group: it neither votes nor leads,
// and acknowledges nothing, but can be read. why is told to the peers.
func (g *Group) Halt(why error) { g.log.halt.request(why) }

// Resume ends what Halt began. A replica that halted by itself stays halted.
func (g *Group) Resume() { g.log.halt.request(nil) }

// Halted returns why the replica takes no part in its group, nil if it does.
// The error wraps [ErrHalted], and [ErrCommittedCut] or [ErrTermBack] if the
// replica has halted by itself.
func (g *Group) Halted() error { return g.log.halt.err() }

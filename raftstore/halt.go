package raftstore

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// halt records whether a replica is halted. A halted replica
// neither votes nor requests votes, neither sends nor accepts entries, and
// answers no heartbeat: to the others it seems to be down. Its log can still be
// read.
type halt struct {
	// haltedItself is Options.HaltedItself; it may be nil.
	haltedItself func(error)
	current      atomic.Pointer[error] // what err returns; nil unless the replica is halted

	mu        sync.Mutex // guards the fields below, and changes of current
	requested error      // the reason of Halt, nil after Resume
	permanent error      // why the replica has halted itself, or nil
}

// err returns an error if the replica is halted.
func (h *halt) err() error {
	if h == nil {
		return nil
	}
	if err := h.current.Load(); err != nil {
		return *err
	}
	return nil
}

// request halts the replica at the request of its owner. If reason is nil, it
// ends that request.
func (h *halt) request(reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requested = reason
	h.updateLocked()
}

// haltItself halts the replica permanently, because raft asked it for something
// that no correct replica does. It returns reason.
func (h *halt) haltItself(reason error) error {
	if h == nil {
		return reason
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.permanent == nil {
		h.permanent = reason
		h.updateLocked()
		if h.haltedItself != nil {
			go h.haltedItself(reason) // it must not block raft's goroutine
		}
	}
	return reason
}

func (h *halt) updateLocked() {
	reason := h.permanent
	if reason == nil {
		reason = h.requested
	}
	if reason == nil {
		h.current.Store(nil)
		return
	}
	err := fmt.Errorf("%w: %w", ErrHalted, reason)
	h.current.Store(&err)
}

// Halt excludes the replica from its group: it neither votes nor leads, and
// acknowledges nothing, but its log can be read. Its peers receive the reason.
func (g *Group) Halt(why error) { g.log.halt.request(why) }

// Resume ends a Halt. A replica that has halted itself stays halted.
func (g *Group) Resume() { g.log.halt.request(nil) }

// Halted returns nil if the replica takes part in its group. Otherwise the
// error contains the reason. It wraps [ErrHalted], and if the replica has
// halted itself, [ErrCommittedCut] or [ErrTermBack].
func (g *Group) Halted() error { return g.log.halt.err() }

package broker

import (
	"sync"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Limits of conflicts that are advised: they are for people, and conflicts may
// come by the thousands.
const (
	conflictsAdvised = 20 // a second, of a partition
	conflictLocks    = 8  // of one
)

// conflictAdvice publishes the conflicts of a partition as they happen, while
// somebody subscribes to them.
type conflictAdvice struct {
	partition int
	encode    func(event string, fields map[string]any) []byte
	// interest reports whether there may be a subscriber.
	interest func() bool
	room     func() int // bytes of a message
	now      func() time.Time

	mu     sync.Mutex
	second time.Time // in which sent were advised
	sent   int
	left   int // conflicts that were left out since the last one
}

// advise returns the advisory for a refusal, nil if none is published: it is no
// conflict, nobody subscribes, or there are too many.
func (a *conflictAdvice) advise(endpoint string, msgID []byte, e *subjects.Error) []byte {
	if e.Reason != subjects.Conflict {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.now(); now.Sub(a.second).Abs() >= time.Second {
		a.second, a.sent = now, 0
	}
	if a.sent++; a.sent > conflictsAdvised {
		a.left++
		return nil
	}
	if !a.interest() {
		a.left = 0
		return nil
	}
	short := *e
	short.Conflicts = e.Conflicts[:min(len(e.Conflicts), conflictLocks)]
	fields := map[string]any{"partition": a.partition, "endpoint": endpoint, "error": &short}
	if len(msgID) > 0 {
		fields["msg_id"] = string(msgID)
	}
	if a.left > 0 {
		fields["left_out"] = a.left
	}
	command := a.encode("conflict", fields)
	if len(command) > a.room() {
		a.left++
		return nil
	}
	a.left = 0
	return command
}

package invariant

import (
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/antithesishq/antithesis-sdk-go/assert"
)

// Invariant is an assertion.
type Invariant struct {
	name  string
	text  string
	kind  kind
	count atomic.Uint64
}

type kind uint8

const (
	always    kind = iota // it is checked in every run, and true
	ifReached             // it is true if it is checked
	sometimes             // it is reached in some run
)

var (
	mu       sync.Mutex // guards what follows
	all      []*Invariant
	handlers = map[int]func(ViolationError){}
	last     int // key of handlers
)

func declare(k kind, name, text string) *Invariant {
	i := &Invariant{name: name, text: text, kind: k}
	all = append(all, i) // before main: no lock is needed
	i.emit(k == sometimes, 0, 0, caller(2), false)
	return i
}

// All returns all assertions.
func All() []*Invariant { return slices.Clone(all) }

// Name returns the assertion's name, such as "txids-dense".
func (i *Invariant) Name() string { return i.name }

// String returns the statement.
func (i *Invariant) String() string { return i.text }

// IsEvent reports whether the assertion is an event that must be possible, and
// not a statement that is always true.
func (i *Invariant) IsEvent() bool { return i.kind == sometimes }

// Count returns how often the statement was false in this process, or how often
// the event occurred.
func (i *Invariant) Count() uint64 { return i.count.Load() }

// Check reports a violation unless ok. have and want are the numbers that were
// compared. It returns ok.
func (i *Invariant) Check(ok bool, have, want uint64) bool {
	if !ok || enabled {
		i.report(ok, have, want)
	}
	return ok
}

// Reached records that the event occurred.
func (i *Invariant) Reached() {
	i.count.Add(1)
	if enabled {
		i.emit(true, 0, 0, caller(2), true)
	}
}

// ViolationError is a statement that was false.
type ViolationError struct {
	*Invariant
	Have, Want uint64
	// First is true for the first violation of this statement in the process.
	First bool
}

// Error describes the violation.
func (v ViolationError) Error() string {
	return fmt.Sprintf("invariant %s is violated: %s: have %d, want %d", v.name, v.text, v.Have, v.Want)
}

// report handles a check that failed, and with the build tag each check. It is
// not inlined, so that Check is.
func (i *Invariant) report(ok bool, have, want uint64) {
	if enabled {
		i.emit(ok, have, want, caller(3), true)
	}
	if ok {
		return
	}
	v := ViolationError{i, have, want, i.count.Add(1) == 1}
	mu.Lock()
	handle := make([]func(ViolationError), 0, len(handlers))
	for _, h := range handlers {
		handle = append(handle, h)
	}
	mu.Unlock()
	if len(handle) == 0 && v.First {
		slog.Error(logMessage, "invariant", i.name, "have", have, "want", want)
	}
	for _, h := range handle {
		h(v)
	}
}

const logMessage = "an invariant is violated: this is a defect, or a disk has lost what it had synced"

// Log returns a handler for [OnViolation] that logs the first violation of each
// statement.
func Log(to *slog.Logger) func(ViolationError) {
	return func(v ViolationError) {
		if v.First {
			to.Error(logMessage, "invariant", v.name, "statement", v.text, "have", v.Have, "want", v.Want)
		}
	}
}

// OnViolation has handle called for each violation, on the goroutine that
// checked, until remove is called. handle must not block.
func OnViolation(handle func(ViolationError)) (remove func()) {
	mu.Lock()
	defer mu.Unlock()
	last++
	key := last
	handlers[key] = handle
	return func() {
		mu.Lock()
		defer mu.Unlock()
		delete(handlers, key)
	}
}

// location is a line of the source.
type location struct {
	function, file string
	line           int
}

func caller(skip int) location {
	pc, file, line, _ := runtime.Caller(skip)
	return location{runtime.FuncForPC(pc).Name(), file, line}
}

// emit passes the outcome of a check on to the SDK, or, if hit is false, that
// the assertion exists. It does nothing without the build tag. The SDK keeps
// the file of the declaration, so the details say where the check is.
func (i *Invariant) emit(ok bool, have, want uint64, at location, hit bool) {
	if !enabled {
		return
	}
	word, display := "always", "Always"
	switch i.kind {
	case ifReached:
		display = "AlwaysOrUnreachable"
	case sometimes:
		word, display = "sometimes", "Sometimes"
	}
	assert.AssertRaw(ok, i.text, map[string]any{"have": have, "want": want, "at": fmt.Sprintf("%s:%d", at.file, at.line)}, "cantus", at.function, at.file, at.line, 0,
		hit, i.kind != ifReached, word, display, i.name)
}

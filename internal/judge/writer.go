package judge

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Writer writes a history as it happens. Its methods may be called
// concurrently. The first error stays, and is returned by Err.
type Writer struct {
	mu      sync.Mutex
	to      *json.Encoder
	err     error
	drained map[int]*Drain // the first of each partition
}

// NewWriter writes the header of a history to w.
func NewWriter(w io.Writer, h Header) *Writer {
	out := &Writer{to: json.NewEncoder(w), drained: map[int]*Drain{}}
	h.Version = Version
	out.write(line{History: &h})
	return out
}

// Operation writes one operation, after its end.
func (w *Writer) Operation(o *Operation) { w.write(line{Operation: o}) }

// Drain writes the log of one replica, which must not change afterwards.
func (w *Writer) Drain(d *Drain) {
	head := *d
	if first := w.first(d); first != d && slices.EqualFunc(first.Transactions, d.Transactions, (*Stored).equal) {
		head.As = first.Replica
		w.write(line{Drain: &head})
		return
	}
	head.As = ""
	lines := []line{{Drain: &head}}
	for _, t := range d.Transactions {
		lines = append(lines, line{Transaction: t})
	}
	w.write(lines...)
}

// first returns the first drain of the same partition, which may be d.
func (w *Writer) first(d *Drain) *Drain {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.drained[d.Partition] == nil {
		w.drained[d.Partition] = d
	}
	return w.drained[d.Partition]
}

// Err returns the first error of writing.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Writer) write(lines ...line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range lines {
		if w.err != nil {
			return
		}
		if err := w.to.Encode(l); err != nil {
			w.err = fmt.Errorf("write a history: %w", err)
		}
	}
}

// Encode writes a whole history.
func Encode(to io.Writer, h *History) error {
	w := NewWriter(to, h.Header)
	for _, o := range h.Operations {
		w.Operation(o)
	}
	for _, d := range h.Drains {
		w.Drain(d)
	}
	return w.Err()
}

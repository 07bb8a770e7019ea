package natslink

import (
	"log/slog"
	"sync"
)

// Outbox sends over a link on behalf of goroutines that must not block, such as
// a link's reading goroutine: the server may read from a link only after the
// link has read from it. Enqueue only appends to a buffer; its own
// goroutine writes it.
type Outbox struct {
	link *Link
	log  *slog.Logger

	mu     sync.Mutex // guards buffer and closed
	buffer []byte
	ready  chan struct{} // capacity 1: buffer is not empty
	done   chan struct{} // closed when run has returned
	closed bool
}

// maxOutboxBytes bounds the buffer. Commands beyond it are dropped, and that is
// logged. They are refusals, advisories and messages to other nodes: all of
// them may be lost, as any NATS message may.
const maxOutboxBytes = 64 << 20

// NewOutbox starts an outbox. The caller closes it.
func NewOutbox(l *Link, log *slog.Logger) *Outbox {
	o := &Outbox{link: l, log: log, ready: make(chan struct{}, 1), done: make(chan struct{})}
	go o.run()
	return o
}

// Enqueue queues complete protocol commands. It does not block.
func (o *Outbox) Enqueue(commands []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	if len(o.buffer)+len(commands) > maxOutboxBytes {
		o.log.Warn("messages dropped: the NATS server does not read them")
		return
	}
	o.buffer = append(o.buffer, commands...)
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

func (o *Outbox) run() {
	defer close(o.done)
	for range o.ready {
		o.mu.Lock()
		out := o.buffer
		o.buffer = nil
		o.mu.Unlock()
		if err := o.link.Send(out); err != nil {
			o.log.Debug("not sent", "err", err)
		}
	}
}

// Close sends the queued commands and stops the outbox. It is idempotent.
func (o *Outbox) Close() {
	o.mu.Lock()
	if !o.closed {
		o.closed = true
		close(o.ready)
	}
	o.mu.Unlock()
	<-o.done
}

package natslink

import (
	"log/slog"
	"sync"
)

// Sender sends over a link on behalf of goroutines that must not block, such as
// a link's reading goroutine: the server may read from a link only after the
// link has read from it. Enqueue only appends to a buffer; the sender's own
// goroutine writes it.
type Sender struct {
	link *Link
	log  *slog.Logger

	mu     sync.Mutex // guards buffer and closed
	buffer []byte
	ready  chan struct{} // capacity 1: buffer is not empty
	done   chan struct{} // closed when run has returned
	closed bool
}

// maxSenderBytes bounds the buffer. Commands beyond it are dropped, and that is
// logged. They are refusals, advisories and messages to other nodes: all of
// them may be lost, as any NATS message may.
const maxSenderBytes = 64 << 20

// NewSender starts a sender. The caller closes it.
func NewSender(l *Link, log *slog.Logger) *Sender {
	s := &Sender{link: l, log: log, ready: make(chan struct{}, 1), done: make(chan struct{})}
	go s.run()
	return s
}

// Enqueue queues complete protocol commands. It does not block.
func (s *Sender) Enqueue(commands []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if len(s.buffer)+len(commands) > maxSenderBytes {
		s.log.Warn("messages dropped: the NATS server does not read them")
		return
	}
	s.buffer = append(s.buffer, commands...)
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *Sender) run() {
	defer close(s.done)
	for range s.ready {
		s.mu.Lock()
		out := s.buffer
		s.buffer = nil
		s.mu.Unlock()
		if err := s.link.Send(out); err != nil {
			s.log.Debug("not sent", "err", err)
		}
	}
}

// Close sends the queued commands and stops the sender. It is idempotent.
func (s *Sender) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.ready)
	}
	s.mu.Unlock()
	<-s.done
}

package natslink

import (
	"log/slog"
	"sync"
)

// Sender sends over a link for goroutines that must not block. The links' own
// readers are such goroutines: the server may not read from them before they read
// from it.
type Sender struct {
	link *Link
	log  *slog.Logger

	mu     sync.Mutex
	buffer []byte
	ready  chan struct{} // capacity 1: buffer holds something
	done   chan struct{} // closed when run has returned
	closed bool
}

// maxSenderBytes bounds what waits to be sent. The rest is dropped, and logged. It
// consists of answers that nothing was done, and a client that receives no answer
// has to assume just that.
const maxSenderBytes = 64 << 20

// NewSender starts a sender. The caller closes it.
func NewSender(l *Link, log *slog.Logger) *Sender {
	s := &Sender{link: l, log: log, ready: make(chan struct{}, 1), done: make(chan struct{})}
	go s.run()
	return s
}

// Send queues whole protocol commands. It does not block.
func (s *Sender) Send(commands []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if len(s.buffer)+len(commands) > maxSenderBytes {
		s.log.Warn("answers dropped: the NATS server does not read them")
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

// Close sends what is queued and ends the sender. It is idempotent.
func (s *Sender) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.ready)
	}
	s.mu.Unlock()
	<-s.done
}

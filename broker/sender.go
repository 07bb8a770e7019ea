package broker

import (
	"log/slog"
	"sync"
)

// sender sends over a link for goroutines that must not block: the links' own
// readers above all, since the server may be waiting for them to read before
// it reads from them.
type sender struct {
	link *link
	log  *slog.Logger

	mu     sync.Mutex
	buffer []byte
	ready  chan struct{} // capacity 1: buffer holds something
	done   chan struct{} // closed when run has returned
	closed bool
}

// senderBytes bounds what waits to be sent. What is over it is dropped, and
// logged: these are answers that nothing was done, which a client that hears
// nothing has to assume anyway.
const senderBytes = 64 << 20

func newSender(l *link, log *slog.Logger) *sender {
	s := &sender{link: l, log: log, ready: make(chan struct{}, 1), done: make(chan struct{})}
	go s.run()
	return s
}

// send takes whole protocol commands to be sent soon, in order.
func (s *sender) send(commands []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if len(s.buffer)+len(commands) > senderBytes {
		s.log.Warn("answers dropped: the NATS server does not read them")
		return
	}
	s.buffer = append(s.buffer, commands...)
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *sender) run() {
	defer close(s.done)
	for range s.ready {
		s.mu.Lock()
		out := s.buffer
		s.buffer = nil
		s.mu.Unlock()
		if err := s.link.send(out); err != nil {
			s.log.Debug("not sent", "err", err)
		}
	}
}

// close sends what waits and ends the sender. It is idempotent.
func (s *sender) close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.ready)
	}
	s.mu.Unlock()
	<-s.done
}

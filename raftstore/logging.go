package raftstore

import (
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// warnInterval is the minimum time between two warnings with the same message.
const warnInterval = 10 * time.Second

// raftLogger returns a logger for raft that writes to l at a lower level.
// Raft's errors become warnings, since most mean that a peer is down, and
// everything else becomes a debug message. Warnings are rate-limited: raft
// repeats them many times a second while a peer is down. While the group is
// closing, all messages are debug messages.
func raftLogger(l *slog.Logger, closing *atomic.Bool) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Debug, Output: io.Discard})
	if l != nil {
		h.RegisterSink(&logSink{log: l, closing: closing, warned: map[string]time.Time{}})
	}
	return h
}

type logSink struct {
	log     *slog.Logger
	closing *atomic.Bool

	mu     sync.Mutex
	warned map[string]time.Time // time of the last warning, by message; raft's messages are constant
}

func (s *logSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	if level == hclog.Error && !s.closing.Load() && s.due(msg) {
		s.log.Warn("raft: "+msg, args...)
		return
	}
	s.log.Debug("raft: "+msg, args...)
}

// due reports whether a warning may be logged, and if so records it.
func (s *logSink) due(msg string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.warned[msg]) < warnInterval {
		return false
	}
	s.warned[msg] = now
	return true
}

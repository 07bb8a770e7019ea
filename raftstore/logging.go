package raftstore

import (
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// warnEvery is the least time between two warnings of one kind by raft.
const warnEvery = 10 * time.Second

// raftLogger returns a logger for raft that writes to l at a lower level. What
// raft calls an error is most often a peer that is away, and its warnings are
// routine. What it repeats many times a second while a peer is away is logged
// once in a while. Nothing above the debug level is logged while the group is
// closing.
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
	warned map[string]time.Time // when, by message; raft's messages are constant
}

func (s *logSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	if level == hclog.Error && !s.closing.Load() && s.due(msg) {
		s.log.Warn("raft: "+msg, args...)
		return
	}
	s.log.Debug("raft: "+msg, args...)
}

func (s *logSink) due(msg string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.warned[msg]) < warnEvery {
		return false
	}
	s.warned[msg] = now
	return true
}

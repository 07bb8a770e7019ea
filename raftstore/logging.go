package raftstore

import (
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// warnEvery is how often raft's warnings of one kind are passed on as such.
const warnEvery = 10 * time.Second

// raftLogger passes raft's log on, lower: what it calls an error is most often
// a peer that is away, and its warnings are its daily life. What it repeats
// many times a second, as long as the peer is away, is said once in a while.
// What it meets while the group is closing is none of anybody's business.
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
	warned map[string]time.Time // when, by what raft says, which is constant
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

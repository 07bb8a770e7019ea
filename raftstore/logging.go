package raftstore

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// warnInterval is the minimum time between two warnings with the same message.
const warnInterval = 10 * time.Second

// raftLogger returns a logger for raft that writes to l at a lower level.
// Raft's errors become warnings, since most mean that a peer is down, and
// everything else becomes a debug message. Warnings are rate-limited: raft
// repeats them many times a second while a peer is down. Those about a peer are
// limited by outages. While the group is closing, all messages are debug
// messages.
func raftLogger(l *slog.Logger, closing *atomic.Bool, outages *outages) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Debug, Output: io.Discard})
	if l != nil {
		h.RegisterSink(&logSink{log: l, closing: closing, outages: outages, warned: map[string]time.Time{}})
	}
	return h
}

type logSink struct {
	log     *slog.Logger
	closing *atomic.Bool
	outages *outages

	mu     sync.Mutex
	warned map[string]time.Time // time of the last warning, by message; raft's messages are constant
}

// unreached are raft's messages about a peer that it could not send to.
var unreached = []string{
	"failed to appendEntries to", "failed to heartbeat to", "failed to make requestVote RPC", "failed to pipeline appendEntries",
	"failed to start pipeline replication to",
}

func (s *logSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	switch {
	case level != hclog.Error || s.closing.Load():
	case slices.Contains(unreached, msg):
		peer, err := aboutPeer(args)
		if brokeOff(err) {
			break // what the next attempt meets says more
		}
		if ok, withheld := s.outages.due(peer, time.Now()); ok {
			s.log.Warn("a node can't be reached for replication", "node", peer, "err", err, "not_logged_before", withheld)
			return
		}
	case s.due(msg):
		s.log.Warn("raft: "+msg, args...)
		return
	}
	s.log.Debug("raft: "+msg, args...)
}

// aboutPeer returns the peer that a message of raft's is about, and the error.
func aboutPeer(args []any) (peer string, err error) {
	for i := 0; i+1 < len(args); i += 2 {
		switch v := args[i+1].(type) {
		case raft.Server:
			peer = string(v.ID)
		case raft.ServerAddress: // the node's name, as its id
			peer = string(v)
		case raft.ServerID:
			peer = string(v)
		case error:
			err = v
		}
	}
	return peer, err
}

// brokeOff reports whether an error only says that a connection broke.
func brokeOff(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET},
		func(is error) bool { return errors.Is(err, is) })
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

// outages limits what the groups of a node log about a peer. What keeps one
// group from a peer keeps the others from it too, and lasts. So all of them
// together log it at once, and again after minOutageWait; the wait doubles
// until nothing has come for that long.
type outages struct {
	mu sync.Mutex
	by map[string]*outage // by peer
}

type outage struct {
	logged, seen time.Time // when the last message was logged, and when it came
	wait         time.Duration
	withheld     int
}

const (
	minOutageWait = time.Minute
	maxOutageWait = 16 * time.Minute
)

// due reports whether a message about a peer may be logged. If so, it also
// returns how many were withheld since the last one.
func (o *outages) due(peer string, now time.Time) (ok bool, withheld int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := o.by[peer]
	switch {
	case last == nil || now.Sub(last.seen) >= minOutageWait:
		if o.by == nil {
			o.by = map[string]*outage{}
		}
		last = &outage{wait: minOutageWait}
		o.by[peer] = last
	case now.Sub(last.logged) < last.wait:
		last.seen = now
		last.withheld++
		return false, 0
	default:
		last.wait = min(2*last.wait, maxOutageWait)
	}
	withheld = last.withheld
	last.logged, last.seen, last.withheld = now, now, 0
	return true, withheld
}

package natsserver

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// The least that a nats-server configuration may allow for the node to serve.
const (
	leastPayload     = 8 << 10
	leastConns       = 8       // the node has four itself
	leastControlLine = 1 << 10 // the node's subjects, and clients' reply subjects
	leastPending     = 8 << 20 // requests that wait to be taken in by the node
	leastWriteTime   = 100 * time.Millisecond
)

// checkNATSOptions refuses limits that the node cannot serve within. What it can't
// compute, it is told when it runs: see audits and natsTrouble.
func checkNATSOptions(opts *server.Options) error {
	for _, l := range []struct {
		name        string
		is, least   any
		tooSmall    bool
		consequence string
	}{
		{"max_payload", opts.MaxPayload, leastPayload, opts.MaxPayload < leastPayload, "answers are larger"},
		{"max_connections", opts.MaxConn, leastConns, opts.MaxConn != 0 && opts.MaxConn < leastConns, "the node itself has four"},
		{"max_control_line", opts.MaxControlLine, leastControlLine, opts.MaxControlLine < leastControlLine, "subjects are longer"},
		{"max_pending", opts.MaxPending, leastPending, opts.MaxPending != 0 && opts.MaxPending < leastPending, "a burst of requests would end the node's own connection"},
		{"write_deadline", opts.WriteDeadline, leastWriteTime, opts.WriteDeadline != 0 && opts.WriteDeadline < leastWriteTime, "the node's own connection would not last"},
	} {
		if l.tooSmall {
			return fmt.Errorf("NATS server: %s %v is too small: at least %v is needed, since %s", l.name, l.is, l.least, l.consequence)
		}
	}
	return nil
}

// setLimits takes the server's limits.
func (s *Server) setLimits(opts *server.Options) {
	s.maxPending.Store(opts.MaxPending)
	if opts.MaxPending == 0 {
		s.maxPending.Store(server.MAX_PENDING_SIZE)
	}
	s.maxReply.Store(int64(opts.MaxControlLine) - natslink.ControlLineMargin)
	was := s.payloadLimit.Swap(int64(opts.MaxPayload))
	if own := s.links.Load(); own != nil {
		for _, l := range *own {
			l.SetLimits(was, int64(opts.MaxPayload), s.maxReply.Load())
		}
	}
	next := make(chan struct{})
	if old := s.changed.Swap(&next); old != nil {
		close(*old)
	}
}

// MaxPending is how many bytes the server lets a connection be behind.
func (s *Server) MaxPending() int64 { return s.maxPending.Load() }

// MaxReply is the longest reply subject of a request that can be answered.
func (s *Server) MaxReply() int64 { return s.maxReply.Load() }

// LimitsChanged returns a channel that is closed when the limits are set anew.
func (s *Server) LimitsChanged() <-chan struct{} { return *s.changed.Load() }

// MaxPayload is the most bytes that a message of the node may have: the server's
// limit, or less if the account allows less.
func (s *Server) MaxPayload() int {
	most := s.payloadLimit.Load()
	if own := s.links.Load(); own != nil {
		for _, l := range *own {
			if n := l.MaxPayload(); n > 0 {
				most = min(most, n)
			}
		}
	}
	return int(most)
}

// Subscriptions returns the ids of a connection's subscriptions.
func (s *Server) Subscriptions(client uint64) (map[int]bool, error) {
	z, err := s.Connz(&server.ConnzOptions{CID: client, SubscriptionsDetail: true, Subscriptions: true})
	if err != nil {
		return nil, fmt.Errorf("subscriptions of connection %d: %w", client, err)
	}
	has := map[int]bool{}
	for _, c := range z.Conns {
		for _, d := range c.SubsDetail {
			if id, err := strconv.Atoi(d.Sid); err == nil {
				has[id] = true
			}
		}
	}
	return has, nil
}

// Shadowed says which subject mapping takes requests away from the node, "" if none
// does, and whether appends by key are mapped.
func (s *Server) Shadowed(partitions int) (what string, keys bool, err error) {
	z, err := s.Accountz(&server.AccountzOptions{Account: s.account.GetName()})
	if err != nil || z.Account == nil {
		return "", false, fmt.Errorf("account %s: %w", s.account.GetName(), err)
	}
	mappings := z.Account.Mappings
	_, keys = mappings[s.names.AppendKey("*")]
	delete(mappings, s.names.AppendKey("*"))
	if len(mappings) == 0 {
		return "", keys, nil
	}
	for subject := range served(s.names, partitions) {
		for _, source := range slices.Sorted(maps.Keys(mappings)) {
			if server.SubjectsCollide(source, subject) {
				return fmt.Sprintf("the NATS account maps %s elsewhere, which takes requests for %s away", source, subject), keys, nil
			}
		}
	}
	return "", keys, nil
}

// served yields what nodes answer requests on.
func served(names subjects.Names, partitions int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, s := range []string{names.AppendKey("*"), names.Info(), names.Admin(">")} {
			if !yield(s) {
				return
			}
		}
		for p := range partitions {
			for _, s := range []string{names.Append(p), names.KeyedAppend(p, "*"), names.Batch(p), names.Read(p), names.ReplicaRead(p), names.Get(p), names.PartitionInfo(p), names.Cursor(p, "*")} {
				if !yield(s) {
					return
				}
			}
		}
	}
}

package natsserver

import (
	"errors"
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

// The minimum limits of a nats-server configuration with which the node can
// serve.
const (
	minPayload       = 8 << 10
	minConns         = 8       // the node itself has four
	minControlLine   = 1 << 10 // for the node's subjects, and clients' reply subjects
	minPending       = 8 << 20 // for requests that the node has not read yet
	minWriteDeadline = 100 * time.Millisecond
)

// checkNATSOptions returns an error that joins one for each limit that is too
// low for the node to serve. It can't check the limits of accounts and users;
// the audits of package natslink detect their effect while the node runs.
func checkNATSOptions(opts *server.Options) error {
	var all []error
	for _, l := range []struct {
		name        string
		value, min  any
		tooSmall    bool
		consequence string
	}{
		{"max_payload", opts.MaxPayload, minPayload, opts.MaxPayload < minPayload, "answers are larger"},
		{"max_connections", opts.MaxConn, minConns, opts.MaxConn != 0 && opts.MaxConn < minConns, "the node itself has four"},
		{"max_control_line", opts.MaxControlLine, minControlLine, opts.MaxControlLine < minControlLine, "subjects are longer"},
		{"max_pending", opts.MaxPending, minPending, opts.MaxPending != 0 && opts.MaxPending < minPending, "a burst of requests would end the node's own connection"},
		{"write_deadline", opts.WriteDeadline, minWriteDeadline, opts.WriteDeadline != 0 && opts.WriteDeadline < minWriteDeadline, "the node's own connection would not last"},
	} {
		if l.tooSmall {
			all = append(all, fmt.Errorf("NATS server: %s %v is too small: at least %v is needed, since %s", l.name, l.value, l.min, l.consequence))
		}
	}
	return errors.Join(all...)
}

// setLimits stores the limits of a configuration, and passes them to the node's
// links.
func (s *Server) setLimits(opts *server.Options) {
	s.maxPending.Store(opts.MaxPending)
	if opts.MaxPending == 0 {
		s.maxPending.Store(server.MAX_PENDING_SIZE)
	}
	s.maxReply.Store(int64(opts.MaxControlLine) - natslink.ControlLineMargin)
	before := s.payloadLimit.Swap(int64(opts.MaxPayload))
	if links := s.links.Load(); links != nil {
		for _, l := range *links {
			l.SetLimits(before, int64(opts.MaxPayload), s.maxReply.Load())
		}
	}
	next := make(chan struct{})
	if old := s.changed.Swap(&next); old != nil {
		close(*old)
	}
}

// MaxPending returns the maximum number of bytes that the server buffers for a
// connection.
func (s *Server) MaxPending() int64 { return s.maxPending.Load() }

// MaxReply returns the maximum length, in bytes, of the reply subject of a
// request that can be answered.
func (s *Server) MaxReply() int64 { return s.maxReply.Load() }

// LimitsChanged returns a channel that is closed when the limits are next set.
func (s *Server) LimitsChanged() <-chan struct{} { return *s.changed.Load() }

// MaxPayload returns the maximum size, in bytes, of a message of the node: the
// server's limit, or that of the account if it is lower.
func (s *Server) MaxPayload() int {
	limit := s.payloadLimit.Load()
	if links := s.links.Load(); links != nil {
		for _, l := range *links {
			if n := l.MaxPayload(); n > 0 {
				limit = min(limit, n)
			}
		}
	}
	return int(limit)
}

// Subscriptions returns the ids of a connection's subscriptions. client is the
// server's number for the connection.
func (s *Server) Subscriptions(client uint64) (map[int]bool, error) {
	z, err := s.Connz(&server.ConnzOptions{CID: client, SubscriptionsDetail: true, Subscriptions: true})
	if err != nil {
		return nil, fmt.Errorf("subscriptions of connection %d: %w", client, err)
	}
	ids := map[int]bool{}
	for _, c := range z.Conns {
		for _, d := range c.SubsDetail {
			if id, err := strconv.Atoi(d.Sid); err == nil {
				ids[id] = true
			}
		}
	}
	return ids, nil
}

// Shadowed checks the account's subject mappings. what describes one that
// diverts requests from the node, or is "" if there is none. keys reports
// whether appends by key are mapped to partitions, those in namespaces too.
func (s *Server) Shadowed(partitions int) (what string, keys bool, err error) {
	z, err := s.Accountz(&server.AccountzOptions{Account: s.account.GetName()})
	if err != nil || z.Account == nil {
		return "", false, fmt.Errorf("account %s: %w", s.account.GetName(), err)
	}
	mappings := z.Account.Mappings
	all := s.keyed.all()
	all[s.names] = partitions
	keys = true
	for names := range all {
		source := names.AppendKey("*")
		_, mapped := mappings[source]
		keys = keys && mapped
		delete(mappings, source)
	}
	if len(mappings) == 0 {
		return "", keys, nil
	}
	for names, partitions := range all {
		for subject := range served(names, partitions) {
			for _, source := range slices.Sorted(maps.Keys(mappings)) {
				if server.SubjectsCollide(source, subject) {
					return fmt.Sprintf("the NATS account maps %s elsewhere, which takes requests for %s away", source, subject), keys, nil
				}
			}
		}
	}
	return "", keys, nil
}

// served yields the subjects on which nodes answer requests.
func served(names subjects.Names, partitions int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, s := range []string{names.AppendKey("*"), names.Info(), names.Admin(">")} {
			if !yield(s) {
				return
			}
		}
		for p := range partitions {
			for _, s := range []string{names.Append(p), names.KeyedAppend(p, "*"), names.Batch(p), names.Read(p), names.ReplicaRead(p), names.Get(p), names.PartitionInfo(p), names.Cursor(p, "*"), names.Cursors(p)} {
				if !yield(s) {
					return
				}
			}
		}
	}
}

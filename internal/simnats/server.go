package simnats

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/cantuslog/cantus/internal/simnet"
)

// Service is the service of a host's address at which its server is reached by
// the other servers: see [simnet.Address].
const Service = "nats"

// MaxPayload is the most bytes that a message may have.
const MaxPayload = 1 << 20

// Options configure a server. All are required.
type Options struct {
	Host  string // on the network
	Name  string // of the server; unique in its cluster
	Peers []string
	Net   *simnet.Network
	Seed  uint64 // chooses among the members of queue groups
}

// Server is a running server. It is safe for concurrent use.
type Server struct {
	opts     Options
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and those of clients and routes
	rng     *rand.Rand
	clients map[uint64]*client
	lastID  uint64
	routes  map[string]*route // by the peer's host
	closed  bool
}

// subscription is one of a client of this server.
type subscription struct {
	client         *client
	sid            string
	subject, queue string
	left           int // messages until it ends; 0 if it does not
}

// interest is what a server knows of another one's subscriptions, or of its
// own as the others know them.
type interest struct{ subject, queue string }

// message is on its way. Header and payload are not changed.
type message struct {
	Subject, Reply  string
	Header, Payload []byte
	Queues          []string // groups of the receiving server that it is for
	Plain           bool     // it is for the subscriptions without a group
}

// Start starts a server.
func Start(o Options) (*Server, error) {
	l, err := o.Net.Listen(simnet.Address(o.Host, Service))
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts: o, listener: l, rng: rand.New(rand.NewPCG(o.Seed, 9)), clients: map[uint64]*client{}, routes: map[string]*route{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.running.Go(s.accept)
	for _, peer := range o.Peers {
		if peer > o.Host { // the other one dials otherwise
			s.running.Go(func() { s.dial(peer) })
		}
	}
	return s, nil
}

// Close closes all connections and waits for the server's goroutines.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for _, c := range s.clients {
		c.out.close()
		_ = c.conn.Close()
	}
	for _, r := range s.routes {
		r.close()
	}
	s.mu.Unlock()
	s.cancel()
	_ = s.listener.Close()
	s.running.Wait()
}

// Conn returns a client's end of a new connection to the server.
func (s *Server) Conn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	theirs, ours := net.Pipe()
	s.lastID++
	c := &client{server: s, id: s.lastID, conn: ours, subs: map[string]*subscription{}, out: newOutbox()}
	s.clients[c.id] = c
	s.running.Go(c.read)
	s.running.Go(func() { c.out.write(ours) })
	return theirs, nil
}

// HasInterest reports whether a client of this server, or of one to which there
// is a route, subscribes to a subject.
func (s *Server) HasInterest(subject string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.subscribed(subject) {
		return true
	}
	for _, r := range s.routes {
		for i := range r.theirs {
			if matches(i.subject, subject) {
				return true
			}
		}
	}
	return false
}

// Subscribed reports whether a client of this server subscribes to a subject.
func (s *Server) Subscribed(subject string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subscribed(subject)
}

func (s *Server) subscribed(subject string) bool {
	for _, c := range s.clients {
		for _, sub := range c.subs {
			if matches(sub.subject, subject) {
				return true
			}
		}
	}
	return false
}

// Subscriptions returns the ids of the subscriptions of a client, which has the
// number that the server's INFO has given it.
func (s *Server) Subscriptions(client uint64) (sids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.clients[client]; c != nil {
		for sid := range c.subs {
			sids = append(sids, sid)
		}
	}
	return sids
}

// Routed reports whether there is a route to a server whose name begins with a
// prefix.
func (s *Server) Routed(prefix string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.routes {
		if strings.HasPrefix(r.name, prefix) {
			return true
		}
	}
	return false
}

// publish delivers a client's message. It reports whether anybody wants it.
func (s *Server) publish(m message) (wanted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Plain = true
	groups := map[string][]*subscription{}
	for _, sub := range s.matching(m.Subject) {
		if sub.queue != "" {
			groups[sub.queue] = append(groups[sub.queue], sub)
		}
	}
	m.Queues = slices.Sorted(keys(groups))
	wanted = s.deliver(m)
	remote := map[string][]*route{} // by the groups that have no member here
	plain := map[*route]bool{}
	for _, host := range slices.Sorted(keys(s.routes)) {
		r := s.routes[host]
		seen := map[string]bool{}
		for i := range r.theirs {
			switch {
			case !matches(i.subject, m.Subject):
			case i.queue == "":
				plain[r] = true
			case groups[i.queue] == nil && !seen[i.queue]:
				seen[i.queue] = true
				remote[i.queue] = append(remote[i.queue], r)
			}
		}
	}
	chosen := map[*route][]string{}
	for _, queue := range slices.Sorted(keys(remote)) {
		r := remote[queue][s.rng.IntN(len(remote[queue]))]
		chosen[r] = append(chosen[r], queue)
	}
	for _, host := range slices.Sorted(keys(s.routes)) {
		r := s.routes[host]
		if plain[r] || len(chosen[r]) > 0 {
			wanted = true
			m.Plain, m.Queues = plain[r], chosen[r]
			r.send(frame{Message: &m})
		}
	}
	return wanted
}

// deliver delivers a message to clients of this server: to one member of each
// of its groups, and to all subscriptions without a group if it is for them.
func (s *Server) deliver(m message) (delivered bool) {
	groups := map[string][]*subscription{}
	for _, sub := range s.matching(m.Subject) {
		switch {
		case sub.queue == "" && m.Plain:
			sub.deliver(m)
			delivered = true
		case slices.Contains(m.Queues, sub.queue):
			groups[sub.queue] = append(groups[sub.queue], sub)
		}
	}
	for _, queue := range slices.Sorted(keys(groups)) {
		members := groups[queue]
		members[s.rng.IntN(len(members))].deliver(m)
		delivered = true
	}
	return delivered
}

// matching returns the subscriptions of clients to a subject, the oldest client
// first.
func (s *Server) matching(subject string) (subs []*subscription) {
	for _, id := range slices.Sorted(keys(s.clients)) {
		c := s.clients[id]
		for _, sid := range slices.Sorted(keys(c.subs)) {
			if sub := c.subs[sid]; matches(sub.subject, subject) {
				subs = append(subs, sub)
			}
		}
	}
	return subs
}

// changed tells the other servers that a client has subscribed, or that a
// subscription has ended. mu is held.
func (s *Server) changed(sub *subscription, ended bool) {
	i := interest{sub.subject, sub.queue}
	n := 0
	for _, c := range s.clients {
		for _, other := range c.subs {
			if other.subject == i.subject && other.queue == i.queue {
				n++
			}
		}
	}
	if ended && n > 0 || !ended && n > 1 {
		return
	}
	for _, r := range s.routes {
		r.send(frame{Subject: i.subject, Queue: i.queue, Ended: ended})
	}
}

// matches reports whether a subscription's subject, which may have wildcards,
// matches a message's.
func matches(pattern, subject string) bool {
	for {
		p, restP, moreP := strings.Cut(pattern, ".")
		t, restT, moreT := strings.Cut(subject, ".")
		switch {
		case p == ">":
			return true
		case p != "*" && p != t, moreP != moreT:
			return false
		case !moreP:
			return true
		}
		pattern, subject = restP, restT
	}
}

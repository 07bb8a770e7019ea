package simnats

import (
	"encoding/gob"
	"iter"
	"maps"
	"net"
	"time"

	"github.com/cantuslog/cantus/internal/simnet"
)

// A route is closed after three pings without an answer, as those of a node's
// real server.
const (
	pingInterval = time.Second
	maxPingsOut  = 3
	redial       = 250 * time.Millisecond
)

// frame is what servers send to each other: a name, which comes first, a
// message, a change of interest, a ping or its answer.
type frame struct {
	Name           string
	Message        *message
	Subject, Queue string
	Ended          bool
	Ping, Pong     bool
}

// route is a connection to another server.
type route struct {
	server *Server
	host   string
	conn   net.Conn
	encode *gob.Encoder // onto the connection, whose writes never wait

	// Server.mu guards the fields below.
	name   string
	theirs map[interest]bool
	pings  int // without an answer
	ended  bool
}

// send sends a frame. Server.mu is held. A connection that is broken is closed
// by its reader.
func (r *route) send(f frame) { _ = r.encode.Encode(f) }

func (r *route) close() {
	r.ended = true
	_ = r.conn.Close()
}

// dial keeps a route to a peer until the server is closed.
func (s *Server) dial(peer string) {
	for s.ctx.Err() == nil {
		conn, err := s.opts.Net.Dialer(s.opts.Host)(s.ctx, "tcp", simnet.Address(peer, Service))
		if err == nil {
			s.serve(conn)
		}
		select {
		case <-s.ctx.Done():
		case <-time.After(redial):
		}
	}
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.running.Go(func() { s.serve(conn) })
	}
}

// serve runs a route until it breaks.
func (s *Server) serve(conn net.Conn) {
	defer conn.Close()
	r := &route{server: s, conn: conn, encode: gob.NewEncoder(conn), theirs: map[interest]bool{}}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	r.send(frame{Name: s.opts.Host + " " + s.opts.Name})
	s.mu.Unlock()
	decode := gob.NewDecoder(conn)
	if !s.begin(r, decode) {
		return
	}
	stop := time.AfterFunc(pingInterval, func() { s.ping(r) })
	defer stop.Stop()
	for {
		var f frame
		if decode.Decode(&f) != nil {
			break
		}
		s.receive(r, f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.ended = true
	if s.routes[r.host] == r {
		delete(s.routes, r.host)
	}
}

// begin learns the other server's name, and tells it all subscriptions. A newer
// route replaces an older one, which is broken without having noticed.
func (s *Server) begin(r *route, decode *gob.Decoder) bool {
	_ = r.conn.SetReadDeadline(time.Now().Add(maxPingsOut * pingInterval))
	var hello frame
	if decode.Decode(&hello) != nil {
		return false
	}
	_ = r.conn.SetReadDeadline(time.Time{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	r.host, r.name = splitName(hello.Name)
	if old := s.routes[r.host]; old != nil {
		old.close()
	}
	s.routes[r.host] = r
	told := map[interest]bool{}
	for _, c := range s.clients {
		for _, sub := range c.subs {
			if i := (interest{sub.subject, sub.queue}); !told[i] {
				told[i] = true
				r.send(frame{Subject: i.subject, Queue: i.queue})
			}
		}
	}
	return true
}

func (s *Server) receive(r *route, f frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.pings = 0
	switch {
	case f.Message != nil:
		s.deliver(*f.Message)
	case f.Ping:
		r.send(frame{Pong: true})
	case f.Pong:
	case f.Ended:
		delete(r.theirs, interest{f.Subject, f.Queue})
	case f.Subject != "":
		r.theirs[interest{f.Subject, f.Queue}] = true
	}
}

// ping asks the other server for an answer, and closes the route if there was
// none for too long.
func (s *Server) ping(r *route) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.ended {
		return
	}
	if r.pings++; r.pings > maxPingsOut {
		r.close()
		return
	}
	r.send(frame{Ping: true})
	time.AfterFunc(pingInterval, func() { s.ping(r) })
}

func splitName(text string) (host, name string) {
	for i := range text {
		if text[i] == ' ' {
			return text[:i], text[i+1:]
		}
	}
	return text, ""
}

func keys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

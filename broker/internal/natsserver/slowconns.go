package natsserver

import "github.com/nats-io/nats-server/v2/server"

// SlowConns are the connections of one server that are far behind.
type SlowConns struct {
	Slow []SlowConn `json:"slow,omitempty"`
	More bool       `json:"more,omitempty"` // the list is incomplete
}

// SlowConn is a connection that reads too slowly.
type SlowConn struct {
	Account  string   `json:"account"`
	Subjects []string `json:"subjects"` // of its subscriptions
}

// maxSlowConns bounds the connections that Behind lists.
const maxSlowConns = 32

// Behind returns the connections for which the server buffers at least far
// bytes.
func (s *Server) Behind(far int64) (b SlowConns) {
	all, err := s.Connz(&server.ConnzOptions{Sort: server.ByPending, Limit: maxSlowConns})
	if err != nil {
		return b
	}
	for i, c := range all.Conns {
		if int64(c.Pending) < far {
			break
		}
		b.More = i == maxSlowConns-1
		one, err := s.Connz(&server.ConnzOptions{CID: c.Cid, Subscriptions: true, Username: true})
		if err != nil || len(one.Conns) == 0 {
			continue
		}
		account := one.Conns[0].Account
		if account == "" {
			account = server.DEFAULT_GLOBAL_ACCOUNT
		}
		b.Slow = append(b.Slow, SlowConn{account, one.Conns[0].Subs})
	}
	return b
}

// Cut removes subjects so that the rest fit into limit bytes of JSON.
func (b *SlowConns) Cut(limit int) {
	for i := range b.Slow {
		s := &b.Slow[i]
		for j, subject := range s.Subjects {
			if limit -= len(subject) + 3; limit < 0 {
				s.Subjects, b.More = s.Subjects[:j], true
				break
			}
		}
	}
}

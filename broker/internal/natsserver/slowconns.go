package natsserver

import "github.com/nats-io/nats-server/v2/server"

// SlowConns are the connections of one server that are far behind.
type SlowConns struct {
	Slow []SlowConn `json:"slow,omitempty"`
	More bool       `json:"more,omitempty"` // there are others
}

// SlowConn is a connection that reads too slowly, with what it subscribes to.
type SlowConn struct {
	Account  string   `json:"account"`
	Subjects []string `json:"subjects"` // that it subscribes to
}

// slowListed bounds how many connections are looked at closely.
const slowListed = 32

// Behind returns the connections that are more than so many bytes behind.
func (s *Server) Behind(far int64) (b SlowConns) {
	all, err := s.Connz(&server.ConnzOptions{Sort: server.ByPending, Limit: slowListed})
	if err != nil {
		return b
	}
	for i, c := range all.Conns {
		if int64(c.Pending) < far {
			break
		}
		b.More = i == slowListed-1
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

// Cut leaves out subjects that do not fit into a number of bytes.
func (b *SlowConns) Cut(most int) {
	for i := range b.Slow {
		s := &b.Slow[i]
		for j, subject := range s.Subjects {
			if most -= len(subject) + 3; most < 0 {
				s.Subjects, b.More = s.Subjects[:j], true
				break
			}
		}
	}
}

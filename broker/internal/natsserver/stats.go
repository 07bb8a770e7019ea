package natsserver

import (
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Stats are figures of the server.
type Stats struct {
	Clients       int   // connections of clients, the node's own included
	SlowConsumers int64 // connections that were closed because they took too little, since the start
}

// Stats returns the server's figures.
func (s *Server) Stats() Stats {
	return Stats{Clients: s.NumClients(), SlowConsumers: s.NumSlowConsumers()}
}

// Certificate says when the certificate of a port expires.
type Certificate struct {
	Port    string // such as "client"; replication uses that of "cluster"
	Expires time.Time
}

// Certificates returns when the certificates expire that the ports show since
// the last reload.
func (s *Server) Certificates() []Certificate { return *s.certificates.Load() }

// certificatesOf returns when the certificates expire that the ports of a
// configuration show.
func certificatesOf(opts *server.Options) (all []Certificate) {
	for _, p := range []struct {
		port   string
		config *tls.Config
	}{
		{"client", opts.TLSConfig}, {"cluster", opts.Cluster.TLSConfig}, {"gateway", opts.Gateway.TLSConfig},
		{"leafnode", opts.LeafNode.TLSConfig}, {"mqtt", opts.MQTT.TLSConfig}, {"websocket", opts.Websocket.TLSConfig},
	} {
		if p.config == nil {
			continue
		}
		if at := firstExpiry(p.config.Certificates); !at.IsZero() {
			all = append(all, Certificate{p.port, at})
		}
	}
	return all
}

// firstExpiry returns when the first of the certificates expires, those
// included that lead from one to its authority; zero if there is none.
func firstExpiry(chains []tls.Certificate) (first time.Time) {
	for _, chain := range chains {
		for _, der := range chain.Certificate {
			c, err := x509.ParseCertificate(der)
			if err == nil && (first.IsZero() || c.NotAfter.Before(first)) {
				first = c.NotAfter
			}
		}
	}
	return first
}

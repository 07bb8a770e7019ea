package natsserver

import (
	"crypto/sha256"
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

	chains        [sha256.Size]byte
	roots, client *x509.CertPool // the authorities of others' certificates
}

// same reports whether the port shows the same certificate, and trusts the same
// authorities.
func (c Certificate) same(d Certificate) bool {
	return c.Port == d.Port && c.chains == d.chains && c.roots.Equal(d.roots) && c.client.Equal(d.client)
}

// CertificateChanges returns how many reloads have brought other certificates,
// or other authorities.
func (s *Server) CertificateChanges() int { return int(s.certificateChanges.Load()) }

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
			all = append(all, Certificate{p.port, at, digestOf(p.config.Certificates), p.config.RootCAs, p.config.ClientCAs})
		}
	}
	return all
}

// digestOf returns a digest of certificates.
func digestOf(chains []tls.Certificate) (digest [sha256.Size]byte) {
	h := sha256.New()
	for _, chain := range chains {
		for _, der := range chain.Certificate {
			h.Write(der)
		}
	}
	h.Sum(digest[:0])
	return digest
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

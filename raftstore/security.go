package raftstore

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// ends are the TLS configurations of connections that are accepted, and of those
// that are dialed; nil without TLS.
type ends struct{ server, client *tls.Config }

func tlsEnds(c *tls.Config) (*ends, error) {
	if c == nil {
		return &ends{}, nil
	}
	server, client, err := mutualTLS(c)
	return &ends{server, client}, err
}

// SetTLS changes the certificates and authorities of connections that are made from
// now on; those that there are go on. It returns a function that takes the change
// back. Between TLS and none there is no change: peers would not follow at once.
func (n *Network) SetTLS(c *tls.Config) (restore func(), err error) {
	old := n.ends.Load()
	if (c == nil) != (old.server == nil) {
		return nil, errors.New("replication: TLS can't be turned on or off while the node runs")
	}
	next, err := tlsEnds(c)
	if err != nil {
		return nil, fmt.Errorf("replication: %w", err)
	}
	n.ends.Store(next)
	return func() { n.ends.Store(old) }, nil
}

// mutualTLS gives both ends' configurations from the node's one.
func mutualTLS(c *tls.Config) (server, client *tls.Config, err error) {
	if c.RootCAs == nil && c.ClientCAs == nil {
		return nil, nil, errors.New("TLS names no authority: set RootCAs to who signs the nodes' certificates")
	}
	if len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil {
		return nil, nil, errors.New("TLS has no certificate for this node")
	}
	server = c.Clone()
	server.ClientAuth = tls.RequireAndVerifyClientCert
	if server.ClientCAs == nil {
		server.ClientCAs = c.RootCAs
	}
	client = c.Clone()
	if client.RootCAs == nil {
		client.RootCAs = c.ClientCAs
	}
	for _, end := range []*tls.Config{server, client} {
		if end.MinVersion == 0 {
			end.MinVersion = tls.VersionTLS13
		}
	}
	return server, client, nil
}

// checkPeer makes sure that who dialed has the certificate of the node that it
// says it is.
func checkPeer(state tls.ConnectionState, name, from string) error {
	if name == "" {
		name = from
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("there is no certificate")
	}
	if err := state.PeerCertificates[0].VerifyHostname(name); err != nil {
		return fmt.Errorf("the certificate is not for %s", name)
	}
	return nil
}

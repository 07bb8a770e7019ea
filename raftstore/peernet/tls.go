package peernet

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// tlsConfigs are the TLS configurations of inbound and of outbound connections,
// both nil without TLS.
type tlsConfigs struct{ server, client *tls.Config }

func newTLSConfigs(c *tls.Config) (*tlsConfigs, error) {
	if c == nil {
		return &tlsConfigs{}, nil
	}
	server, client, err := mutualTLS(c)
	return &tlsConfigs{server, client}, err
}

// SetTLS changes the certificates and authorities of future connections, and
// keeps existing connections. It returns a function that undoes the change. TLS
// can't be turned on or off, since the peers could not do so at the same time.
func (n *Network) SetTLS(c *tls.Config) (restore func(), err error) {
	old := n.tls.Load()
	if (c == nil) != (old.server == nil) {
		return nil, errors.New("replication: TLS can't be turned on or off while the node runs")
	}
	next, err := newTLSConfigs(c)
	if err != nil {
		return nil, fmt.Errorf("replication: %w", err)
	}
	n.tls.Store(next)
	return func() { n.tls.Store(old) }, nil
}

// mutualTLS derives the configurations of both ends from the node's one.
func mutualTLS(c *tls.Config) (server, client *tls.Config, err error) {
	if c.RootCAs == nil && c.ClientCAs == nil {
		return nil, nil, errors.New("TLS names no authority: set RootCAs to the authority that signs the nodes' certificates")
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

// checkPeer returns an error unless the dialer's certificate is valid for
// serverName, the one name that all nodes share, or if that is "" for from, the
// node that the dialer claims to be.
func checkPeer(state tls.ConnectionState, serverName, from string) error {
	name := serverName
	if name == "" {
		name = from
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("the peer has no certificate")
	}
	if err := state.PeerCertificates[0].VerifyHostname(name); err != nil {
		return fmt.Errorf("the certificate is not for %s", name)
	}
	return nil
}

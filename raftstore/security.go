package raftstore

import (
	"crypto/tls"
	"errors"
	"fmt"
)

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

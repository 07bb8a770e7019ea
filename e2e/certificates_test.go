package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs nodes' certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), key: newKey(t)}
	template := certificate(name)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.write("ca.crt", "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{name, "n1", "n2", "n3", "n4", "n5", "n9"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func (a *authority) write(file, kind string, der []byte) string {
	a.t.Helper()
	file = filepath.Join(a.dir, file)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// sign returns the files of a certificate that is valid until a time, and its
// key.
func (a *authority) sign(name string, until time.Time) (certFile, keyFile string) {
	a.t.Helper()
	key, template := newKey(a.t), certificate(name)
	template.NotAfter = until
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".crt", "CERTIFICATE", der), a.write(name+".key", "PRIVATE KEY", secret)
}

// natsConfig is a NATS configuration that secures routes with a certificate of
// this authority's and trusts the one of trusted's.
func (a *authority) natsConfig(name string, until time.Time, trusted *authority) string {
	a.t.Helper()
	cert, key := a.sign(name, until)
	file := filepath.Join(a.dir, name+".conf")
	text := fmt.Sprintf("cluster { tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true } }\n", cert, key, filepath.Join(trusted.dir, "ca.crt"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// TestClusterCertificates runs a cluster over mutual TLS, and has nodes come
// to it that have no certificate, or not a good one.
func TestClusterCertificates(t *testing.T) {
	tomorrow := time.Now().Add(24 * time.Hour)
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	c := startCluster(t, 3, append([]string{"--nats-config", ours.natsConfig("node", tomorrow, ours)}, steady...)...)
	undisturbed(t, c, func(t *testing.T) {
		for i, s := range []struct {
			name, config string
			heard        string // what the members log
			says         string // what the stranger logs
		}{
			// A TLS client keeps a certificate to itself that the other side would not trust.
			{"of another authority", theirs.natsConfig("stranger", tomorrow, ours), "client didn't provide a certificate", "waiting"},
			{"expired", ours.natsConfig("late", time.Now().Add(-time.Minute), ours), "expired", "waiting"},
			{"that trusts another authority", ours.natsConfig("distrustful", tomorrow, theirs), "bad certificate", "signed by unknown authority"},
			{"without one", "", "TLS route handshake error: tls: first record does not look like a TLS handshake", "waiting"},
		} {
			t.Run(s.name, func(t *testing.T) {
				n := c.prepare(fmt.Sprintf("n%d", i+4), "--nats-config", s.config)
				n.args = without(n.args, "--nats-config", c.common[1])
				if s.config == "" {
					n.args = without(n.args, "--nats-config", "")
				}
				if err := n.launch(); err != nil {
					t.Fatal(err)
				}
				c.awaitLog(t, n, s.says)
				c.awaitLogOfAny(t, s.heard)
				n.kill()
			})
		}
		checkReplicationTLS(t, c, ours, theirs)
	})
}

// awaitLogOfAny returns when one of the members has logged a text.
func (c *cluster) awaitLogOfAny(t *testing.T, text string) {
	t.Helper()
	if err := c.until(t.Context(), fmt.Sprintf("logged %q by a member", text), func(context.Context) string {
		for _, n := range c.nodes {
			if n.running().stderr.has(text) {
				return ""
			}
		}
		return c.nodes[0].running().stderr.String()
	}); err != nil {
		t.Error(err)
	}
}

// checkReplicationTLS comes to a replication port as a stranger does that
// knows everything but has no good certificate.
func checkReplicationTLS(t *testing.T, c *cluster, ours, theirs *authority) {
	t.Helper()
	status, err := c.dial("n1").status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to := status.Nodes[0]
	roots := x509.NewCertPool()
	roots.AddCert(ours.cert)
	pair := func(a *authority, name string, until time.Time) []tls.Certificate {
		cert, err := tls.LoadX509KeyPair(a.sign(name, until))
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{cert}
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	const nonce = 32
	for name, s := range map[string]struct {
		certs []tls.Certificate
		heard int
	}{
		// An application may have one of the same authority: it gets no further.
		"good":                 {pair(ours, "raft-good", tomorrow), nonce},
		"none":                 {nil, 0},
		"of another authority": {pair(theirs, "raft-stranger", tomorrow), 0},
		"expired":              {pair(ours, "raft-late", time.Now().Add(-time.Minute)), 0},
	} {
		var heard []byte
		conn, err := tls.Dial("tcp", to.Raft, &tls.Config{RootCAs: roots, Certificates: s.certs})
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = conn.Write(append(opening(), greeting(2, "n2", to.Name)...))
			heard, err = io.ReadAll(conn)
			_ = conn.Close()
		}
		if len(heard) != s.heard {
			t.Errorf("certificate %s: it hears %q, %v; want %d bytes", name, heard, err, s.heard)
		}
	}
	checkSaid(t, to.Raft, opening(), 0) // in plain
}

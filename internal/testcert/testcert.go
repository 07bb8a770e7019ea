// Package testcert creates certificates for tests.
package testcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates of nodes and clients.
type Authority struct {
	// Dir has ca.crt, the authority's own certificate, and the files that Files
	// creates.
	Dir string

	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority returns a new authority.
func NewAuthority(t testing.TB) Authority {
	t.Helper()
	return NamedAuthority(t, "authority")
}

// NamedAuthority returns a new authority with a name. Authorities that a test
// must tell apart need different names: a client sends no certificate to a
// server that requests one of another authority.
func NamedAuthority(t testing.TB, name string) Authority {
	t.Helper()
	a := Authority{t: t, Dir: t.TempDir(), key: newKey(t)}
	template := certificate(name, time.Now().Add(24*time.Hour))
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	template.ExtKeyUsage = nil
	a.cert = a.parse(x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key))
	a.write("ca.crt", "CERTIFICATE", a.cert.Raw)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(name string, until time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func (a Authority) parse(der []byte, err error) *x509.Certificate {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a Authority) write(file, kind string, der []byte) string {
	a.t.Helper()
	file = filepath.Join(a.Dir, file)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// Pool returns a pool with only this authority.
func (a Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// CAFile returns the path of the authority's own certificate.
func (a Authority) CAFile() string { return filepath.Join(a.Dir, "ca.crt") }

// Config returns the TLS configuration of a node with a name, for use as a
// server and as a client.
func (a Authority) Config(name string) *tls.Config {
	a.t.Helper()
	key, template := newKey(a.t), certificate(name, time.Now().Add(time.Hour))
	template.DNSNames = []string{name}
	cert := a.parse(x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key))
	return &tls.Config{RootCAs: a.Pool(), Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

// Files creates a certificate and its key, and returns their files, NAME.crt
// and NAME.key in Dir. The certificate is valid until a time, for 127.0.0.1,
// its name, and the names n1 to n9.
func (a Authority) Files(name string, until time.Time) (certFile, keyFile string) {
	a.t.Helper()
	key, template := newKey(a.t), certificate(name, until)
	template.DNSNames = []string{name, "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	cert := a.parse(x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key))
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".crt", "CERTIFICATE", cert.Raw), a.write(name+".key", "PRIVATE KEY", secret)
}

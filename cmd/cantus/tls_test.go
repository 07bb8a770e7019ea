package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// selfSigned makes a certificate for 127.0.0.1 that is its own authority.
func selfSigned(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file, kind string, der []byte) string {
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	return write(name+".crt", "CERTIFICATE", cert), write(name+".key", "PRIVATE KEY", secret)
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	serverCert, serverKey := selfSigned(t, dir, "server")
	clientCert, clientKey := selfSigned(t, dir, "client")
	config := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }", serverCert, serverKey, clientCert)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w := configuredWire(t, config, nats.RootCAs(serverCert), nats.ClientCert(clientCert, clientKey))
	w.founded(1)

	status, out, errOut := w.cantus("", "status", "--tls-ca", serverCert, "--tls-cert", clientCert, "--tls-key", clientKey)
	w.expect(status, exitUnavailable, out, "cluster test") // whose partition has no leader
	w.expect(status, exitUnavailable, errOut, "without a leader: partition 0")
	status, _, errOut = w.cantus("", "status")
	w.expect(status, exitUsage, errOut, "--tls-ca")
	status, _, errOut = w.cantus("", "status", "--tls-ca", serverCert)
	w.expect(status, exitUsage, errOut, "--tls-cert")
	status, _, errOut = w.cantus("", "status", "--tls-ca", config)
	w.expect(status, exitUsage, errOut, "--tls-ca")
}

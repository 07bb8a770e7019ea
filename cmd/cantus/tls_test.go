package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testcert"
)

func TestTLS(t *testing.T) {
	servers, clients := testcert.NamedAuthority(t, "of servers"), testcert.NamedAuthority(t, "of clients")
	tomorrow := time.Now().Add(24 * time.Hour)
	serverCert, serverKey := servers.Files("server", tomorrow)
	clientCert, clientKey := clients.Files("client", tomorrow)
	config := filepath.Join(t.TempDir(), "nats.conf")
	text := fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }", serverCert, serverKey, clients.CAFile())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w := configuredWire(t, config, nats.RootCAs(servers.CAFile()), nats.ClientCert(clientCert, clientKey))
	w.founded(1)

	status, out, errOut := w.cantus("", "status", "--tls-ca", servers.CAFile(), "--tls-cert", clientCert, "--tls-key", clientKey)
	w.expect(status, exitUnavailable, out, "cluster test") // whose partition has no leader
	w.expect(status, exitUnavailable, errOut, "without a leader: partition 0")
	status, _, errOut = w.cantus("", "status")
	w.expect(status, exitUsage, errOut, "--tls-ca")
	status, _, errOut = w.cantus("", "status", "--tls-ca", servers.CAFile())
	w.expect(status, exitUsage, errOut, "--tls-cert")
	status, _, errOut = w.cantus("", "status", "--tls-ca", config)
	w.expect(status, exitUsage, errOut, "--tls-ca")
}

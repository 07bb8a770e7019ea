package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// A configuration whose certificate has expired, or will soon, passes with a
// warning.
func TestConfigCheckWarnsOfCertificates(t *testing.T) {
	authority := testcert.NewAuthority(t)
	for _, c := range []struct {
		name    string
		left    time.Duration
		warning string
	}{
		{"expired", -time.Hour, `the certificate of the port "client" has expired, at 20`},
		{"soon", 13 * 24 * time.Hour, `the certificate of the port "client" expires within two weeks, at 20`},
		{"later", 15 * 24 * time.Hour, ""},
	} {
		cert, key := authority.Files(c.name, time.Now().Add(c.left))
		config := filepath.Join(t.TempDir(), "nats.conf")
		if err := os.WriteFile(config, fmt.Appendf(nil, "tls { cert_file: %q, key_file: %q }", cert, key), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		p := &program{in: strings.NewReader(""), out: &out, errOut: &errOut}
		status := p.run(t.Context(), []string{"config", "check", "--nats-config", config, "--data", t.TempDir()})
		if said := errOut.String(); status != 0 || !strings.Contains(said, c.warning) || c.warning == "" && said != "" {
			t.Errorf("%s: status %d, %s", c.name, status, said)
		}
	}
}

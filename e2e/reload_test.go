package e2e_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testcert"
)

// TestClusterReload renews the certificates of a cluster that is written to,
// and has each node read them with SIGHUP: all three ports present the new one,
// no connection breaks and no append fails.
func TestClusterReload(t *testing.T) {
	if runtime.GOOS == "windows" { // which has no SIGHUP
		return
	}
	ours := testcert.NamedAuthority(t, "ours")
	tomorrow := time.Now().Add(24 * time.Hour)
	cert, key := ours.Files("node", tomorrow)
	config := filepath.Join(ours.Dir, "node.conf")
	text := fmt.Sprintf("cert_file: %q, key_file: %q, ca_file: %q", cert, key, ours.CAFile())
	text = fmt.Sprintf("allow_non_tls: true\ntls { %s }\ncluster { tls { %s, verify: true } }\n", text, text)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, 3, append([]string{"--nats-config", config}, steady...)...)
	undisturbed(t, c, func(t *testing.T) {
		old := presented(t, c, ours)
		ours.Files("node", tomorrow) // into the same files
		for _, n := range c.nodes {
			if err := n.running().cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			c.awaitLog(t, n, "reloaded: ")
		}
		for where, serial := range presented(t, c, ours) {
			if serial == old[where] {
				t.Errorf("%s has the old certificate", where)
			}
		}
		for _, n := range c.nodes {
			if n.running().stderr.has("connection to the NATS server lost") {
				t.Errorf("node %s has lost a connection of its own", n.name)
			}
		}
	})
}

// presented returns the serial numbers of the certificates that the nodes'
// ports present.
func presented(t *testing.T, c *cluster, ours testcert.Authority) map[string]string {
	t.Helper()
	status, err := statusOf(t.Context(), c.dial("n1"))
	if err != nil {
		t.Fatal(err)
	}
	serials := map[string]string{}
	for i, n := range c.nodes {
		serials[n.name+", clients"] = serial(t, ours, strings.TrimPrefix(n.url, "nats://"), true)
		serials[n.name+", routes"] = serial(t, ours, c.routes[n.name], false)
		serials[n.name+", replication"] = serial(t, ours, status.Nodes[i].Raft, false)
	}
	return serials
}

// serial dials a port and returns the serial number of its certificate. To
// clients NATS says something in plain before.
func serial(t *testing.T, ours testcert.Authority, address string, greeted bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if greeted {
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(string(line), "INFO ") {
			t.Fatalf("%s began with %q, %v", address, line, err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(ours.Dir, "node.crt"), filepath.Join(ours.Dir, "node.key"))
	secure := tls.Client(conn, &tls.Config{RootCAs: ours.Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err = errors.Join(err, secure.HandshakeContext(ctx)); err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	return secure.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

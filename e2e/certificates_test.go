package e2e_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testcert"
)

// natsConfig is a NATS configuration that secures routes with a certificate of
// one authority and trusts another.
func natsConfig(t *testing.T, name string, until time.Time, by, trusted testcert.Authority) string {
	t.Helper()
	cert, key := by.Files(name, until)
	file := filepath.Join(by.Dir, name+".conf")
	text := fmt.Sprintf("cluster { tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true } }\n", cert, key, trusted.CAFile())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestClusterCertificates runs a cluster over mutual TLS. Nodes without a
// certificate, or without a valid one, try to join.
func TestClusterCertificates(t *testing.T) {
	tomorrow := time.Now().Add(24 * time.Hour)
	ours, theirs := testcert.NamedAuthority(t, "ours"), testcert.NamedAuthority(t, "theirs")
	c := startCluster(t, 3, append([]string{"--nats-config", natsConfig(t, "node", tomorrow, ours, ours)}, steady...)...)
	undisturbed(t, c, func(t *testing.T) {
		for i, s := range []struct {
			name, config string
			heard        string // what the members log
			says         string // what the rejected node logs
		}{
			// A TLS client does not send a certificate that the other side
			// would not trust.
			{"of another authority", natsConfig(t, "outsider", tomorrow, theirs, ours), "client didn't provide a certificate", "waiting"},
			{"expired", natsConfig(t, "late", time.Now().Add(-time.Minute), ours, ours), "expired", "waiting"},
			{"that trusts another authority", natsConfig(t, "distrustful", tomorrow, ours, theirs), "bad certificate", "signed by unknown authority"},
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

// awaitLogOfAny waits until one of the members has logged a text.
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

// checkReplicationTLS connects to a replication port like an outsider that
// knows everything but has no good certificate.
func checkReplicationTLS(t *testing.T, c *cluster, ours, theirs testcert.Authority) {
	t.Helper()
	status, err := statusOf(t.Context(), c.dial("n1"))
	if err != nil {
		t.Fatal(err)
	}
	to := status.Nodes[0]
	pair := func(a testcert.Authority, name string, until time.Time) []tls.Certificate {
		cert, err := tls.LoadX509KeyPair(a.Files(name, until))
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
		// An application may have one of the same authority: it gets only the
		// nonce.
		"good":                 {pair(ours, "raft-good", tomorrow), nonce},
		"none":                 {nil, 0},
		"of another authority": {pair(theirs, "raft-outsider", tomorrow), 0},
		"expired":              {pair(ours, "raft-late", time.Now().Add(-time.Minute)), 0},
	} {
		var heard []byte
		conn, err := tls.Dial("tcp", to.Raft, &tls.Config{RootCAs: ours.Pool(), Certificates: s.certs})
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

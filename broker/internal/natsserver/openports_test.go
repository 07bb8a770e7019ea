package natsserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testcert"
)

const (
	nobodysUsers  = `accounts { SYS { users: [ {user: s, password: s} ] } }, system_account: SYS`
	oneUser       = `authorization { users: [ {user: guest, password: p} ] }`
	everywhere    = "host: 0.0.0.0, port: 4222, "
	onLoopback    = "host: 127.0.0.1, port: 4222, "
	clientRefused = "the client port on every interface (0.0.0.0:4222) would be open to "
)

// openCase is a NATS configuration, and what is open with it, or why it is
// refused.
type openCase struct{ config, open, refused string }

// openCases returns the cases. certificate is the part of a tls block that
// names files, and jetStream the configuration that MQTT needs.
func openCases(certificate, jetStream string) []openCase {
	verified := "tls { " + certificate + ", verify: true }"
	return []openCase{
		// Clients.
		{onLoopback, "clients on 127.0.0.1:4222 (anyone on this machine, unencrypted)", ""},
		{everywhere, "", clientRefused + "anyone: "},
		{everywhere + oneUser, "clients on 0.0.0.0:4222 (users of the NATS configuration, unencrypted)", ""},
		{everywhere + oneUser + ", no_auth_user: guest", "", clientRefused + "anyone, as the NATS user guest: "},
		{onLoopback + oneUser + ", no_auth_user: guest", "clients on 127.0.0.1:4222 (anyone on this machine, as the NATS user guest, unencrypted)", ""},
		{everywhere + nobodysUsers, "", clientRefused + "anyone: "},
		{everywhere + `authorization { token: t }`, "clients on 0.0.0.0:4222 (holders of the NATS token, unencrypted)", ""},
		{everywhere + "tls { " + certificate + " }", "", clientRefused + "anyone: "},
		{everywhere + verified, "clients on 0.0.0.0:4222 (holders of a certificate, over TLS)", ""},
		{everywhere + verified + ", allow_non_tls: true", "", clientRefused + "anyone: "},
		{onLoopback + verified + ", allow_non_tls: true", "clients on 127.0.0.1:4222 (anyone on this machine, over TLS or unencrypted)", ""},
		{everywhere + verified + ", " + oneUser, "clients on 0.0.0.0:4222 (users of the NATS configuration with a certificate, over TLS)", ""},
		// Routes, which TLS always asks for a certificate.
		{onLoopback + "cluster { host: 0.0.0.0, port: 6222 }", "", "the route port on every interface (0.0.0.0:6222) would be open to anyone: "},
		{onLoopback + "cluster { host: 0.0.0.0, port: 6222, tls { " + certificate + " } }", "routes on 0.0.0.0:6222 (holders of a certificate, over TLS)", ""},
		{onLoopback + "cluster { host: 0.0.0.0, port: 6222, authorization { user: r, password: p } }", "routes on 0.0.0.0:6222 (servers with the configured password, unencrypted)", ""},
		// The others.
		{onLoopback + "websocket { port: 8080, no_tls: true }", "", "the port for websockets on every interface (:8080) would be open to anyone: "},
		{onLoopback + "websocket { host: 127.0.0.1, port: 8080, no_tls: true }", "; websockets on 127.0.0.1:8080 (anyone on this machine, unencrypted)", ""},
		{onLoopback + oneUser + ", websocket { port: 8080, no_tls: true }", "; websockets on :8080 (users of the NATS configuration, unencrypted)", ""},
		{onLoopback + oneUser + ", websocket { port: 8080, no_tls: true, no_auth_user: guest }", "", "the port for websockets on every interface (:8080) would be open to anyone, as the NATS user guest: "},
		{onLoopback + "websocket { port: 8080, " + verified + " }", "; websockets on :8080 (holders of a certificate, over TLS)", ""},
		{onLoopback + jetStream + "mqtt { port: 1883 }", "", "the port for MQTT on every interface (:1883) would be open to anyone: "},
		{onLoopback + "leafnodes { port: 7422 }", "", "the port for leaf nodes "},
		{onLoopback + "leafnodes { port: 7422, authorization { user: l, password: p } }", "(servers with a user of the leafnodes block, unencrypted)", ""},
		{onLoopback + "gateway { name: c, port: 7522 }", "", "the port for gateways "},
		{onLoopback + "gateway { name: c, port: 7522, authorization { user: g, password: p } }", "(servers with the configured password, unencrypted)", ""},
		{onLoopback + "http: 0.0.0.0:8333", "; NATS monitoring on 0.0.0.0:8333 (anyone that reaches it, unencrypted)", ""},
		{everywhere + oneUser + ", prof_port: 6060", "", "the port for NATS profiles on every interface (0.0.0.0:6060) would be open to anyone: "},
	}
}

// What a configuration opens is known and described, and refused if anyone may
// use it from another machine. No port is opened here.
func TestOpenPortsOfAConfiguration(t *testing.T) {
	ca := testcert.NewAuthority(t)
	cert, key := ca.Files("n1", time.Now().Add(time.Hour))
	certificate := fmt.Sprintf("cert_file: %q, key_file: %q, ca_file: %q", cert, key, ca.CAFile())
	jetStream := fmt.Sprintf("server_name: n1, jetstream { store_dir: %q }, ", t.TempDir())
	for _, c := range openCases(certificate, jetStream) {
		file := filepath.Join(t.TempDir(), "nats.conf")
		if err := os.WriteFile(file, []byte(c.config), 0o600); err != nil {
			t.Fatal(err)
		}
		o := Options{Name: "n1", Cluster: "c", Prefix: "cantus", ConfigFile: file}
		if strings.Contains(c.config, "cluster {") {
			o.ClusterListen = "127.0.0.1:6222"
		}
		access, err := newAccess(o)
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{access: access}
		_, _, err = s.prepare(o, "n1")
		if c.refused != "" {
			if !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v; want %q", c.config, err, c.refused)
			}
			o.Insecure = true
			if _, _, err := s.prepare(o, "n1"); err != nil {
				t.Errorf("%s, insecure: %v", c.config, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.config, err)
			continue
		}
		var texts []string
		for _, p := range *s.open.Load() {
			texts = append(texts, p.String())
		}
		if got := strings.Join(texts, "; "); !strings.Contains(got, c.open) {
			t.Errorf("%s: got %q, want %q in it", c.config, got, c.open)
		}
	}
}

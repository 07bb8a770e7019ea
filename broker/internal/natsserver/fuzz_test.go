package natsserver

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// FuzzNATSConfig reads a NATS configuration. It is refused, or the node is a
// user of its own, and nobody beyond this machine gets in unasked.
func FuzzNATSConfig(f *testing.F) {
	for _, s := range []string{
		"", `port: 4222`, `host: 127.0.0.1`, `authorization { users = [ {user: a, password: b} ] }`, `authorization { token: x }`,
		`accounts { A { users: [ {user: a, password: b, permissions: {publish: ">"}} ] }, B { imports: [] } }`, `max_payload: 100`, `no_auth_user: a`,
		`listen: "0.0.0.0:1"`, `leafnodes { port: 7422 }`, `websocket { port: 1, no_tls: true }`, `cluster { name: x, port: 1 }`, `{`, `a = [1,`, "x: \"\xff\"",
	} {
		f.Add([]byte(s))
	}
	elsewhere := regexp.MustCompile(`(?i)include|file|dir|url|http|resolver|operator|cert|ca_|key`) // what makes the parser read other files
	f.Fuzz(func(t *testing.T, text []byte) {
		if elsewhere.Match(text) {
			return
		}
		file := filepath.Join(t.TempDir(), "nats.conf")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		o := Options{Name: "n1", Cluster: "c", Prefix: "cantus", ConfigFile: file}
		access, err := newAccess(o)
		if err != nil {
			t.Fatal(err)
		}
		opts, rights, err := (&Server{access: access}).prepare(o, "n1")
		if err != nil {
			if err.Error() == "" {
				t.Fatal("refused without a reason")
			}
			return
		}
		ip := net.ParseIP(strings.Trim(opts.Host, "[]"))
		beyond := opts.Port != 0 && !opts.DontListen && opts.Host != "localhost" && (ip == nil || !ip.IsLoopback())
		if asks := opts.Username != "" || opts.Authorization != "" || len(opts.Users) > 0 || len(opts.Nkeys) > 0; beyond && !asks {
			t.Fatalf("anyone gets in at %s:%d: %+v", opts.Host, opts.Port, rights)
		}
	})
}

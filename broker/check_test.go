package broker_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
)

// TestCheckFindsWhatOpenRefuses checks options that Open refuses: Check names
// every mistake in them, and writes nothing.
func TestCheckFindsWhatOpenRefuses(t *testing.T) {
	config := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(config, []byte("max_payload: 1000\nmax_control_line: 100\nwebsocket { port: -1 }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		opts  broker.Options
		words []string
	}{
		"numbers": {broker.Options{Partitions: 1025, MaxLocks: -1, Replicas: 2}, []string{"replicas is 2", "partitions is 1025", "locks is -1"}},
		"cluster": {
			broker.Options{ClusterListen: ":0", ClientListen: ":0", Bootstrap: []string{"a", "a"}, Standby: true},
			[]string{"a standby", `names "a" twice`, "not this node", "route port", "client port"},
		},
		"alone":    {broker.Options{Standby: true, Bootstrap: []string{"a", "b"}}, []string{"no address", "a standby follows"}},
		"routes":   {broker.Options{Routes: []string{"127.0.0.1:1"}}, []string{"cluster address"}},
		"NATS":     {broker.Options{ClientListen: "127.0.0.1:0", NATSConfig: config}, []string{"max_payload 1000", "max_control_line 100", "port for websockets"}},
		"account":  {broker.Options{Account: "APP"}, []string{"no users", "account missing"}},
		"profiles": {broker.Options{HTTPListen: "0.0.0.0:0", Profiles: true}, []string{"loopback"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			all := broker.Check(dir, test.opts)
			if len(all) != len(test.words) {
				t.Errorf("%d mistakes, want %d: %v", len(all), len(test.words), all)
			}
			text := errors.Join(all...).Error()
			for _, w := range test.words {
				if !strings.Contains(text, w) {
					t.Errorf("%q is missing:\n%s", w, text)
				}
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory: %v", err)
			}
			mustNotOpen(t, dir, test.opts, nil)
		})
	}
}

// TestCheckKnowsTheDirectorysToken checks a node beside itself: its directory
// keeps the token, so that its route port is not open to anyone.
func TestCheckKnowsTheDirectorysToken(t *testing.T) {
	testkit.NotShort(t, "a node with a route port takes seconds to end")
	dir := t.TempDir()
	open := broker.Options{ClusterListen: "0.0.0.0:0", Bootstrap: []string{"n1"}} // Check does not listen
	if all := broker.Check(dir, open); len(all) != 1 || !strings.Contains(all[0].Error(), "route port") {
		t.Errorf("without a token: %v", all)
	}
	open.ClusterSecret = token
	if all := broker.Check(dir, open); len(all) > 0 {
		t.Errorf("with a token: %v", all)
	}
	n, nc := openNode(t, dir, broker.Options{ClusterListen: "127.0.0.1:0", Bootstrap: []string{"n1"}, ClusterSecret: token})
	nc.Close()
	open.ClusterSecret = ""
	if all := broker.Check(dir, open); len(all) > 0 {
		t.Errorf("with the directory's token: %v", all)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

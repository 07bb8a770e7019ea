package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/barenats"
	"github.com/cantuslog/cantus/internal/testkit"
)

// websocketURL reads the file in which the NATS server writes where it listens.
func websocketURL(t *testing.T, dir string) string {
	t.Helper()
	var ports struct{ WebSocket []string }
	eventually(t, "a ports file", func() bool { // it is written beside the start
		files, _ := filepath.Glob(filepath.Join(dir, "*.ports"))
		if len(files) != 1 {
			return false
		}
		text, err := os.ReadFile(files[0])
		return err == nil && json.Unmarshal(text, &ports) == nil && len(ports.WebSocket) > 0
	})
	return ports.WebSocket[0]
}

// The other listeners that a nats-server configuration can open also lead to
// the node: a websocket, and a server that is a leaf.
func TestWebsocketAndLeafNode(t *testing.T) {
	dir := t.TempDir()
	openNode(t, t.TempDir(), broker.Options{NATSConfig: config(t, fmt.Sprintf(`ports_file_dir: %q
websocket { host: 127.0.0.1, port: -1, no_tls: true }
leafnodes { host: 127.0.0.1, port: -1 }`, dir))})
	url := websocketURL(t, dir)

	over, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(over.Close)
	works(t, over)

	remote := filepath.Join(t.TempDir(), "leaf.conf")
	text := fmt.Sprintf("host: 127.0.0.1\nport: -1\nleafnodes { remotes: [ { url: %q } ] }", url)
	if err := os.WriteFile(remote, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := barenats.Run(t.Context(), barenats.Options{ConfigFile: remote})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	behind, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(behind.Close)
	testkit.Until(t, "the leaf has heard of the node's subscriptions", func() bool {
		_, err := behind.Request("cantus.info.0", nil, patience)
		if err != nil && !errors.Is(err, nats.ErrNoResponders) {
			t.Fatal(err)
		}
		return err == nil
	})
	feed, err := behind.SubscribeSync("cantus.feed.>")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "the node has heard of the leaf's", func() bool {
		works(t, behind)
		_, err := feed.NextMsg(1)
		return err == nil
	})
	for p := range 2 {
		checkLog(t, behind, p)
	}
}

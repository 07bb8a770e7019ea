package broker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestPortsAreNotOpenedToAnyone(t *testing.T) {
	testkit.NotShort(t, "many nodes are started")
	users := filepath.Join(t.TempDir(), "users.conf")
	if err := os.WriteFile(users, []byte(`authorization { users = [ {user: a, password: b} ] }`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		opts broker.Options
		text string // "" if it opens
	}{
		"clients":                 {broker.Options{ClientListen: ":0"}, "the client port on every interface (:0) would be open to anyone"},
		"clients on an interface": {broker.Options{ClientListen: "0.0.0.0:0"}, "the client port on every interface (0.0.0.0:0) would be open to anyone"},
		"routes":                  {broker.Options{ClusterListen: "0.0.0.0:0"}, "--cluster-secret-file"},
		"users":                   {broker.Options{ClientListen: "0.0.0.0:0", NATSConfig: users}, ""},
		"a token":                 {broker.Options{ClusterListen: "0.0.0.0:0", Bootstrap: []string{"n1"}, ClusterSecret: token}, ""},
		"insecure":                {broker.Options{ClientListen: "0.0.0.0:0", ClusterListen: "0.0.0.0:0", Bootstrap: []string{"n1"}, Insecure: true}, ""},
		"on loopback":             {broker.Options{ClientListen: "127.0.0.1:0", ClusterListen: "localhost:0", Bootstrap: []string{"n1"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience) // a node without --bootstrap waits
			defer cancel()
			n, err := broker.Open(ctx, t.TempDir(), test.opts)
			if err == nil {
				defer n.Close()
			}
			if test.text == "" && err != nil || test.text != "" && (!errors.Is(err, broker.ErrOptions) || !strings.Contains(err.Error(), test.text)) {
				t.Errorf("got %v, wanted %q", err, test.text)
			}
		})
	}
}

func TestOpenPortsSayWhatIsOpenAndToWhom(t *testing.T) {
	testkit.NotShort(t, "many nodes are started")
	for want, opts := range map[string]broker.Options{
		"no port": {},
		"anyone on this machine, unencrypted); routes on 127.0.0.1:": {ClientListen: "127.0.0.1:0", ClusterListen: "127.0.0.1:0", Bootstrap: []string{"n1"}},
		"(holders of the cluster's token, unencrypted); replication": {ClusterListen: "127.0.0.1:0", Bootstrap: []string{"n1"}, ClusterSecret: token},
		"(members with the cluster's secret, unencrypted)":           {ClusterListen: "127.0.0.1:0", Bootstrap: []string{"n1"}},
	} {
		n, err := broker.Open(t.Context(), t.TempDir(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.OpenPorts(); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
		_ = n.Close()
	}
}

// After a reload that failed, the open ports are unchanged.
func TestOpenPortsAfterAReload(t *testing.T) {
	const asks = `authorization { token: "a-token-of-the-test" }`
	conf := config(t, "")
	n, _ := openNode(t, t.TempDir(), broker.Options{NATSConfig: conf})
	was := n.OpenPorts()
	for _, test := range []struct {
		more string
		bad  bool
	}{
		{asks + ", max_payload: 1000", true},
		{asks + ", max_subscriptions: 5000", true}, // which the server does not take while it runs
		{asks, false},
	} {
		if err := os.Rename(config(t, test.more), conf); err != nil {
			t.Fatal(err)
		}
		if err := n.Reload(broker.Options{NATSConfig: conf}); (err != nil) != test.bad {
			t.Fatalf("%s: %v", test.more, err)
		}
		if now := n.OpenPorts(); (now == was) != test.bad || !test.bad && !strings.Contains(now, "holders of the NATS token") {
			t.Errorf("after %s: %s; it was %s", test.more, now, was)
		}
	}
}

// A server without the token can't become a route.
func TestAnIntruderIsNoRoute(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1, ClusterSecret: token})
	c.prepare("intruder")
	o := c.options("intruder")
	log := &buffer{}
	o.Name, o.Bootstrap, o.ClusterSecret, o.Logger = "x", []string{"x"}, strings.Repeat("y", 32), slog.New(slog.NewTextHandler(log, nil))
	n, err := broker.Open(t.Context(), c.dirs["intruder"], o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	eventually(t, "it is rejected", func() bool { return log.count("Authorization Violation") > 0 })
	if s := c.status("n1"); len(s.Nodes) != 3 {
		t.Errorf("the cluster sees %v", s.Nodes)
	}
}

// buffer holds a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// matches reports whether a line matches a regular expression.
func (b *buffer) matches(pattern string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return regexp.MustCompile(pattern).Match(b.b.Bytes())
}

// count returns how many lines contain a text.
func (b *buffer) count(text string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.b.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// last returns what follows text, up to the next quote, in the last line that
// has it and also.
func (b *buffer) last(also, text string) (value string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.b.String()) {
		if _, after, ok := strings.Cut(line, text); ok && strings.Contains(line, also) {
			value, _, _ = strings.Cut(after, `"`)
		}
	}
	return value
}

// A node that was away made every other one log 240 lines a minute, none of
// which said so.
func TestANodeThatIsAwayIsSaidOnce(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	log := &buffer{}
	c.change = func(name string, o *broker.Options) {
		if name == "n1" {
			o.Logger = slog.New(slog.NewTextHandler(log, nil))
		}
	}
	c.start(c.names...)
	c.awaitPlaced("n1")
	c.stop("n3")
	var since time.Time
	eventually(t, "the status says since when n3 is away", func() bool {
		for _, n := range c.status("n1").Nodes {
			if n.Name == "n3" {
				since = n.Away
			}
		}
		return !since.IsZero()
	})
	says := func(text string) func() bool {
		return func() bool { return log.last(`node=n3 `, "msg=\"node is ") == text }
	}
	eventually(t, "n1 says so", says("away"))
	for range 3 {
		broker.LookForAway(c.node("n1"))
	}
	c.start("n3")
	eventually(t, "n3 is back", says("back"))
	// On a slow machine a node may seem to be away at other times as well.
	for _, name := range []string{"n2", "n3"} {
		eventually(t, name+" is said to be back as often as away", func() bool {
			return log.count(`msg="node is away" node=`+name) == log.count(`msg="node is back" node=`+name)
		})
	}
}

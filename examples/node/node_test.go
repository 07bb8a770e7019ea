//go:build interop

package node_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
)

func script(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "node", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("node %v: %v (did you run npm ci in examples/node?)\n%s", args, err, out)
	}
	return string(out)
}

func TestTransactLosesNone(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { script(t, "transact.mjs", l.URL(), "visits", "2") })
	}
	wg.Wait()
	if out := script(t, "transact.mjs", l.URL(), "visits", "1"); out != "visits 7\n" {
		t.Errorf("it says %q", out)
	}
}

func TestFollowOfAPartitionThatDoesNotExist(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	out, err := exec.CommandContext(t.Context(), "node", "follow.mjs", l.URL(), "9").CombinedOutput()
	if want := "partition 9 does not exist: this cluster has"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("it ended with %v and says %q", err, out)
	}
}

func TestWithoutANode(t *testing.T) {
	for _, args := range [][]string{{"follow.mjs", "nats://127.0.0.1:1", "0"}, {"transact.mjs", "nats://127.0.0.1:1", "visits", "1"}} {
		out, err := exec.CommandContext(t.Context(), "node", args...).CombinedOutput()
		want := "no connection to nats://127.0.0.1:1: "
		if err == nil || !strings.HasPrefix(string(out), want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s ended with %v and says %q", args[0], err, out)
		}
	}
}

func TestFollowPrintsAll(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	want, first := "", ""
	for i := range 300 { // more than one read returns
		if _, err := c.Append(t.Context(), &client.Request{Payload: fmt.Append(nil, i), Kind: "n"}); err != nil {
			t.Fatal(err)
		}
		want += fmt.Sprintf("%d n %d\n", i+1, i)
		if i == 2 {
			first = want
		}
	}
	if out := script(t, "follow.mjs", l.URL(), "0", "3"); out != first {
		t.Errorf("asked for 3 it printed %q", out)
	}
	if out := script(t, "follow.mjs", l.URL(), "0", "300"); out != want {
		t.Errorf("it printed %q", out)
	}
}

// A request or an answer may be lost with a connection; the follower reads
// again.
func TestFollowReadsAgainAfterALoss(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	if _, err := c.Append(t.Context(), &client.Request{Payload: []byte("a"), Kind: "n"}); err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]cantustest.Fault{"request": cantustest.Drop(), "end": cantustest.LosePart(2), "answer": cantustest.LosePart(1)} {
		l.FailNext(1, cantustest.Read, fault)
		if out := script(t, "follow.mjs", l.URL(), "0", "1"); out != "1 n a\n" {
			t.Errorf("%s lost: it printed %q", name, out)
		}
	}
}

// Wrong arguments end a script before it connects: a counter must not become
// "NaN".
func TestWrongArgumentsGetTheUsage(t *testing.T) {
	for _, args := range [][]string{
		{"transact.mjs"}, {"transact.mjs", nobody, "visits"}, {"transact.mjs", nobody, "visits", "x"}, {"transact.mjs", nobody, "visits", "1", "2"},
		{"follow.mjs"}, {"follow.mjs", nobody}, {"follow.mjs", nobody, "x"}, {"follow.mjs", nobody, "0", "x"},
	} {
		out, err := exec.CommandContext(t.Context(), "node", args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.HasPrefix(string(out), "usage: node "+args[0]) {
			t.Errorf("node %q: %v\n%s", args, err, out)
		}
	}
}

const nobody = "nats://127.0.0.1:1"

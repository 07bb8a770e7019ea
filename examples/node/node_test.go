//go:build interop

package node_test

import (
	"fmt"
	"os/exec"
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

func TestFollowPrintsAll(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	want, first := "", ""
	for i := range 300 { // more than one read gives
		if _, err := c.Append(t.Context(), &client.Tx{Payload: fmt.Append(nil, i), Kind: "n"}); err != nil {
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

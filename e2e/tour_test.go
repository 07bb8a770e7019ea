//go:build unix

package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// examples/tour.sh goes from three nodes to a restored one in at most 30 lines.
func TestTour(t *testing.T) {
	testkit.NotShort(t, "it starts several processes or nodes")
	testkit.Parallel(t)
	script, err := filepath.Abs("../examples/tour.sh")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n > 30 {
		t.Errorf("the script has %d lines", n)
	}
	s := newNewcomer(t, "TMPDIR="+t.TempDir())
	out, status := s.run(fmt.Sprintf("sh %s %d", script, tourPorts(t)))
	if status != 0 {
		t.Fatalf("status %d:\n%s", status, out)
	}
	for _, want := range []string{
		"partition 0: restored up to txid 2", "while three nodes run\n", "while two nodes run\n", "if node n4 fails: all partitions stop",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// tourPorts returns a port behind which those of the script are free. They are
// below those that the system gives away.
func tourPorts(t *testing.T) int {
	t.Helper()
	const used = 14
	for range 100 {
		base := 10000 + rand.IntN(20000)
		free := true
		for i := 1; i <= used && free; i++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+i))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

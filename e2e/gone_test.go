package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDirectoryThatGoesAway deletes or moves a node's data directory while it
// runs. The node still stops on a signal, and acknowledges nothing that goes to
// deleted files.
func TestDirectoryThatGoesAway(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(dir string) error{
		"deleted": os.RemoveAll,
		"moved":   func(dir string) error { return os.Rename(dir, dir+"-moved") },
	} {
		for _, used := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, used after: %v", name, used), func(t *testing.T) {
				t.Parallel()
				n := startNode(t, filepath.Join(t.TempDir(), "data"), "--partitions", "1")
				c := dial(t, n.url)
				for i := range 20 {
					mustAppend(t, c, 0, fmt.Sprintf("%d: %s", i, strings.Repeat("x", 2000)))
				}
				if err := away(n.dir); err != nil {
					t.Fatal(err)
				}
				if used {
					r, err := c.Append(t.Context(), "cantus.append.0", []byte("after"))
					if name == "deleted" && err == nil && r.Error == nil {
						t.Errorf("acknowledged into a deleted directory: %+v", r)
					}
				}
				p := n.unready()
				_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
				select {
				case <-p.done:
				case <-time.After(patience):
					t.Fatalf("not ended %v after SIGTERM\n%s", patience, p.stderr)
				}
				if text := p.stderr.String(); strings.Contains(text, "goroutine ") {
					t.Errorf("it dies of\n%s", text)
				}
			})
		}
	}
}

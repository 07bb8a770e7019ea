//go:build fulldisk && linux

package e2e_test

import (
	"path/filepath"
	"testing"
)

// TestFullDiskByItself has a standalone node fill a small file system, with a
// small reserve. Once it has answered storage_full it must start again, after a
// stop and after a kill, and continue when there is space.
func TestFullDiskByItself(t *testing.T) {
	for _, reserve := range []string{"1MiB", "64MiB"} {
		t.Run(reserve, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, "tmpfs", "200M")
			n := startNode(t, filepath.Join(d.path, "data"), "--partitions", "1", "--reserve", reserve)
			acked := uint64(0)
			for round := range 4 {
				c := dial(t, n.url)
				w := startDiskWriter(t, c, 40_000, acked)
				w.await(t, n, "storage_full", func() bool { return w.full.Load() > 3 })
				close(w.stop)
				if err := <-w.done; err != nil {
					t.Fatal(err)
				}
				acked = w.acked.Load()
				t.Logf("round %d: %d acknowledged, %d KiB free", round, acked, d.free()>>10)
				if round%2 == 0 {
					n.kill()
				} else if err := n.stop(); err != nil {
					t.Fatal(err)
				}
				t.Logf("stopped: %d KiB free", d.free()>>10)
				if err := n.start(); err != nil {
					t.Fatalf("round %d, %d KiB free: %v", round, d.free()>>10, err)
				}
				c = dial(t, n.url)
				if info := mustInfo(t, c, 0); info.HighWaterMark < acked {
					t.Fatalf("it ends at %d, %d were acknowledged", info.HighWaterMark, acked)
				}
				if got, _, _, err := c.Read(t.Context(), 0, map[string]any{"from": 1}); err != nil || len(got) == 0 {
					t.Fatalf("read on a full disk: %d, %v", len(got), err)
				}
			}
		})
	}
}

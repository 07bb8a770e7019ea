//go:build powercut && linux

package wal_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/internal/powercut"
)

var rounds = flag.Int("rounds", 10, "how often the power fails")

// TestNothingAcknowledgedIsLostWhenThePowerFails cuts the power of a file
// system of its own under load. It needs root and a loop device:
//
//	go test -tags powercut -run PowerFails ./wal -rounds 30
func TestNothingAcknowledgedIsLostWhenThePowerFails(t *testing.T) {
	disk := powercut.New(t, "1G")
	dir := filepath.Join(disk.Mount, "data")
	r := chance(t)
	total := uint64(0)
	for round := range *rounds {
		cmd := child("append", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 1 + r.IntN(4_000)
		if r.IntN(3) == 0 {
			lines = 1 + r.IntN(5) // just founded, or just opened
		}
		// A sync during the power cut may return nil here, where a real one
		// would not return: only what was acknowledged before counts.
		acked, _ := acks(t, out, lines, disk.Cut)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		disk.Return()
		mustHold(t, dir, acked)
		sum := uint64(0)
		for _, last := range acked {
			sum += last
		}
		t.Logf("round %d: %d acknowledged, %v", round, sum, acked)
		if total = max(total, sum); total > 60_000 || r.IntN(4) == 0 { // the disk is small
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			total = 0
		}
	}
}

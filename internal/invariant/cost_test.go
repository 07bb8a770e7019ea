//go:build !enable_antithesis_sdk

package invariant_test

import (
	"testing"

	"github.com/cantuslog/cantus/internal/invariant"
)

func TestACheckThatPassesAllocatesNothing(t *testing.T) {
	have := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		have++
		invariant.TxidsDense.Check(have > 0, have, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCheck(b *testing.B) {
	for have := uint64(1); b.Loop(); have++ {
		invariant.TxidsDense.Check(have > 0, have, 1)
	}
}

package broker

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/raftstore"
)

// The log says why leadership has ended in words, not by the error of a
// package.
func TestWhyLeadershipHasEnded(t *testing.T) {
	got := endedBecause(t.Context(), fmt.Errorf("%w: leadership lost", raftstore.ErrNotLeader))
	if !strings.Contains(got, "majority") || strings.Contains(got, "raftstore") {
		t.Errorf("%q", got)
	}
}

package e2e_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/internal/workload"
)

// record has every client that is dialed from now on recorded, until checkSame
// has the judge decide. window is how long the cluster remembers message ids,
// and locks how many locks it tracks, 0 as many as it does if it is not told.
func (c *cluster) record(partitions, replicas int, window time.Duration, locks int) {
	c.recorder = workload.NewRecorder(judge.Header{
		Partitions: partitions, Replicas: replicas, AllWriters: true, MessageIDWindow: int64(window), Locks: locks, ClockSkew: int64(c.skew),
	})
}

// judge writes the history of the clients into a file and has the program check
// it. If anything is wrong, the file stays.
func (c *cluster) judge(t *testing.T) {
	t.Helper()
	file, err := os.CreateTemp(os.Getenv("CANTUS_E2E_LOGS"), strings.ReplaceAll(t.Name(), "/", "-")+"-*.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	path := file.Name()
	if err := judge.Encode(file, c.recorder.History()); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := runProgram(t, checker, "check", path)
	if code != 0 {
		t.Fatalf("cantus check %s: exit %d\n%s%s", path, code, stdout, stderr)
	}
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
	t.Logf("cantus check: %s", strings.TrimSpace(stdout))
}

package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	mixedFaults = append(mixedFaults, (*faulty).runOutOfFiles, (*faulty).runOutOfMemory)
}

// limitOne gives a node's process a limit for a while. It may end because of
// that, also later.
func (f *faulty) limitOne(n *node, what string, resource int, limit uint64) (string, error) {
	pid := n.running().cmd.Process.Pid
	var before unix.Rlimit
	if err := unix.Prlimit(pid, resource, nil, &before); err != nil {
		return what, err
	}
	if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: min(limit, before.Max), Max: before.Max}, nil); err != nil {
		return what, err
	}
	ended := n.running().done
	select {
	case <-time.After(500*time.Millisecond + time.Duration(f.Int64N(int64(3*time.Second)))):
	case <-ended:
	case <-f.t.Context().Done():
		return what, f.t.Context().Err()
	}
	if err := unix.Prlimit(pid, resource, &before, nil); err != nil && !errors.Is(err, unix.ESRCH) {
		return what, err
	}
	f.limited = append(f.limited, n)
	return what, f.awaitReady(f.t.Context(), f.watcher)
}

// runOutOfFiles leaves a node no descriptor for one more file or connection.
func (f *faulty) runOutOfFiles() (string, error) {
	n := f.anyNode()
	what := n.name + " had no descriptors left"
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.running().cmd.Process.Pid))
	if err != nil {
		return what, err
	}
	return f.limitOne(n, what, unix.RLIMIT_NOFILE, uint64(len(open)))
}

// runOutOfMemory leaves a node less address space than it has.
func (f *faulty) runOutOfMemory() (string, error) {
	n := f.anyNode()
	return f.limitOne(n, n.name+" had no memory left", unix.RLIMIT_AS, 1<<20)
}

//go:build fulldisk && linux

package e2e_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// mustEnd returns the output of a process that ends by itself.
func mustEnd(t *testing.T, p *process) string {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("not ended after %v\n%s", patience, p.stderr)
	}
	mustNotTrace(t, p)
	return p.stderr.String()
}

func mustNotTrace(t *testing.T, p *process) {
	t.Helper()
	for _, word := range []string{"goroutine ", "SIGBUS", "panic:", "fatal error"} {
		if p.stderr.has(word) {
			select { // so that the trace is whole
			case <-p.done:
			case <-time.After(patience):
			}
			t.Fatalf("it dies of a %q:\n%s", word, p.stderr)
		}
	}
}

// writer appends continuously, and counts what is acknowledged.
type diskWriter struct {
	acked atomic.Uint64
	full  atomic.Uint64 // refused as storage_full
	stop  chan struct{}
	done  chan error
}

// startDiskWriter starts a writer to a partition that has acked transactions.
func startDiskWriter(t *testing.T, c *workload.Client, size int, acked uint64) *diskWriter {
	w := &diskWriter{stop: make(chan struct{}), done: make(chan error, 1)}
	w.acked.Store(acked)
	payload := []byte(strings.Repeat("x", size))
	go func() {
		for i := 0; ; i++ {
			select {
			case <-w.stop:
				w.done <- nil
				return
			default:
			}
			r, err := c.Append(t.Context(), "cantus.append.0", payload)
			switch {
			case errors.Is(err, nats.ErrNoResponders): // nobody leads at the moment
			case err != nil: // the node is gone
				w.done <- err
				return
			case r.Error == nil:
				if r.Txid != w.acked.Add(1) {
					w.done <- fmt.Errorf("txid %d is number %d", r.Txid, w.acked.Load())
					return
				}
			case r.Error.Reason == "storage_full":
				w.full.Add(1)
			case r.Error.Reason != "unavailable":
				w.done <- fmt.Errorf("%+v", r.Error)
				return
			}
		}
	}()
	return w
}

func (w *diskWriter) await(t *testing.T, n *node, what string, done func() bool) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("%d acknowledged, %d times full\n%s", w.acked.Load(), w.full.Load(), n.running().stderr)
		}
	}()
	testkit.Until(t, what, func() bool {
		mustNotTrace(t, n.running())
		select {
		case err := <-w.done:
			t.Fatalf("%s: the writer has ended: %v", what, err)
		default:
		}
		return done()
	})
}

// TestFullDisk fills a node's file system to the last byte, again and again,
// under load: the node answers storage_full, still serves reads, and continues
// when there is space. A start on a full disk ends with one line.
func TestFullDisk(t *testing.T) {
	for _, size := range []int{100, 40_000} {
		kind := map[int]string{100: "tmpfs", 40_000: "ext4"}[size]
		if testkit.Long() {
			kind = [...]string{"tmpfs", "ext4"}[rand.IntN(2)]
		}
		t.Run(fmt.Sprintf("%d bytes on %s", size, kind), func(t *testing.T) {
			// The entries of all rounds fit on it, however quickly they are written.
			d := newDisk(t, kind, map[int]string{100: "768M", 40_000: "2G"}[size])
			n := startNode(t, filepath.Join(d.path, "data"), "--partitions", "1", "--reserve", "64MiB")
			c := dial(t, n.url)
			w := startDiskWriter(t, c, size, 0)
			rounds := 4
			if testkit.Long() {
				rounds = 40
			}
			for range rounds {
				some := w.acked.Load() + 1 + rand.Uint64N(4_000_000/uint64(size+1_000))
				w.await(t, n, "appends", func() bool { return w.acked.Load() >= some })
				d.fill(0)
				full := w.full.Load()
				w.await(t, n, "storage_full", func() bool { return w.full.Load() > full+3 })
				if got, _, _, err := c.Read(t.Context(), 0, map[string]any{"from": 1}); err != nil || len(got) == 0 {
					t.Fatalf("read on a full disk: %d, %v", len(got), err)
				}
				d.empty()
			}
			d.fill(0)
			full := w.full.Load()
			w.await(t, n, "storage_full", func() bool { return w.full.Load() > full })
			close(w.stop)
			if err := <-w.done; err != nil {
				t.Fatal(err)
			}
			n.kill()
			for range 2 {
				if err := n.launch(); err != nil {
					t.Fatal(err)
				}
				if text := mustEnd(t, n.running()); !strings.Contains(text, "are needed") || strings.Contains(text, "damaged") || strings.Count(text, "\n") > 3 {
					t.Fatalf("a start on a full disk says\n%s", text)
				}
			}
			d.empty()
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			c = dial(t, n.url)
			if info := mustInfo(t, c, 0); info.HighWaterMark < w.acked.Load() {
				t.Fatalf("it ends at %d, %d were acknowledged", info.HighWaterMark, w.acked.Load())
			}
			// Told to stop on a full disk, it stops.
			d.fill(0)
			_ = n.stop()
			mustEnd(t, n.running())
			d.empty()
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			if info := mustInfo(t, dial(t, n.url), 0); info.HighWaterMark < w.acked.Load() {
				t.Fatalf("it ends at %d, %d were acknowledged", info.HighWaterMark, w.acked.Load())
			}
		})
	}
}

// TestFullDiskOfFiles uses up all files of a file system that has space: a
// start says so, whether the directory is new or not, and does not report
// damage.
func TestFullDiskOfFiles(t *testing.T) {
	d := newDisk(t, "tmpfs", "768M,nr_inodes=200")
	fill := func(leave int) (taken []string) {
		t.Helper()
		var names []string
		for i := 0; ; i++ {
			name := filepath.Join(d.path, fmt.Sprint("somebody-elses-", i))
			err := os.WriteFile(name, nil, 0o600)
			if errors.Is(err, unix.ENOSPC) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		for _, name := range names[:leave] {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		return names[leave:]
	}
	free := func(names []string) {
		t.Helper()
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := newNode(t, "", filepath.Join(d.path, "data"), "--partitions", "1")
	old := false
	for range 2 {
		for leave := range 40 {
			names := fill(leave)
			if err := n.launch(); err != nil {
				t.Fatal(err)
			}
			p := n.running()
			select {
			case <-p.lines: // it serves: this many are enough
				n.kill()
			case <-p.done:
				if text := mustEnd(t, p); !strings.Contains(text, "no space left") || !strings.Contains(text, "files") || strings.Contains(text, "damaged") {
					t.Fatalf("%d files are left, directory is old: %v\n%s", leave, old, text)
				}
			case <-time.After(patience):
				t.Fatalf("neither ready nor ended\n%s", p.stderr)
			}
			free(names)
			if p.cmd.ProcessState == nil || p.cmd.ProcessState.ExitCode() < 0 {
				break
			}
		}
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		old = true
	}
}

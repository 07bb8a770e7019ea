package wal_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// envChild turns the test binary into a child that does what the variable names
// with the directory in its argument.
const envChild = "CANTUS_WAL_CHILD"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(envChild) {
	case "":
		os.Exit(m.Run())
	case "append":
		err = appendForever(os.Args[1])
	case "open":
		_, err = wal.Open(os.Args[1], small())
	}
	fmt.Println(err)
	os.Exit(1)
}

func child(what, dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), envChild+"="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

const (
	crashGroups = 4
	crashKept   = 500 // entries that group 0 keeps; the others keep all
)

func crashing() wal.Options {
	opts := small()
	opts.CheckpointBytes, opts.SegmentSize = 256<<10, 1<<20
	return opts
}

// appendForever appends to several logs at once, and prints each
// acknowledgement at once.
func appendForever(dir string) error {
	s, err := wal.Open(dir, crashing())
	if err != nil {
		return err
	}
	errs := make([]error, crashGroups)
	var writers sync.WaitGroup
	for group := range crashGroups {
		writers.Go(func() {
			l := s.Log(uint32(group))
			for errs[group] == nil {
				entries := crashEntries(l.LastIndex()+1, 1+rand.IntN(4))
				if errs[group] = l.Append(entries...); errs[group] != nil {
					return
				}
				last := entries[len(entries)-1].Index
				fmt.Println(group, last)
				if group == 0 && last > crashKept && rand.IntN(50) == 0 {
					errs[group] = l.TrimHead(last - crashKept)
				}
			}
		})
	}
	writers.Wait()
	return errors.Join(errs...)
}

// crashEntries are determined by their indexes; some are large.
func crashEntries(index uint64, n int) []wal.Entry {
	var entries []wal.Entry
	for i := index; i < index+uint64(n); i++ {
		size := 100 + 37*(i%30)
		if i%100 == 7 {
			size = 40_000
		}
		entries = append(entries, wal.Entry{Index: i, Data: batch(2*i-1, 2, strings.Repeat("x", int(size)))})
	}
	return entries
}

// acks reads a child's output, and calls enough once it has printed n lines. It
// returns the last index of each group, at that moment and in the end.
func acks(t *testing.T, out io.Reader, n int, enough func()) (then, last [crashGroups]uint64) {
	t.Helper()
	lines := bufio.NewScanner(out)
	for seen := 1; lines.Scan(); seen++ {
		var group, index uint64
		if _, err := fmt.Sscan(lines.Text(), &group, &index); err != nil {
			if seen < n {
				t.Fatalf("child says %q", lines.Text())
			}
			break // the line that it was writing when it was killed
		}
		last[group] = index
		if seen == n {
			then = last
			enough()
		}
	}
	_, _ = io.Copy(io.Discard, out)
	return then, last
}

// mustHold opens a crashed directory and compares it with what was
// acknowledged.
func mustHold(t *testing.T, dir string, acked [crashGroups]uint64) {
	t.Helper()
	s, err := wal.Open(dir, crashing())
	if err != nil {
		t.Fatal(err)
	}
	for group, want := range acked {
		l := s.Log(uint32(group))
		next := max(l.FirstIndex(), 1)
		if l.LastIndex() < want || next > 1 && (group != 0 || next+crashKept > l.LastIndex()+1) {
			t.Errorf("group %d holds %d to %d, %d was acknowledged", group, next, l.LastIndex(), want)
		}
		if r := wal.VerifyLog(l, wal.Base{Txid: 2 * (next - 1)}); r.Err != nil || r.LastTxid != 2*l.LastIndex() {
			t.Errorf("group %d to %d: %+v", group, l.LastIndex(), r)
		}
		for e, err := range l.Entries(next, l.LastIndex()) {
			if err != nil || !sameEntry(e, crashEntries(next, 1)[0]) {
				t.Fatalf("group %d: entry %d is not as it was: %v", group, next, err)
			}
			next++
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNothingAcknowledgedIsLostWhenTheProcessIsKilled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	r := chance(t)
	for range testkit.Sized(2, 8, 8) {
		cmd := child("append", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, acked := acks(t, out, 1+r.IntN(400), func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // killed
		mustHold(t, dir, acked)
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
)

// tests runs all tests, and then atEnd.
type tests struct{ m *testing.M }

// atEnd are called after all tests.
var atEnd []func() error

func (t tests) Run() int {
	code := t.m.Run()
	for _, end := range atEnd {
		if err := end(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return code
}

func TestMain(m *testing.M) {
	testkit.Main(tests{m})
}

// soon returns a context that ends a test that would hang.
var soon = testkit.Soon

// do runs a command line.
func do(t *testing.T, l *cantustest.Log, db string, command string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(soon(t), append([]string{"--nats", l.URL(), "--db", db}, strings.Fields(command)...), &out)
	return out.String(), err
}

func TestCommands(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	db := filepath.Join(t.TempDir(), "bank.db")
	for _, step := range []struct {
		command string
		err     error
	}{
		{"open alice 100", nil},
		{"open alice 5", errExists},
		{"open bob 0", nil},
		{"open eve -1", errAmount},
		{"transfer alice bob 30 r1", nil},
		{"transfer alice bob 30 r1", nil}, // once
		{"transfer alice bob 71 r2", errInsufficient},
		{"transfer alice bob 0 r3", errAmount},
		{"transfer alice alice 1 r3", errSelf},
		{"transfer alice carol 1 r3", errClosed},
		{"transfer carol alice 1 r3", errClosed},
		{"transfer bob alice 10", nil},
		{"close alice", errNotEmpty},
		{"close carol", errClosed},
		{"transfer alice bob 80 r4", nil},
		{"close alice", nil},
		{"close alice", errClosed},
		{"transfer bob alice 1 r5", errClosed},
		{"rebuild", nil},
		{"open", errUsage}, {"open a b", errUsage}, {"frobnicate", errUsage}, {"", errUsage}, {"load --workers 0", errUsage},
	} {
		if _, err := do(t, l, db, step.command); !errors.Is(err, step.err) {
			t.Errorf("%s: %v, want %v", step.command, err, step.err)
		}
	}
	const want = "account      balance\nalice              0 closed\nbob              100 ████████████████████████████████████████\nall              100 at txid 6, 0 behind\n"
	for _, file := range []string{db, filepath.Join(t.TempDir(), "new.db")} { // the second one is rebuilt
		if out, err := do(t, l, file, "show"); err != nil || out != want {
			t.Errorf("show: %v\n%s\nwant\n%s", err, out, want)
		}
	}
}

// screen is what watch prints on.
type screen struct {
	mu     sync.Mutex
	drawn  string
	frames chan string
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn += string(b); strings.HasSuffix(s.drawn, "behind\n") {
		s.frames <- s.drawn
		s.drawn = ""
	}
	return len(b), nil
}

func TestWatchDrawsWhatOthersDo(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	dir := t.TempDir()
	s := &screen{frames: make(chan string, 100)}
	ctx, stop := context.WithCancel(soon(t))
	watched := make(chan error)
	go func() {
		watched <- run(ctx, []string{"--nats", l.URL(), "--db", filepath.Join(dir, "watcher.db"), "watch"}, s)
	}()
	if first := <-s.frames; !strings.HasPrefix(first, clearScreen) || !strings.Contains(first, "at txid 0") {
		t.Errorf("the first frame is %q", first)
	}
	for _, command := range []string{"open alice 100", "open bob 0", "transfer alice bob 40 r"} {
		if _, err := do(t, l, filepath.Join(dir, "writer.db"), command); err != nil {
			t.Fatal(err)
		}
	}
	for f := range s.frames {
		if strings.Contains(f, "at txid 3") {
			if !strings.Contains(f, "alice             60") || !strings.Contains(f, "bob               40") {
				t.Errorf("drawn %s", f)
			}
			break
		}
	}
	stop()
	if err := <-watched; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The bank ignores other transactions in its partition.
func TestOthersShareThePartition(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	db := filepath.Join(t.TempDir(), "bank.db")
	c := l.NewClient(t, client.Options{})
	other := func() {
		for _, kind := range []string{"deposit", "", "open"} {
			if _, err := c.Append(soon(t), &client.Request{Payload: []byte(`{"amount":100}`), Kind: kind, AppendLocks: []string{"account.42"}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	other()
	for _, command := range []string{"open alice 100", "open 42 0", "transfer alice 42 30"} {
		if _, err := do(t, l, db, command); err != nil {
			t.Errorf("%s: %v", command, err)
		}
		other()
	}
	out, err := do(t, l, db, "show")
	if err != nil || !strings.Contains(out, "at txid 15, 0 behind") || !strings.Contains(out, "alice             70") {
		t.Errorf("show: %v\n%s", err, out)
	}
}

// A transaction of the bank that cannot be applied fails every command, with an
// error that names it.
func TestACommandEndsAtWhatCannotBeApplied(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	if _, err := l.NewClient(t, client.Options{}).Append(soon(t), &client.Request{Payload: []byte("?"), Kind: kindOpen}); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"show", "open alice 100", "watch"} {
		_, err := do(t, l, filepath.Join(t.TempDir(), "bank.db"), command)
		if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "txid 1: ") {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// Many concurrent transfers on one instance leave the books correct.
func TestLoadKeepsTheBooks(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	db := filepath.Join(t.TempDir(), "bank.db")
	if err := run(soon(t), []string{"--nats", l.URL(), "--db", db, "load", "--accounts", "5", "--transfers", "200"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	txs, err := l.Transactions(soon(t), partition)
	if err != nil {
		t.Fatal(err)
	}
	checkBooks(t, txs, db, 5, 100, map[string]int{"load": 200})
}

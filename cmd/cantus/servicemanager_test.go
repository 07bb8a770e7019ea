package main

import (
	"context"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

type managerKey struct{}

// manager is a script as a service manager: what its processes tell it.
type manager struct{ messages <-chan string }

// cmdManager makes the script a service manager, which expects signs of life
// within two seconds.
func cmdManager(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: manager")
	}
	socket := ts.MkAbs("manager.sock")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	ts.Check(err)
	ts.Defer(func() { l.Close() }) // which ends the reader
	told := make(chan string, 100)
	go func() {
		defer close(told)
		for b := make([]byte, 4096); ; {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			select {
			case told <- strings.ReplaceAll(string(b[:n]), "\n", ";"):
			default: // the script expects no more
			}
		}
	}()
	ts.Setenv("NOTIFY_SOCKET", socket)
	ts.Setenv("WATCHDOG_USEC", "2000000")
	ts.Value(managerKey{}).(*manager).messages = told
}

// cmdExpect waits for what a process tells the service manager next. Signs of
// life count only where they are expected.
func cmdExpect(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: expect PATTERN")
	}
	want := regexp.MustCompile("^" + args[0])
	late := time.After(patience(ts))
	for {
		select {
		case got := <-ts.Value(managerKey{}).(*manager).messages:
			if want.MatchString(got) {
				return
			}
			if got != "WATCHDOG=1" {
				ts.Fatalf("the service manager was told %q, want %s", got, want)
			}
		case <-late:
			ts.Fatalf("the service manager was not told %s", want)
		}
	}
}

// There is no sign of life while the node does not answer.
func TestWatchdog(t *testing.T) {
	told, asked, answer := make(chan string), make(chan bool), make(chan error)
	m := serviceManager{
		log: slog.New(slog.DiscardHandler), within: time.Millisecond,
		notify: func(_ bool, state string) (bool, error) {
			told <- state
			return true, nil
		},
	}
	stop := m.watch(func(ctx context.Context) error {
		asked <- true
		select {
		case err := <-answer:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	for range 3 {
		select {
		case <-asked:
		case state := <-told:
			t.Fatalf("%q was told before the node was asked", state)
		}
		answer <- nil
		if state := <-told; state != "WATCHDOG=1" {
			t.Errorf("%q was told", state)
		}
	}
	<-asked
	stop() // which does not wait for an answer
	select {
	case state := <-told:
		t.Errorf("%q was told at the end", state)
	default:
	}
	(serviceManager{}).watch(nil)() // nobody expects signs of life
}

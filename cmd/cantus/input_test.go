package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
)

// An append that waits for its payload ends when it is interrupted, although
// its input stays open and empty.
func TestAnInterruptEndsTheWaitForAPayload(t *testing.T) {
	in, keepOpen, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer keepOpen.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	var errOut bytes.Buffer
	p := &program{in: in, out: &errOut, errOut: &errOut}
	if status := p.run(ctx, []string{"append", "0"}); status != exitFailed {
		t.Errorf("exit status %d", status)
	}
	if said := errOut.String(); !strings.Contains(said, "nothing was appended") {
		t.Errorf("it says %q", said)
	}
}

// Only on a terminal the user is told how to end the payload. The null device
// is a character device too.
func TestTheNullDeviceIsNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) {
		t.Error("it is taken for a terminal")
	}
}

// Each command line lacks something. The message says what, and shows what it
// looks like.
func TestWhatIsMissingIsNamed(t *testing.T) {
	for line, want := range map[string]string{
		"cluster balance --wait":   "--wait needs a value, such as --wait=5s",
		"status --timeout":         "--timeout needs a value, such as --timeout=5s",
		"append 0 --hwm":           "--hwm needs a value, such as --hwm=812",
		"append 0 --write":         "--write needs a value: --write=LOCK",
		"serve --log-level":        "--log-level needs a value: one of debug, info, warn, error",
		"serve --data":             "--data needs a value: --data=DIR",
		"serve --partitions":       "--partitions needs a value: --partitions=N",
		"bench append --rate":      "--rate needs a value: --rate=N",
		"read":                     `P is missing: Partition to read, from 0; "cantus read --help" explains it`,
		"cluster add":              `NODE is missing: The node's name, as it was started with --name; "cantus cluster add --help" explains it`,
		"cluster":                  "name a command: status, add, remove, drain, undrain, promote, transfer, move, balance, rebuild;",
		"cluster balance --wait 5": `"5" is not a duration: a number and a unit, such as 500ms, 5s or 2m`,
	} {
		var errOut bytes.Buffer
		p := &program{in: strings.NewReader(""), out: &errOut, errOut: &errOut}
		if status := p.run(t.Context(), strings.Fields(line)); status != exitUsage {
			t.Errorf("cantus %s: exit status %d", line, status)
		}
		if said := errOut.String(); !strings.Contains(said, want) {
			t.Errorf("cantus %s: it says\n%swant %s", line, said, want)
		}
	}
}

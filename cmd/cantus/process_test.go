package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

type (
	processesKey struct{}
	deadlineKey  struct{}
)

// processes are a script's background commands by name.
type processes map[string]*process

// process is a background command whose output can be awaited.
type process struct {
	cmd    *exec.Cmd
	stdout output
	stderr output
	ended  chan struct{}
	err    error // of Wait, once ended is closed
}

// output collects what a process prints, and wakes the goroutines that wait for
// it.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{} // closed and replaced as text grows
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.grown != nil {
		close(o.grown)
		o.grown = nil
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// look returns the text so far, and a channel that is closed when there is
// more.
func (o *output) look() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.grown == nil {
		o.grown = make(chan struct{})
	}
	return o.text.String(), o.grown
}

// await waits until the output has text in a number of lines, and returns the
// last of them; false if the process ends without it.
func (p *process) await(o *output, text string, times int) (string, bool) {
	for ended := false; ; {
		all, grown := o.look()
		scanner := bufio.NewScanner(strings.NewReader(all[:strings.LastIndexByte(all, '\n')+1]))
		for found := 0; scanner.Scan(); {
			if strings.Contains(scanner.Text(), text) {
				if found++; found == times {
					return scanner.Text(), true
				}
			}
		}
		if ended {
			return "", false
		}
		select {
		case <-grown:
		case <-p.ended:
			ended = true // and look once more
		}
	}
}

// passedOn names the script's variables that a background command gets.
var passedOn = []string{
	"PATH", "HOME", "TMPDIR", "WORK", "GOCOVERDIR", "GODEBUG",
	"CANTUS_SERVER", "CANTUS_NAME", "CANTUS_CONFIG", "NOTIFY_SOCKET", "WATCHDOG_USEC",
}

func start(ts *testscript.TestScript, name string, args ...string) *process {
	all := ts.Value(processesKey{}).(processes)
	if old := all[name]; old != nil {
		select {
		case <-old.ended:
		default:
			ts.Fatalf("%s is running", name)
		}
	}
	// testscript puts its commands on the script's PATH.
	var program string
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		file := filepath.Join(dir, args[0])
		if info, err := os.Stat(file); err == nil && !info.IsDir() {
			program = file
			break
		}
	}
	if program == "" {
		ts.Fatalf("no program %s", args[0])
	}
	p := &process{cmd: exec.Command(program, args[1:]...), ended: make(chan struct{})}
	p.cmd.Dir = ts.MkAbs(".")
	for _, key := range passedOn {
		if value := ts.Getenv(key); value != "" {
			p.cmd.Env = append(p.cmd.Env, key+"="+value)
		}
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	ts.Check(p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	// A process that hangs is ended, and prints its goroutines, before the
	// test's time is over: after that nobody could see them.
	dump := time.AfterFunc(patience(ts), func() { p.cmd.Process.Signal(syscall.SIGQUIT) }) // it may have ended
	ts.Defer(func() {
		dump.Stop()
		p.cmd.Process.Kill() // it may have ended
		<-p.ended
	})
	all[name] = p
	return p
}

func patience(ts *testscript.TestScript) time.Duration {
	deadline, ok := ts.Value(deadlineKey{}).(time.Time)
	if !ok {
		return time.Hour
	}
	return time.Until(deadline) * 9 / 10
}

func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: serve NAME [flags]")
	}
	serve := append([]string{"cantus", "serve"}, args[1:]...)
	for _, flag := range []string{"--listen", "--http"} {
		if !slices.ContainsFunc(args, func(a string) bool { return a == flag || strings.HasPrefix(a, flag+"=") }) {
			serve = append(serve, flag+"=127.0.0.1:0")
		}
	}
	p := start(ts, args[0], serve...)
	line, ok := p.await(&p.stdout, "cantus: ready", 1)
	if !ok {
		ts.Fatalf("%s ended before it was ready: %v\n%s%s", args[0], p.err, &p.stdout, &p.stderr)
	}
	ts.Setenv("READY", line)
	for _, field := range strings.Fields(line) {
		if url, ok := strings.CutPrefix(field, "nats="); ok {
			ts.Setenv("CANTUS_SERVER", url)
			ts.Setenv("LISTEN", strings.TrimPrefix(url, "nats://"))
		}
		if url, ok := strings.CutPrefix(field, "http="); ok {
			ts.Setenv("HTTP", url)
		}
	}
}

func cmdFollow(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: follow NAME command args...")
	}
	start(ts, args[0], args[1:]...)
}

func named(ts *testscript.TestScript, name string) *process {
	p := ts.Value(processesKey{}).(processes)[name]
	if p == nil {
		ts.Fatalf("no command %s was started", name)
	}
	return p
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || args[1] != "HUP" {
		ts.Fatalf("usage: signal NAME HUP")
	}
	ts.Check(named(ts, args[0]).cmd.Process.Signal(syscall.SIGHUP))
}

func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 4 {
		ts.Fatalf("usage: await NAME text [stderr [times]]")
	}
	p := named(ts, args[0])
	o, times := &p.stdout, 1
	if len(args) >= 3 {
		o = &p.stderr
	}
	if len(args) == 4 {
		var err error
		times, err = strconv.Atoi(args[3])
		ts.Check(err)
	}
	if _, ok := p.await(o, args[1], times); !ok {
		ts.Fatalf("%s ended without printing %q:\n%s%s", args[0], args[1], &p.stdout, &p.stderr)
	}
}

func cmdStopped(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: stopped NAME status [signal]")
	}
	p := named(ts, args[0])
	if len(args) == 3 {
		signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL}
		ts.Check(p.cmd.Process.Signal(signals[args[2]]))
	}
	<-p.ended
	io.WriteString(ts.Stdout(), p.stdout.String()) // a buffer
	io.WriteString(ts.Stderr(), p.stderr.String()) // a buffer
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s exited with %s, want %s\n%s%s", args[0], got, args[1], &p.stdout, &p.stderr)
	}
}

func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command args...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit status %d, want %s", code, args[0])
	}
}

// cmdUntil runs a command until its standard output has a text.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] until text command args...")
	}
	for began := time.Now(); ; {
		if err := ts.Exec(args[1], args[2:]...); !neg {
			ts.Check(err)
		}
		if strings.Contains(ts.ReadFile("stdout"), args[0]) {
			return
		}
		if time.Since(began) > patience(ts) {
			ts.Fatalf("it has not printed %q", args[0])
		}
	}
}

// cmdScrape waits until the metrics of a command, or of a node, have a text.
func cmdScrape(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: scrape NAME text")
	}
	p := named(ts, args[0])
	_, url, node := strings.Cut(p.stdout.String(), " http=")
	if url = strings.TrimSpace(url) + "/metrics"; !node {
		line, ok := p.await(&p.stderr, "metrics on http://", 1)
		if !ok {
			ts.Fatalf("%s has no metrics", args[0])
		}
		_, url, _ = strings.Cut(line, "metrics on ")
	}
	for body := ""; !strings.Contains(body, args[1]); {
		select {
		case <-p.ended:
			ts.Fatalf("%s ended; its metrics were\n%s", args[0], body)
		case <-time.After(10 * time.Millisecond):
		}
		r, err := http.Get(url)
		ts.Check(err)
		all, err := io.ReadAll(r.Body)
		ts.Check(errors.Join(err, r.Body.Close()))
		body = string(all)
	}
}

func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	found, err := filepath.Glob(ts.MkAbs(args[0]))
	if err != nil || len(found) != 1 {
		ts.Fatalf("%s is %q: %v", args[0], found, err)
	}
	data := []byte(ts.ReadFile(found[0]))
	offset, err := strconv.Atoi(args[1])
	if err != nil || offset >= len(data) {
		ts.Fatalf("%s has %d bytes, none at %s", args[0], len(data), args[1])
	}
	data[offset] ^= 0x10
	ts.Check(os.WriteFile(found[0], data, 0o600))
}

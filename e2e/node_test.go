package e2e_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
)

// patience bounds how long tests wait for an event.
const patience = testkit.Patience

// program is the path of the binary under test. checker is that of this source
// tree, built once: usually the same.
var program, checker string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cantus-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	checker = filepath.Join(dir, "cantus")
	if out, err := exec.Command("go", "build", "-o", checker, "../cmd/cantus").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	if err := testkit.AtOnce(4); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if program = *underTest; program == "" {
		program = checker
	}
	return m.Run()
}

// node is a `cantus serve` process, which may be killed and started again.
type node struct {
	name string // in its cluster, "" for a node alone
	dir  string
	args []string
	// within is the command that runs the program in another network, if any.
	within []string

	mu sync.Mutex
	// ready is closed while the process serves; kill and stop replace it.
	ready   chan struct{}
	process *process
	// url is the address at which the last start served.
	url  string
	http string
}

// process is one run of the program.
type process struct {
	cmd    *exec.Cmd
	stderr *tail
	lines  chan string   // the lines of its standard output
	done   chan struct{} // closed when it has ended
	err    error         // what Wait said, once done is closed
}

// ended reports whether the process has ended.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// startNode serves dir until the test ends. Without a --listen among the args
// it takes a free port.
func startNode(tb testing.TB, dir string, args ...string) *node {
	tb.Helper()
	n := newNode(tb, "", dir, args...)
	if err := n.start(); err != nil {
		tb.Fatal(err)
	}
	return n
}

// newNode prepares a node, which is killed when the test ends.
func newNode(tb testing.TB, name, dir string, args ...string) *node {
	n := &node{name: name, dir: dir, args: args, ready: make(chan struct{})}
	tb.Cleanup(func() {
		n.kill()
		if tb.Failed() && n.process != nil {
			tb.Logf("the last log lines of node %s:\n%s", n.name, n.process.stderr)
		}
	})
	return n
}

var readyURL = regexp.MustCompile(`^cantus: ready.*?(?:nats|tls)://([^\s,;]+).*?(http://[^\s,;]+)?$`)

// start runs the program and returns when it says that it serves.
func (n *node) start() error {
	if err := n.launch(); err != nil {
		return err
	}
	return n.awaitReady()
}

// launch runs the program. It does not wait until it serves, which may depend
// on other nodes.
func (n *node) launch() error {
	line := append(slices.Clone(n.within), program)
	p, err := runCommand(exec.Command(line[0], append(line[1:], n.serveArgs()...)...))
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.process = p
	return nil
}

// running is the last run of the program.
func (n *node) running() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process
}

// awaitReady waits until the node that was launched serves.
func (n *node) awaitReady() error {
	p := n.running()
	select {
	case line := <-p.lines:
		found := readyURL.FindStringSubmatch(line)
		if found == nil {
			return fmt.Errorf("serve %s: not the ready line: %q\n%s", n.dir, line, p.stderr)
		}
		n.mu.Lock()
		n.url, n.http = "nats://"+found[1], found[2] // in plain, where the node allows that too
		close(n.ready)
		n.mu.Unlock()
		return nil
	case <-p.done:
		return fmt.Errorf("serve %s: %w\n%s", n.dir, p.err, p.stderr)
	case <-time.After(patience):
		return fmt.Errorf("serve %s: not ready after %v\n%s", n.dir, patience, p.stderr)
	}
}

func (n *node) serveArgs() []string {
	args := []string{"serve", "--data", n.dir, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"}
	return lastOfEach(append(args, n.args...))
}

// lastOfEach returns args with the last of each flag: one that takes a single
// value may be given only once, and a test's own value replaces the usual one.
func lastOfEach(args []string) []string {
	last := map[string]int{}
	for i, a := range args {
		name, _, _ := strings.Cut(a, "=")
		last[name] = i
	}
	var kept []string
	keep := true
	for i, a := range args {
		if name, _, _ := strings.Cut(a, "="); strings.HasPrefix(a, "--") {
			keep = last[name] == i
		}
		if keep {
			kept = append(kept, a)
		}
	}
	return kept
}

// serving is closed while the node serves.
func (n *node) serving() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

// unready must be called before the process is ended: whoever waits for the
// node to serve then waits for the next start.
func (n *node) unready() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.ready:
		n.ready = make(chan struct{})
	default:
	}
	return n.process
}

// kill ends the process like kill -9, and returns when it has ended.
func (n *node) kill() {
	if p := n.unready(); p != nil {
		p.kill()
	}
}

// pause stops the process where it is; its connections stay open.
func (n *node) pause() error { return n.running().cmd.Process.Signal(syscall.SIGSTOP) }

// resume has a paused process go on.
func (n *node) resume() error { return n.running().cmd.Process.Signal(syscall.SIGCONT) }

// stop ends the process like a supervisor, and returns how it ended.
func (n *node) stop() error {
	p := n.unready()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("SIGTERM: %w\n%s", p.err, p.stderr)
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("not stopped %v after SIGTERM\n%s", patience, p.stderr)
	}
}

func run(args ...string) (*process, error) { return runWith(nil, args...) }

// runWith starts the program with the given process attributes.
func runWith(attributes *syscall.SysProcAttr, args ...string) (*process, error) {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = attributes
	return runCommand(cmd)
}

func runCommand(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, stderr: &tail{}, lines: make(chan string, 16), done: make(chan struct{})}
	p.cmd.Stderr = p.stderr
	if dir := os.Getenv("CANTUS_E2E_LOGS"); dir != "" { // for whoever looks into a failure
		file, err := os.CreateTemp(dir, "*.log")
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(file, cmd.Args)
		p.cmd.Stderr = io.MultiWriter(p.stderr, file) // open as long as the tests run
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		for in := bufio.NewScanner(stdout); in.Scan(); {
			select {
			case p.lines <- in.Text():
			default: // nobody reads them any more
			}
		}
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// cantus runs the program to its end and returns its exit code and what it
// wrote to standard output and standard error.
func cantus(tb testing.TB, args ...string) (code int, stdout, stderr string) {
	tb.Helper()
	return runProgram(tb, program, args...)
}

func runProgram(tb testing.TB, path string, args ...string) (code int, stdout, stderr string) {
	tb.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(tb.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		tb.Fatalf("cantus %v: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// tail keeps the end of what is written to it, and all that follows the start
// of a Go trace: the goroutine that failed comes first there.
type tail struct {
	mu     sync.Mutex
	kept   []byte
	traces bool
}

func (t *tail) Write(b []byte) (int, error) {
	const most = 8 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b...)
	for _, start := range []string{"panic: ", "fatal error: ", "unexpected fault address"} {
		t.traces = t.traces || bytes.Contains(b, []byte(start))
	}
	if over := len(t.kept) - most; over > 0 && !t.traces {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(b), nil
}

// has reports whether a text is in what is kept.
func (t *tail) has(text string) bool { return strings.Contains(t.String(), text) }

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

// output is what a command has printed.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

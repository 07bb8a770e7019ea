package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// How long a server may take. A start includes recovery, which the startup
// workload measures.
const (
	startTimeout = 10 * time.Minute
	stopTimeout  = time.Minute
)

// server is a process of this executable that serves NATS clients on a loopback
// port, or the address of a server of --server.
type server struct {
	name    string
	url     string
	args    []string
	cmd     *exec.Cmd // nil for a server of --server
	began   time.Time
	ready   time.Duration
	address chan string // receives the address once
	output  *lastOutput
	ended   chan struct{} // closed when the process has ended
	err     error         // its error, set before
}

var natsURL = regexp.MustCompile(`nats://[^\s",]+`)

// launch starts this executable with args and does not wait for it.
func launch(name string, args ...string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own executable: %w", err)
	}
	s := &server{
		name: name, args: args, cmd: exec.Command(self, args...), output: &lastOutput{},
		address: make(chan string, 1), ended: make(chan struct{}), began: time.Now(),
	}
	s.cmd.Stderr = s.output
	endWithParent(s.cmd)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go s.follow(out)
	return s, nil
}

// await returns once the server has printed a line with its NATS address on
// standard output. If it does not, it is killed.
func (s *server) await(ctx context.Context) error {
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case s.url = <-s.address:
		s.ready = time.Since(s.began)
		return nil
	case <-s.ended:
		//nolint:errorlint // s.err may be nil
		return fmt.Errorf("%w %s ended before it was ready (%v): %s", ErrServer, s.name, s.err, s.output)
	case <-timeout.C:
		s.kill()
		return fmt.Errorf("%w %s was not ready after %v: %s", ErrServer, s.name, startTimeout, s.output)
	case <-ctx.Done():
		s.kill()
		return ctx.Err()
	}
}

// follow reads what the server prints until it ends.
func (s *server) follow(out io.Reader) {
	lines := bufio.NewScanner(out)
	for found := false; lines.Scan(); {
		if url := natsURL.FindString(lines.Text()); url != "" && !found {
			found = true
			s.address <- url
		}
	}
	s.err = s.cmd.Wait()
	close(s.ended)
}

func (s *server) usage() usage {
	if s.cmd == nil {
		return usage{}
	}
	return processUsage(s.cmd.Process.Pid)
}

// down reports whether the process has ended.
func (s *server) down() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// stop ends the process cleanly and waits for it.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(stopTimeout):
		s.kill()
		return fmt.Errorf("%w %s did not stop within %v and was killed: %s", ErrServer, s.name, stopTimeout, s.output)
	}
	if s.err != nil {
		return fmt.Errorf("%w %s: %w: %s", ErrServer, s.name, s.err, s.output)
	}
	return nil
}

// kill ends the process as a crash would, and waits for it.
func (s *server) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// lastOutput is a writer that keeps the end of what is written.
type lastOutput struct {
	mu   sync.Mutex
	text []byte
}

func (o *lastOutput) Write(p []byte) (int, error) {
	const most = 4 << 10
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	if extra := len(o.text) - most; extra > 0 {
		o.text = append(o.text[:0], o.text[extra:]...)
	}
	return len(p), nil
}

func (o *lastOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(string(o.text))
}

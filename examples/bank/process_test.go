//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// programs builds the bank and the node once.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "bank-"); err != nil {
		return "", err
	}
	atEnd = append(atEnd, func() error { return os.RemoveAll(dir) })
	for _, from := range []string{".", "../../cmd/cantus"} {
		if out, err := exec.Command("go", "build", "-o", dir+"/", from).CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", from, err, out)
		}
	}
	return dir, nil
})

// process is a program that is started again after it is killed.
type process struct {
	t    *testing.T
	args []string
	// ready makes start wait for a line on standard output.
	ready bool

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan error // of the current process
}

func (p *process) start() error {
	dir, err := programs()
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(dir, p.args[0]), p.args[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			select {
			case lines <- in.Text():
			default:
			}
		}
		ended <- cmd.Wait()
	}()
	p.mu.Lock()
	p.cmd, p.ended = cmd, ended
	p.mu.Unlock()
	if !p.ready {
		return nil
	}
	select {
	case <-lines:
		return nil
	case err := <-ended:
		ended <- err
		return fmt.Errorf("%v ended: %w", p.args, err)
	}
}

// kill kills the process, and reports whether it had ended successfully before.
func (p *process) kill() (done bool, err error) {
	p.mu.Lock()
	cmd, ended := p.cmd, p.ended
	p.mu.Unlock()
	if cmd == nil {
		return false, nil
	}
	_ = cmd.Process.Kill() // it may have ended already
	err = <-ended
	ended <- err
	var exit *exec.ExitError
	if errors.As(err, &exit) && !exit.Exited() {
		return false, nil // by the signal
	}
	return err == nil, err
}

// wait waits until the process ends by itself.
func (p *process) wait(ctx context.Context) error {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	select {
	case err := <-ended:
		ended <- err
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

//go:build unix

// Package postgres runs a PostgreSQL server for a test, in a directory of its own,
// without a port and without the machine's settings. It is removed with the test.
//
// The server's programs come with Debian's package postgresql. PostgreSQL
// refuses to run as root; started by root it runs as the user postgres, or
// nobody.
package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Server is a running server.
type Server struct {
	programs string // the folder of initdb and the other programs
	dir      string // holds the socket, and the data
	as       *syscall.Credential
	cmd      *exec.Cmd
	exited   chan error
	names    atomic.Int64
}

// startTime bounds the wait for a server to become ready.
const startTime = time.Minute

// Start runs a server until the test is over. If PostgreSQL is not installed, the test
// fails.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s, err := Open(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Open runs a server until Close.
func Open(ctx context.Context) (*Server, error) {
	programs, err := find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pg") // short: a socket's path has 107 bytes
	if err != nil {
		return nil, err
	}
	s := &Server{programs: programs, dir: dir}
	if err := s.found(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.Start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the server and removes its directory.
func (s *Server) Close() error {
	s.Kill()
	return os.RemoveAll(s.dir)
}

// find returns the folder of the newest server installed.
func find() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	all, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(all) == 0 {
		return "", errors.Join(err, errors.New("postgres: no initdb in PATH or /usr/lib/postgresql: install it, on Debian by apt-get install postgresql"))
	}
	return filepath.Dir(all[len(all)-1]), nil
}

// found makes the data directory.
func (s *Server) found() error {
	if os.Geteuid() == 0 {
		who, err := user.Lookup("postgres")
		if err != nil {
			if who, err = user.Lookup("nobody"); err != nil {
				return err
			}
		}
		uid, err := strconv.Atoi(who.Uid)
		if err != nil {
			return err
		}
		gid, err := strconv.Atoi(who.Gid)
		if err != nil {
			return err
		}
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, uid, gid); err != nil {
			return err
		}
	}
	return s.run("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions")
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.programs, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGHOST=" + s.dir, "PGUSER=postgres"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	return cmd
}

func (s *Server) run(name string, args ...string) error {
	if out, err := s.command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// Start starts the server, also after a Kill, and returns when it accepts
// connections.
func (s *Server) Start(ctx context.Context) error {
	// fsync matters when a machine loses power; tests only kill processes.
	s.cmd = s.command("postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200")
	var said bytes.Buffer
	s.cmd.Stderr = &said
	s.cmd.WaitDelay = time.Second // its children hold the pipe a little longer
	if err := s.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	s.exited = exited
	go func(cmd *exec.Cmd) { exited <- cmd.Wait() }(s.cmd)
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for s.run("pg_isready", "-q", "-d", "postgres") != nil {
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("postgres ended: %w\n%s", err, said.String())
		case <-ctx.Done():
			return fmt.Errorf("postgres is not ready: %w", context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Kill ends the server and its children as kill -9 does, and returns when they have
// ended. Start then recovers.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT) // ends the children too, and writes nothing
	err := <-s.exited
	s.exited <- err
}

// Database makes an empty database and returns its connection string, in the form of
// pgx and libpq.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("test%d", s.names.Add(1))
	if err := s.run("createdb", name); err != nil {
		tb.Fatal(err)
	}
	return s.dsn(name)
}

// Copy makes a database from a pg_dump of another one.
func (s *Server) Copy(tb testing.TB, dsn string) string {
	tb.Helper()
	file := filepath.Join(s.dir, fmt.Sprintf("dump%d", s.names.Add(1)))
	if err := s.run("pg_dump", "--format=custom", "--file="+file, "--dbname="+dsn); err != nil {
		tb.Fatal(err)
	}
	to := s.Database(tb)
	if err := s.run("pg_restore", "--dbname="+to, file); err != nil {
		tb.Fatal(err)
	}
	return to
}

func (s *Server) dsn(name string) string {
	return fmt.Sprintf("host=%s user=postgres dbname=%s sslmode=disable", s.dir, name)
}

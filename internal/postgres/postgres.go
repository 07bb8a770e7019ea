//go:build unix

// Package postgres runs a PostgreSQL server for tests, in a temporary
// directory, with a Unix socket and no port, and independent of the machine's
// configuration.
//
// The server's programs are those of Debian's package postgresql. PostgreSQL
// refuses to run as root, so root runs it as the user postgres or nobody.
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
	dir      string // of the socket and the data
	as       *syscall.Credential
	cmd      *exec.Cmd
	exited   chan error
	names    atomic.Int64
}

// startTimeout bounds how long Start waits for the server to accept
// connections.
const startTimeout = time.Minute

// Start runs a server until the test ends. If PostgreSQL is not installed, the
// test fails.
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

// Open runs a server until Close is called.
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
	if err := s.initialize(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.Start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close stops the server and removes its directory.
func (s *Server) Close() error {
	s.Kill()
	return os.RemoveAll(s.dir)
}

// find returns the folder of initdb: the one in PATH, or that of the newest
// server installed.
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

// initialize creates the data directory.
func (s *Server) initialize() error {
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			if u, err = user.Lookup("nobody"); err != nil {
				return err
			}
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return err
		}
		gid, err := strconv.Atoi(u.Gid)
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

// Start starts the server, for the first time or after Kill, and returns when
// it accepts connections.
func (s *Server) Start(ctx context.Context) error {
	// Without fsync data can only be lost in a power failure, and tests only
	// kill processes.
	s.cmd = s.command("postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200")
	var stderr bytes.Buffer
	s.cmd.Stderr = &stderr
	s.cmd.WaitDelay = time.Second // the server's children may hold the pipe longer than it does
	if err := s.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	s.exited = exited
	go func(cmd *exec.Cmd) { exited <- cmd.Wait() }(s.cmd)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for s.run("pg_isready", "-q", "-d", "postgres") != nil {
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("postgres ended: %w\n%s", err, stderr.String())
		case <-ctx.Done():
			return fmt.Errorf("postgres is not ready: %w", context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Kill ends the server and its children without a shutdown, as kill -9 would,
// and returns when they have ended. After the next Start the server recovers.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT) // ends the children too, and writes nothing
	err := <-s.exited
	s.exited <- err
}

// Database creates an empty database and returns its connection string, in the
// form of pgx and libpq.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("test%d", s.names.Add(1))
	if err := s.run("createdb", name); err != nil {
		tb.Fatal(err)
	}
	return s.dsn(name)
}

// Copy copies a database by pg_dump and pg_restore, and returns the copy's
// connection string.
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

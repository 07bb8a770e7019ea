//go:build s3

package testkit

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/ports"
)

// S3 is a server of S3, which keeps its objects as files.
type S3 struct {
	// Dir has a folder for each bucket.
	Dir string
	// Env are the variables by which a client finds its credentials.
	Env []string

	tb      testing.TB
	program string
	address string
	cmd     *exec.Cmd
}

// StartS3 builds and starts a server with a bucket named "bucket". It is
// stopped when the test ends.
func StartS3(tb testing.TB) *S3 {
	tb.Helper()
	s := &S3{
		tb: tb, Dir: tb.TempDir(), address: ports.Free(tb), program: filepath.Join(tb.TempDir(), "versitygw"),
		Env: []string{"AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=us-east-1"},
	}
	root, err := exec.CommandContext(tb.Context(), "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		tb.Fatal(err)
	}
	build := exec.CommandContext(tb.Context(), "go", "build", "-o", s.program, "github.com/versity/versitygw/cmd/versitygw")
	build.Dir = filepath.Join(string(root[:len(root)-1]), ".ci", "s3")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build the server: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(s.Dir, "bucket"), 0o700); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Kill)
	s.Start()
	return s
}

// Start starts the server again after Kill.
func (s *S3) Start() {
	s.tb.Helper()
	s.cmd = exec.Command(s.program, "--port", s.address, "--quiet", "posix", s.Dir)
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY=key", "ROOT_SECRET_KEY=secret")
	s.cmd.Stdout, s.cmd.Stderr = io.Discard, io.Discard
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial("tcp", s.address)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			s.Kill()
			s.tb.Fatalf("the server does not listen: %v", err)
		}
		select {
		case <-s.tb.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Kill kills the server.
func (s *S3) Kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// URL returns the URL of the bucket, below a prefix.
func (s *S3) URL(prefix string) string {
	return fmt.Sprintf("s3://bucket?endpoint=http://%s&use_path_style=true&prefix=%s/", s.address, prefix)
}

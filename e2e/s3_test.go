//go:build s3

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// cantusWith runs the program with variables added to the environment.
func cantusWith(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, append(os.Environ(), env...)
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("cantus %v: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// A backup in a real object store: under load and by two processes at once,
// through the death of the server, and with a flipped byte.
func TestS3Backup(t *testing.T) {
	s := testkit.StartS3(t)
	c := startCluster(t, 3, "--partitions", "2", "--msg-id-window", "30m")
	to := s.URL("prod")
	load := startLoad(c, 2)
	must := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := cantusWith(t, s.Env, args...)
		if code != 0 {
			t.Fatalf("cantus %v ended with %d: %s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	for range 3 {
		var archivers []*process
		for range 2 {
			cmd := exec.Command(program, "backup", "--server", c.url(), "--to", to, "--every", "20ms", "--quiet")
			cmd.Env = append(os.Environ(), s.Env...)
			archiver, err := runCommand(cmd)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(archiver.kill)
			archivers = append(archivers, archiver)
		}
		client := c.dial(c.nodes[0].name)
		mark := mustInfo(t, client, 0).HighWaterMark
		c.awaitMark(client, 0, mark+50)
		s.Kill()
		c.awaitMark(client, 0, mark+100)
		s.Start()
		must("backup", "--server", c.url(), "--to", to)
		must("backup", "verify", to)
		for _, a := range archivers {
			a.kill()
		}
	}
	load.stop(t)
	must("backup", "--server", c.url(), "--to", to)
	verified := must("backup", "verify", to, "--json")
	client := c.dial(c.nodes[0].name)
	for p := range 2 {
		if info := mustInfo(t, client, p); !strings.Contains(verified, `"digest":"`+info.Digest+`"`) {
			t.Errorf("partition %d has the digest %s, and the backup\n%s", p, info.Digest, verified)
		}
	}

	env := append(s.Env[:2:2], "AWS_SECRET_ACCESS_KEY=wrong", "AWS_REGION=us-east-1")
	if code, _, stderr := cantusWith(t, env, "backup", "verify", to); code != 1 || !strings.Contains(stderr, "SignatureDoesNotMatch") {
		t.Errorf("with a wrong secret: %d, %s", code, stderr)
	}
	var shown struct {
		Partitions []struct{ Segments []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(must("backup", "show", to, "--json")), &shown); err != nil {
		t.Fatal(err)
	}
	name := shown.Partitions[1].Segments[0].Name
	path := filepath.Join(s.Dir, "bucket", "prod", filepath.FromSlash(name))
	object, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	object[len(object)/2] ^= 1
	if err := os.WriteFile(path, object, 0o600); err != nil {
		t.Fatal(err)
	}
	// The store itself may find it.
	code, stdout, stderr := cantusWith(t, s.Env, "backup", "verify", to)
	if code != 1 || !strings.Contains(stdout, "DAMAGED: ") || !strings.Contains(stdout, name) || !strings.Contains(stderr, "1 of 2 partitions damaged") {
		t.Errorf("with a flipped byte: %d, %s%s", code, stdout, stderr)
	}
	load.check(t)
}

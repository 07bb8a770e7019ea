//go:build s3

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// Reads go on in an archive that is in a real object store. While the store is
// away they are refused, and what is kept is read.
func TestS3Archive(t *testing.T) {
	s := testkit.StartS3(t)
	for _, variable := range s.Env {
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil { // for nodes; tests that run in parallel have no Setenv
			t.Fatal(err)
		}
	}
	c, client, before := startTrimmed(t, s.URL("archive"))
	checkRestoredLog(t, before, drain(t, client, 0)[:len(before)])
	leader, err := c.leader(t.Context(), client, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Kill()
	other := c.without(leader)
	if err := errors.Join(other.stop(), other.start()); err != nil { // which forgets what it has read
		t.Fatal(err)
	}
	replica := c.dialOnly(other)
	replica.Limit = patience // a node waits a while for the store
	testkit.Until(t, "a read is refused without the store", func() bool {
		// Until this node has caught up, another one may answer, which remembers.
		got, end, refused, err := replica.ReadFrom(t.Context(), "replica.read", 0, map[string]any{"from": 1})
		if err != nil || refused != nil && refused.Reason != "unavailable" {
			t.Fatalf("without the store, a read has %d transactions, %+v, %+v, %v", len(got), end, refused, err)
		}
		return refused != nil
	})
	got, _, refused, err := replica.ReadFrom(t.Context(), "replica.read", 0, map[string]any{"from": len(before)})
	if err != nil || refused != nil || len(got) != 2 {
		t.Errorf("without the store, what is kept is read as %d transactions, %+v, %v", len(got), refused, err)
	}
	s.Start()
	err = c.until(t.Context(), "read again", func(ctx context.Context) string {
		_, _, refused, err := replica.ReadFrom(ctx, "replica.read", 0, map[string]any{"from": 1, "max": 1})
		if err != nil || refused != nil {
			return fmt.Sprintf("%+v, %v", refused, err)
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	checkRestoredLog(t, before, drainReplica(t, replica)[:len(before)])
}

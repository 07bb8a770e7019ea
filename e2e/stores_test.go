//go:build stores

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
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

// TestStores uses a real server of each object store through the commands.
func TestStores(t *testing.T) {
	for _, store := range testkit.Stores {
		t.Run(store.Name, func(t *testing.T) {
			testkit.Parallel(t)
			s := testkit.StartStore(t, store.Name)
			backUpToStore(t, s)
			readFromStore(t, s)
			checkCredentials(t, s)
		})
	}
}

// mustPrint runs the program, which has to succeed, and returns its output.
func mustPrint(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := cantus(t, args...)
	if code != 0 {
		t.Fatalf("cantus %v ended with %d: %s%s", args, code, stdout, stderr)
	}
	return stdout
}

// backUpToStore makes a backup under load and by two processes at once, through
// the end of the server. It verifies and restores it, and damages it.
func backUpToStore(t *testing.T, s *testkit.Store) {
	t.Helper()
	c := startCluster(second{t}, 3, "--partitions", "2", "--msg-id-window", "30m")
	to := s.URL("prod")
	load := startLoad(c, 2)
	client := c.dial(c.nodes[0].name)
	for range 3 {
		var archivers []*process
		for range 2 {
			archiver, err := run("backup", "--server", c.url(), "--to", to, "--every", "20ms", "--quiet")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(archiver.kill)
			archivers = append(archivers, archiver)
		}
		c.awaitMark(client, 0, mustInfo(t, client, 0).HighWaterMark+50)
		s.Stop()
		c.awaitMark(client, 0, mustInfo(t, client, 0).HighWaterMark+50)
		s.Start()
		mustPrint(t, "backup", "--server", c.url(), "--to", to)
		mustPrint(t, "backup", "verify", to)
		for _, a := range archivers {
			a.kill()
		}
	}
	load.stop(t)
	mustPrint(t, "backup", "--server", c.url(), "--to", to)
	digests := verifyBackup(t, to)
	for p := range 2 {
		if info := mustInfo(t, client, p); digests[p] != info.Digest || info.Digest == "" {
			t.Errorf("partition %d has the digest %s, its backup %s", p, info.Digest, digests[p])
		}
	}
	load.check(t)
	restoreFromStore(t, to, digests)

	var shown struct {
		Partitions []struct{ Segments []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(mustPrint(t, "backup", "show", to, "--json")), &shown); err != nil {
		t.Fatal(err)
	}
	name := shown.Partitions[1].Segments[0].Name
	s.Flip("prod", name)
	// The store itself may find it.
	code, stdout, stderr := cantus(t, "backup", "verify", to)
	if code != 1 || !strings.Contains(stdout, "DAMAGED: ") || !strings.Contains(stdout, name) || !strings.Contains(stderr, "1 of 2 partitions damaged") {
		t.Errorf("with a flipped byte: %d, %s%s", code, stdout, stderr)
	}
}

// restoreFromStore restores a backup into a new node.
func restoreFromStore(t *testing.T, from string, digests map[int]string) {
	t.Helper()
	n := startNode(t, t.TempDir(), "--partitions", "2")
	mustPrint(t, "restore", "--server", n.url, "--from", from, "--quiet")
	client := dial(t, n.url)
	for p := range 2 {
		if info := mustInfo(t, client, p); info.Digest != digests[p] {
			t.Errorf("partition %d is restored with the digest %s, its backup has %s", p, info.Digest, digests[p])
		}
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
}

// readFromStore reads from an archive in the store. While the store is away
// reads are refused, and what is kept is read.
func readFromStore(t *testing.T, s *testkit.Store) {
	t.Helper()
	c, client, before := startTrimmed(second{t}, s.URL("archive"))
	checkRestoredLog(t, before, drain(t, client, 0)[:len(before)])
	leader, err := c.leader(t.Context(), client, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
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

// checkCredentials checks which credentials do, and what the commands say of a
// store that is asked in vain.
func checkCredentials(t *testing.T, s *testkit.Store) {
	t.Helper()
	refused := func(what string, env []string, want string, args ...string) {
		t.Helper()
		code, stdout, stderr := cantusWith(t, env, args...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: %d, %s%s, want 1 line with %q", what, code, stdout, stderr, want)
		}
	}
	none := s.URLOf("nobody", "prod")
	refused("no bucket", nil, "create the bucket, or correct its name", "backup", "show", none)
	refused("no bucket for a generation", nil, "create the bucket, or correct its name", "backup", "verify", none, "--generation", "3")
	if s.WrongEnv != nil {
		refused("wrong credentials", s.WrongEnv, s.Refusal, "backup", "verify", s.URL("prod"))
		refused("wrong credentials", s.WrongEnv, "check the credentials", "backup", "show", s.URL("prod"))
	}
	for _, env := range s.Readers {
		if code, stdout, stderr := cantusWith(t, env, "backup", "verify", s.URL("archive")); code != 0 || !strings.Contains(stdout, "whole") {
			t.Errorf("with %s: %d, %s%s", env, code, stdout, stderr)
		}
	}
	s.Stop()
	refused("no server", nil, "connection refused", "backup", "show", s.URL("prod"))
}

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// backUp backs the cluster up.
func (c *cluster) backUp(tb testing.TB, to string) {
	tb.Helper()
	code, stdout, stderr := cantus(tb, "backup", "--server", c.url(), "--to", to, "--json", "--quiet")
	if code != 0 {
		tb.Fatalf("backup ended with %d: %s%s", code, stdout, stderr)
	}
}

// A backup is taken again and again under load, while leaders are killed, and
// is killed itself: in the end it is the log, by its digests.
func TestClusterBackupUnderLoad(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "2", "--msg-id-window", "30m")
	to := filepath.Join(t.TempDir(), "backup")
	load := startLoad(c, 2)
	kills := 2
	if testkit.Long() {
		kills = 10
	}
	for i := range kills {
		archiver, err := run("backup", "--server", c.url(), "--to", to, "--every", "20ms", "--json", "--quiet")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(archiver.kill)
		watcher := c.dial(c.nodes[0].name)
		leader, err := c.leader(t.Context(), watcher, i%2)
		if err != nil {
			t.Fatal(err)
		}
		leader.kill()
		if err := c.awaitOther(t.Context(), watcher, leader); err != nil {
			t.Fatal(err)
		}
		// The archiver goes on with the new leader, in the middle of its work
		// or not, and is killed.
		c.awaitBackup(t, to)
		archiver.kill()
		if err := leader.start(); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitReady(t.Context(), watcher); err != nil {
			t.Fatal(err)
		}
		verifyBackup(t, to)
	}
	load.stop(t)
	c.backUp(t, to)
	verified := verifyBackup(t, to)
	client := c.dial(c.nodes[0].name)
	for p := range 2 {
		if info := mustInfo(t, client, p); verified[p] != info.Digest || info.Digest == "" {
			t.Errorf("partition %d has the digest %s, its backup %s", p, info.Digest, verified[p])
		}
	}
	load.check(t)
}

// awaitBackup waits until a backup has everything that is in the cluster now.
func (c *cluster) awaitBackup(t *testing.T, to string) {
	t.Helper()
	client := c.dial(c.nodes[0].name)
	defer client.Conn.Close()
	for p := range 2 {
		if _, err := c.leader(t.Context(), client, p); err != nil {
			t.Fatal(err)
		}
		mark := mustInfo(t, client, p).HighWaterMark
		err := c.until(t.Context(), "the backup level", func(context.Context) string {
			code, stdout, stderr := cantus(t, "backup", "show", "--json", to)
			var m struct {
				Partitions []struct {
					Partition int
					Last      struct{ Txid uint64 }
				}
			}
			if code != 0 || json.Unmarshal([]byte(stdout), &m) != nil {
				return stdout + stderr
			}
			for _, log := range m.Partitions {
				if log.Partition == p && log.Last.Txid >= mark {
					return ""
				}
			}
			return fmt.Sprintf("it is not at %d of partition %d: %s", mark, p, stdout)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// verifyBackup verifies a backup, and returns its digests.
func verifyBackup(t *testing.T, from string) map[int]string {
	t.Helper()
	code, stdout, stderr := cantus(t, "backup", "verify", from, "--json")
	if code != 0 {
		t.Fatalf("verify ended with %d: %s%s", code, stdout, stderr)
	}
	digests := map[int]string{}
	for line := range strings.Lines(stdout) {
		var v struct {
			Partition int
			Digest    string
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		digests[v.Partition] = v.Digest
	}
	return digests
}

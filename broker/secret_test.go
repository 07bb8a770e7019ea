package broker_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/wal"
)

const token = "0123456789abcdef0123456789abcdef"

func TestANodeAloneHasASecretAndOneOfAnOldFormatGetsOne(t *testing.T) {
	dir := t.TempDir()
	n, _ := openNode(t, dir, broker.Options{})
	first := broker.Derive(n, "test")
	n, _ = reopen(t, n, dir, broker.Options{})
	if again := broker.Derive(n, "test"); again != first {
		t.Errorf("after a restart it derives %x, was %x", again, first)
	}
	if other := broker.Derive(n, "another"); other == first {
		t.Error("two purposes have one key")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "cluster.key")); err != nil { // as before there were secrets
		t.Fatal(err)
	}
	n, _ = openNode(t, dir, broker.Options{})
	if other := broker.Derive(n, "test"); other == first {
		t.Error("the secret was not made anew")
	}
	if _, err := wal.ReadSecret(dir); err != nil {
		t.Error(err)
	}
}

func TestATokenIsComparedWithTheSecretThatIsThere(t *testing.T) {
	dir := t.TempDir()
	n, _ := openNode(t, dir, broker.Options{ClusterSecret: token})
	n, _ = reopen(t, n, dir, broker.Options{}) // it is kept
	n, _ = reopen(t, n, dir, broker.Options{ClusterSecret: token})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := broker.Open(t.Context(), dir, broker.Options{ClusterSecret: strings.Repeat("x", 32)})
	if !errors.Is(err, broker.ErrIdentity) || !strings.Contains(err.Error(), "another cluster secret") {
		t.Errorf("another token: %v", err)
	}
	_, err = broker.Open(t.Context(), dir, broker.Options{ClusterSecret: "short"})
	if !errors.Is(err, broker.ErrOptions) || !strings.Contains(err.Error(), "has 5 characters") {
		t.Errorf("a short token: %v", err)
	}
}

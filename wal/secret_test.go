package wal_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

func TestASecretIsKeptAndForItsOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	if _, err := wal.ReadSecret(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("an empty directory's secret: %v", err)
	}
	want := wal.Secret{Key: bytes.Repeat([]byte{7}, wal.SecretSize), Token: true}
	if err := wal.WriteSecret(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := wal.ReadSecret(dir)
	if err != nil || !bytes.Equal(got.Key, want.Key) || got.Token != want.Token {
		t.Fatalf("read %v, %v", got, err)
	}
	path := filepath.Join(dir, "cluster.key")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", st.Mode(), err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		flipped := bytes.Clone(b)
		flipped[i] ^= 1
		if err := os.WriteFile(path, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := wal.ReadSecret(dir); !errors.Is(err, wal.ErrDamaged) {
			t.Fatalf("byte %d is flipped: %v", i, err)
		}
	}
	if err := wal.WriteSecret(dir, wal.Secret{Key: []byte("short")}); err == nil {
		t.Error("a short secret is written")
	}
}

func TestANomineesKeyLastsUntilItIsFounded(t *testing.T) {
	dir := t.TempDir()
	if _, err := wal.Nominate(dir); err != nil {
		t.Fatal(err)
	}
	key, err := wal.NomineeKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wal.Nominate(dir); err != nil { // it has crashed and begins again
		t.Fatal(err)
	}
	if again, err := wal.NomineeKey(dir); err != nil || !bytes.Equal(key, again) {
		t.Fatalf("another key: %v", err)
	}
	s, err := wal.Open(dir, wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "founding.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key is still there: %v", err)
	}
}

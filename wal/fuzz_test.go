package wal_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal"
)

// FuzzReplay replays an operation of the journal behind those that append an
// entry and set a value. Its frame had the right checksum.
func FuzzReplay(f *testing.F) {
	group := []byte{0, 0, 0, 0}
	number := binary.BigEndian.AppendUint64(nil, 1)
	for _, kind := range "etmvxhsz?" {
		f.Add(append([]byte{byte(kind)}, group...), number, false)
	}
	f.Add(append(append([]byte{'e'}, group...), number...), []byte("x"), false)
	f.Add([]byte{}, []byte{}, true)
	f.Add([]byte{'x', 0}, []byte{1}, false)
	f.Add(append([]byte{'x'}, group...), make([]byte, 8), false)
	testkit.MayViolate(f, invariant.EntriesDense)
	f.Fuzz(func(t *testing.T, key, value []byte, del bool) {
		first := append(append([]byte{'e'}, group...), number...)
		meta := append(append([]byte{'m'}, group...), "name"...)
		err := wal.ReplayOps(journal.Op{Key: first, Value: []byte("y")}, journal.Op{Key: meta, Value: []byte("v")}, journal.Op{Key: key, Value: value, Delete: del})
		if err != nil && len(key) >= 5 && key[0] == 'm' {
			t.Fatal(err)
		}
	})
}

// FuzzSmallFiles reads the small files of a data directory. Their checksums are
// right.
func FuzzSmallFiles(f *testing.F) {
	for _, v := range []any{
		wal.Secret{Key: make([]byte, wal.SecretSize)}, wal.Secret{Key: []byte{1}, Token: true},
		[]wal.Generation{{Number: 1}, {Number: 2}}, []wal.Generation{{Number: 1}, {Number: 3}},
		map[string]wal.Seen{"id": {Node: "n2", Newest: wal.Generation{Number: 4}, Older: true}}, nil, "text",
	} {
		b, err := wal.EncodeChecksummed(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("00000000\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 9 {
			b = append(b[:len(b)-9:len(b)-9], wal.ChecksumLine(b[:len(b)-9])...)
		}
		dir := t.TempDir()
		for _, name := range []string{"cluster.key", "generations.json", "peers.json", "founding.key", "cantus.json"} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := wal.ReadSecret(dir)
		if err == nil && len(s.Key) != wal.SecretSize {
			t.Fatalf("a secret of %d bytes", len(s.Key))
		}
		all, genErr := wal.At(dir).Generations()
		for i := 1; genErr == nil && i < len(all); i++ {
			if all[i].Number != all[i-1].Number+1 {
				t.Fatalf("generations %v", all)
			}
		}
		w, witnessErr := wal.At(dir).PeerRecord()
		if witnessErr == nil {
			w.Get("id")
			if err := w.Update("id", func(s wal.Seen) (wal.Seen, error) { s.Node = "n9"; return s, nil }); err != nil {
				t.Fatal(err)
			}
		}
		_, idErr := wal.ReadIdentity(dir)
		for _, err := range []error{err, genErr, witnessErr, idErr} {
			if err != nil && (!errors.Is(err, wal.ErrDamaged) && !errors.Is(err, wal.ErrFormat) || errors.Is(err, fs.ErrNotExist)) {
				t.Fatal(err)
			}
		}
		if key, err := wal.NomineeKey(dir); err != nil || len(key) != wal.SecretSize {
			t.Fatalf("a key of %d bytes, %v", len(key), err)
		}
	})
}

// FuzzDiscard reads Badger's count of what was deleted in each value log.
func FuzzDiscard(f *testing.F) {
	count := func(pairs ...uint64) (b []byte) {
		for _, n := range pairs {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		return b
	}
	f.Add(count(1, 100, 2, 300, 0, 0))
	f.Add(count(1, 1<<63)[:15])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "DISCARD"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		listed := map[string]bool{"": true}
		for at := 0; at+16 <= len(b); at += 16 {
			name := fmt.Sprintf("%06d.vlog", binary.BigEndian.Uint64(b[at:]))
			if len(listed) < 100 { // it only counts what is there
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				listed[name] = true
			}
		}
		name, err := wal.MostDiscarded(dir)
		if err != nil {
			t.Fatal(err)
		}
		found := listed[name]
		if !found {
			t.Fatalf("%q is not in the list", name)
		}
	})
}

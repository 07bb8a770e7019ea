package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

func TestGenerationsAreCountedAndKept(t *testing.T) {
	dir := t.TempDir()
	var before []wal.Generation
	for i := range 3 {
		s := openStore(t, dir, small())
		for range wal.GenerationsKept/2 + 1 {
			all, err := s.BeginGeneration()
			if err != nil {
				t.Fatal(err)
			}
			n, was := len(all), len(before)
			if want := min(was+1, wal.GenerationsKept); n != want {
				t.Fatalf("%d generations are kept, want %d", n, want)
			}
			if was > 0 && (all[n-2] != before[was-1] || all[n-1].Number != before[was-1].Number+1 || all[n-1].Nonce == before[was-1].Nonce) {
				t.Fatalf("%+v is followed by %+v", before[was-1], all[n-2:])
			}
			before = all
		}
		if err := s.Close(); err != nil {
			t.Fatal(i, err)
		}
	}
	if first := before[0].Number; first == 1 {
		t.Error("the oldest ones are not removed")
	}
}

func TestWhatIsRememberedOfOthersIsKept(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	w, err := s.PeerRecord()
	if err != nil {
		t.Fatal(err)
	}
	want := wal.Seen{Node: "n2", Newest: wal.Generation{Number: 7, Nonce: wal.Nonce{1, 2, 3}}, Start: wal.Generation{Number: 5}}
	if err := w.Update("id", func(wal.Seen) (wal.Seen, error) { return want, nil }); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	want.Older = true
	if err := w.Update("id", func(was wal.Seen) (wal.Seen, error) { was.Older = true; return was, no }); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, small())
	if w, err = s.PeerRecord(); err != nil {
		t.Fatal(err)
	}
	if got, ok := w.Get("id"); !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, ok := w.Get("another"); ok {
		t.Error("it remembers what it never met")
	}
}

func TestDamagedGenerationsAreNotBelieved(t *testing.T) {
	for _, name := range []string{"generations.json", "peers.json"} {
		dir := t.TempDir()
		s := openStore(t, dir, small())
		w, err := s.PeerRecord()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.BeginGeneration(); err != nil {
			t.Fatal(err)
		}
		if err := w.Update("id", func(wal.Seen) (wal.Seen, error) { return wal.Seen{Node: "n2"}, nil }); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 4
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = s.BeginGeneration()
		_, werr := s.PeerRecord()
		if err = errors.Join(err, werr); !errors.Is(err, wal.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

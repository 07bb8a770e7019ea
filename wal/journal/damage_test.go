package journal_test

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// sample returns a small journal of several segments, of which the first ones
// were released, after Close or after a kill.
func sample(t *testing.T, closed bool) *journaltest.FS {
	t.Helper()
	w := newWorld(t, 7)
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	for range 14 {
		if err := w.commit(2); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.release(w.j.Seq() - 6); err != nil {
		t.Fatal(err)
	}
	if err := w.commit(1); err != nil {
		t.Fatal(err)
	}
	if closed {
		if err := w.j.Close(); err != nil {
			t.Fatal(err)
		}
		return w.fs.Clone()
	}
	sealed := waitForSeal(t, w)
	_ = w.j.Close()
	return sealed
}

// waitForSeal returns the files that a kill leaves once the writer is idle.
func waitForSeal(t *testing.T, w *world) *journaltest.FS {
	t.Helper()
	testkit.Until(t, "a journal that is sealed", func() bool {
		rep, err := journal.Check(dir, journal.Options{FS: w.fs.Clone()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return rep.Proven && !rep.Closed && w.j.Stats().Ready > 0
	})
	return w.fs.Clone()
}

// describe writes a line that identifies a frame.
func describe(b *strings.Builder, seq uint64, ops []journal.Op) {
	b.WriteString(strconv.FormatUint(seq, 10))
	for _, op := range ops {
		b.Write(op.Key)
		b.Write(op.Value)
		b.WriteByte(byte(len(op.Key)))
		if op.Delete {
			b.WriteByte('-')
		}
	}
	b.WriteString("\n")
}

func replayed(fs *journaltest.FS) (string, error) {
	var b strings.Builder
	_, err := journal.Check(dir, journal.Options{FS: fs}, func(seq uint64, ops []journal.Op) error {
		describe(&b, seq, ops)
		return nil
	})
	return b.String(), err
}

// reopened is replayed with Open.
func reopened(fs *journaltest.FS) (string, error) {
	var b strings.Builder
	j, err := journal.Open(dir, journal.Options{FS: fs, SegmentSize: 8 << 10}, func(seq uint64, ops []journal.Op) error {
		describe(&b, seq, ops)
		return nil
	})
	if err != nil {
		return b.String(), err
	}
	return b.String(), j.Close()
}

// TestEveryFlippedByte changes each byte of each file in turn. Either that is
// noticed, or the same is replayed as without it.
func TestEveryFlippedByte(t *testing.T) {
	for name, closed := range map[string]bool{"closed": true, "killed": false} {
		t.Run(name, func(t *testing.T) {
			fs := sample(t, closed)
			want, err := replayed(fs)
			rep, _ := journal.Check(dir, journal.Options{FS: fs}, nil)
			if err != nil || rep.Last-rep.Released != 7 {
				t.Fatalf("sample: %v, replays %q", err, want)
			}
			noticed := 0
			for _, file := range fs.Files() {
				content := fs.ReadFile(file)
				step := 1
				if closed && !strings.HasSuffix(file, "checkpoint") {
					step = 7 // the other case has them all
				}
				step *= testkit.Sized(13, 1, 1)
				for i := 0; i < len(content); i += step {
					content[i] ^= 1 << (i % 8)
					fs.WriteFile(file, content)
					got, err := replayed(fs)
					if err == nil && got != want {
						t.Fatalf("%s byte %d: replays\n%s\nand not\n%s", file, i, got, want)
					}
					if err != nil {
						noticed++
						if !errors.Is(err, journal.ErrDamaged) && !errors.Is(err, journal.ErrVersion) || !strings.Contains(err.Error(), dir) {
							t.Fatalf("%s byte %d: %v", file, i, err)
						}
					}
					if i%64 == 0 { // Open shares the code, so now and then is enough
						again, err2 := reopened(fs.Clone())
						if (err == nil) != (err2 == nil) || err == nil && again != want {
							t.Fatalf("%s byte %d: check %v, open %v", file, i, err, err2)
						}
					}
					content[i] ^= 1 << (i % 8)
				}
				fs.WriteFile(file, content)
			}
			// At least every byte of a frame that counts, of the checkpoint,
			// and of two segments' labels.
			if least := int(rep.Bytes) + 72 + 2*56; !closed && !testing.Short() && noticed < least {
				t.Errorf("%d changes noticed, want at least %d", noticed, least)
			}
		})
	}
}

// TestMissingAndShortened removes and shortens each file.
func TestMissingAndShortened(t *testing.T) {
	for _, closed := range []bool{true, false} {
		fs := sample(t, closed)
		want, _ := replayed(fs)
		noticed, missing := 0, false
		for _, file := range fs.Files() {
			without := fs.Clone()
			without.Delete(file)
			got, err := replayed(without)
			if err == nil && got != want {
				t.Fatalf("without %s: replays\n%s", file, got)
			}
			if err != nil {
				noticed++
				missing = missing || strings.Contains(err.Error(), "segment is missing, or the file checkpoint is an older copy")
			}
			if again, err2 := reopened(without); (err == nil) != (err2 == nil) || err == nil && again != want {
				t.Fatalf("without %s: check %v, open %v", file, err, err2)
			}
			for _, n := range []int{0, 10, 71, 4096, 5000} {
				short := fs.Clone()
				content := fs.ReadFile(file)
				short.WriteFile(file, content[:min(n, len(content)-1)])
				got, err := replayed(short)
				if err == nil && got != want {
					t.Fatalf("%s cut to %d: replays\n%s", file, n, got)
				}
			}
		}
		if noticed < 3 {
			t.Errorf("only %d missing files noticed", noticed)
		}
		if !missing {
			t.Error("no error says that an older checkpoint would look the same")
		}
	}
}

// TestLostEnd removes whole frames from the end of a log that was longer
// according to the checkpoint: because it was closed, or because it was
// released.
func TestLostEnd(t *testing.T) {
	closed := sample(t, true)
	whole, err := journal.Check(dir, journal.Options{FS: closed}, nil)
	if err != nil {
		t.Fatal(err)
	}
	released := journaltest.New(1)
	j := mustOpen(t, dir, journal.Options{FS: released, SegmentSize: 8 << 10}, nil)
	for range 3 {
		if err := errors.Join(j.Commit(put("k", 10)), j.Release(j.Seq())); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, j)
	unclose(t, released)
	if _, err := replayed(released); err != nil {
		t.Fatal(err)
	}
	for name, fs := range map[string]*journaltest.FS{"closed": closed, "released": released} {
		var segments []string
		for _, file := range fs.Files() {
			if strings.HasSuffix(file, ".seg") {
				segments = append(segments, file)
			}
		}
		for i := len(segments) - 1; i > 0; i-- {
			fs.Delete(segments[i])
			rep, err := journal.Check(dir, journal.Options{FS: fs}, nil)
			if err == nil && name == "closed" && rep.Last != whole.Last {
				t.Errorf("%s, without %s: ends at %d, not %d", name, segments[i], rep.Last, whole.Last)
			}
		}
		first := fs.ReadFile(segments[0])
		clear(first[4096:])
		fs.WriteFile(segments[0], first)
		if _, err := replayed(fs); !errors.Is(err, journal.ErrDamaged) {
			t.Errorf("%s, without frames: %v", name, err)
		}
	}
}

// TestTornLastFrame removes each possible beginning of the last frame: the
// frame is dropped if it may never have been synced, and the log continues in
// its place. The frame before it is known to be synced, so a change there is
// noticed.
func TestTornLastFrame(t *testing.T) {
	w := newWorld(t, 3)
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	if err := w.commit(1); err != nil {
		t.Fatal(err)
	}
	before := waitForSeal(t, w)
	if err := w.commit(1); err != nil {
		t.Fatal(err)
	}
	after := waitForSeal(t, w)
	if err := w.j.Close(); err != nil {
		t.Fatal(err)
	}
	want, _ := replayed(before)
	const off = 4096
	path := filepath.Join(dir, "0000000000000001.seg")
	old, now := before.ReadFile(path), after.ReadFile(path)
	begin, end := off, len(now)
	for old[begin] == now[begin] {
		begin++
	}
	for now[end-1] == 0 {
		end--
	}
	for n := begin; n < end-16; n++ { // the last 16 bytes are the seal
		// The frame's bytes from n on have arrived, and the seal has not.
		torn := append(append(append([]byte{}, old[:n]...), now[n:end-16]...), old[end-16:]...)
		fs := before.Clone()
		fs.WriteFile(path, torn)
		got, err := replayed(fs)
		whole := n <= begin
		if err != nil || (got == want) == whole {
			t.Fatalf("torn at %d of %d to %d: %v, replays\n%s", n, begin, end, err, got)
		}
		if whole {
			continue
		}
		w := newWorld(t, uint64(n))
		w.order, w.next, w.acked = []uint64{1}, 2, 1
		w.mustWork(fs)
		w.mustWork(w.fs.Kill())
		if err := w.j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// With its seal the frame is known to have been synced.
	torn := append(append([]byte{}, old[:begin+1]...), now[begin+1:]...)
	after.WriteFile(path, torn)
	if _, err := replayed(after); !errors.Is(err, journal.ErrDamaged) {
		t.Fatalf("sealed frame damaged: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Run("another version", func(t *testing.T) {
		fs := sample(t, true)
		for _, name := range fs.Files() {
			if content := fs.ReadFile(name); filepath.Base(name) == "checkpoint" {
				content[8]++
				fs.WriteFile(name, content)
			}
		}
		if _, err := reopened(fs); !errors.Is(err, journal.ErrVersion) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another store", func(t *testing.T) {
		fs := journaltest.New(1)
		opts := journal.Options{FS: fs, SegmentSize: 8 << 10, StoreID: [16]byte{1}}
		j, err := journal.Open(dir, opts, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		opts.StoreID[0] = 2
		if _, err := journal.Open(dir, opts, nil); !errors.Is(err, journal.ErrOtherStore) {
			t.Errorf("got %v", err)
		}
		opts.StoreID[0] = 0
		if rep, err := journal.Check(dir, opts, nil); err != nil || rep.StoreID[0] != 1 {
			t.Errorf("any store: %v, %v", rep, err)
		}
	})
	t.Run("replay fails", func(t *testing.T) {
		cause := errors.New("no more")
		_, err := journal.Open(dir, journal.Options{FS: sample(t, true)}, func(uint64, []journal.Op) error { return cause })
		if !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	})
	for name, opts := range map[string]journal.Options{
		"small segments": {SegmentSize: 4096},
		"odd segments":   {SegmentSize: 8193},
		"huge segments":  {SegmentSize: 1 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			opts.FS = journaltest.New(1)
			if _, err := journal.Open(dir, opts, nil); !errors.Is(err, journal.ErrOptions) {
				t.Errorf("got %v", err)
			}
		})
	}
}

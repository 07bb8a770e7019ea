package e2e_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

const blockSize = 4096

// files is a directory in memory: of each file its size and those blocks
// that are not zero, for most of a store's files is room allocated ahead.
type files map[string]file

type file struct {
	size   int64
	blocks map[int64][]byte
}

func walk(tb testing.TB, dir string, visit func(path string, info os.FileInfo)) {
	tb.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			visit(path, info)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func snapshot(tb testing.TB, dir string) files {
	tb.Helper()
	all := files{}
	walk(tb, dir, func(path string, info os.FileInfo) {
		if info.IsDir() {
			return
		}
		b, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			tb.Fatal(err)
		}
		f := file{size: int64(len(b)), blocks: map[int64][]byte{}}
		zero := make([]byte, blockSize)
		for at := 0; at < len(b); at += blockSize {
			piece := b[at:min(at+blockSize, len(b))]
			if !bytes.Equal(piece, zero[:len(piece)]) {
				f.blocks[int64(at)] = bytes.Clone(piece)
			}
		}
		all[name] = f
	})
	return all
}

// equal compares two snapshots, or only the named files of them.
func (f files) equal(other files, only ...string) bool {
	same := func(a, b file) bool {
		return a.size == b.size && maps.EqualFunc(a.blocks, b.blocks, bytes.Equal)
	}
	if len(only) == 0 {
		return maps.EqualFunc(f, other, same)
	}
	return !slices.ContainsFunc(only, func(name string) bool { return !same(f[name], other[name]) })
}

// restore writes the files to a new directory.
func (f files) restore(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	for name, content := range f {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			tb.Fatal(err)
		}
		out, err := os.Create(path)
		if err != nil {
			tb.Fatal(err)
		}
		for at, b := range content.blocks {
			if _, err := out.WriteAt(b, at); err != nil {
				tb.Fatal(err)
			}
		}
		if err := out.Truncate(content.size); err != nil {
			tb.Fatal(err)
		}
		if err := out.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// places picks offsets of a file's bytes that are not zero, spread over them,
// and one that is zero, if there is one.
func (f file) places(random *rand.Rand, count int) []int64 {
	var used []int64
	for at, b := range f.blocks {
		for i, c := range b {
			if c != 0 {
				used = append(used, at+int64(i))
			}
		}
	}
	slices.Sort(used)
	if len(used) == 0 {
		return nil
	}
	var picked []int64
	for i := range count {
		lo, hi := i*len(used)/count, (i+1)*len(used)/count
		if lo < hi {
			picked = append(picked, used[lo+random.IntN(hi-lo)])
		}
	}
	if f.size > 0 {
		if at := random.Int64N(f.size); !slices.Contains(used, at) {
			picked = append(picked, at)
		}
	}
	return picked
}

// flipped is a copy with one byte changed.
func (f files) flipped(name string, at int64, xor byte) files {
	copied := maps.Clone(f)
	was := f[name]
	block := at / blockSize * blockSize
	b := bytes.Clone(was.blocks[block])
	if b == nil {
		b = make([]byte, min(blockSize, was.size-block))
	}
	b[at-block] ^= xor
	blocks := maps.Clone(was.blocks)
	blocks[block] = b
	copied[name] = file{size: was.size, blocks: blocks}
	return copied
}

// content is what a node must serve, whatever happened to its files.
type content struct {
	logs    [][]*nats.Msg
	digests []string
	cursor  uint64
}

func contentOf(t *testing.T, c *workload.Client, partitions int) content {
	t.Helper()
	var all content
	for p := range partitions {
		all.logs = append(all.logs, drain(t, c, p))
		all.digests = append(all.digests, mustInfo(t, c, p).Digest)
	}
	all.cursor = cursor(t, c, 0, "reader", "").Txid
	return all
}

// TestFlippedByte changes one byte in each file of a small data directory,
// at several places, and serves what is left. Either the node says that
// something is wrong, at its start or when it is read, or it serves every
// byte of what there was.
func TestFlippedByte(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "a node is started on each damaged copy of a directory")
	places := testkit.Sized(1, 1, 25)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, ending := range []string{"killed", "stopped"} {
		all, want := smallStore(t, ending == "killed")
		served, refused := 0, 0
		for _, name := range slices.Sorted(maps.Keys(all)) {
			for _, at := range all[name].places(random, places) {
				xor := byte(1 << random.IntN(8))
				t.Run(fmt.Sprintf("%s %s %d %#x", ending, name, at, xor), func(t *testing.T) {
					if serveFlipped(t, all.flipped(name, at, xor).restore(t), name, want) {
						served++
					} else {
						refused++
					}
				})
			}
		}
		t.Logf("%s: %d files; %d damaged directories served all, %d were refused", ending, len(all), served, refused)
		if refused == 0 {
			t.Errorf("%s: no damage was noticed at all", ending)
		}
	}
}

// smallStore fills a store in two runs, so that it has a past, and returns
// its files and what must be read from them.
func smallStore(t *testing.T, kill bool) (files, content) {
	t.Helper()
	n := startNode(t, t.TempDir(), "--partitions", "2")
	c := dial(t, n.url)
	for run := range 2 {
		for i := range 20 {
			mustAppend(t, c, i%2, fmt.Sprintf("run %d, transaction %d: %s", run, i, strings.Repeat("payload ", i*20)),
				"Cantus-Append-Lock", fmt.Sprintf("lock.%d", i), "Nats-Msg-Id", fmt.Sprintf("id %d of run %d", i, run), "Foo", "bar")
		}
		cursor(t, c, 0, "reader", fmt.Sprintf(`{"txid":%d}`, 3+run))
		if run == 0 {
			if err := n.stop(); err != nil {
				t.Fatal(err)
			}
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			c = dial(t, n.url)
		}
	}
	want := contentOf(t, c, 2)
	if kill {
		n.kill()
	} else if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	return snapshot(t, n.dir), want
}

// serveFlipped reports whether the directory is served as if nothing had
// happened to it. What it serves must be right. A refusal must say why, and
// name the file with the flipped byte.
func serveFlipped(t *testing.T, dir, name string, want content) bool {
	t.Helper()
	p, err := run(serve(dir)...)
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	select {
	case <-p.done:
		checkSaysDamage(t, p, filepath.Join(dir, name))
		return false
	case line := <-p.lines:
		found := readyURL.FindStringSubmatch(line)
		if found == nil {
			t.Fatalf("%q", line)
		}
		whole := checkServed(t, p, dial(t, found[1]), want)
		path := filepath.Join(dir, name)
		defer func() {
			if t.Failed() {
				t.Log(p.stderr)
			}
		}()
		testkit.Until(t, "the log names "+path+" if a read is refused", func() bool { return whole || p.stderr.has(path) })
		return whole
	case <-time.After(patience):
		t.Fatalf("neither serving nor ended after %v\n%s", patience, p.stderr)
	}
	return false
}

func checkSaysDamage(t *testing.T, p *process, path string) {
	t.Helper()
	text := p.stderr.String()
	if p.cmd.ProcessState.ExitCode() <= 0 || strings.Contains(text, "panic:") || strings.Contains(text, "goroutine ") {
		t.Errorf("it does not end as it should: %v\n%s", p.cmd.ProcessState, text)
	}
	// A version number with another bit set is a later version's.
	if !strings.Contains(text, "damaged") && !strings.Contains(text, "newer format") {
		t.Errorf("the refusal does not say what is wrong:\n%s", text)
	}
	if !strings.Contains(text, path) {
		t.Errorf("the refusal does not name %s:\n%s", path, text)
	}
	if strings.Contains(text, "damaged") && (!strings.Contains(text, "restore a copy of the directory") || !strings.Contains(text, "cantus salvage")) {
		t.Errorf("the refusal does not say what to do:\n%s", text)
	}
}

// checkServed reads everything: each read is right or refused.
func checkServed(t *testing.T, p *process, c *workload.Client, want content) bool {
	t.Helper()
	whole := true
	for partition, log := range want.logs {
		info := mustInfo(t, c, partition)
		if info.HighWaterMark != uint64(len(log)) || info.Digest != want.digests[partition] {
			t.Fatalf("partition %d serves up to %d with digest %s, it had %d with %s\n%s",
				partition, info.HighWaterMark, info.Digest, len(log), want.digests[partition], p.stderr)
		}
		for from := uint64(1); from <= uint64(len(log)); {
			got, end, refused, err := c.Read(t.Context(), partition, map[string]any{"from": from})
			if err != nil {
				t.Fatalf("read from %d: %v\n%s", from, err, p.stderr)
			}
			if refused != nil {
				whole = false
				break
			}
			for i, m := range got {
				if original := log[from-1+uint64(i)]; !bytes.Equal(m.Data, original.Data) || fmt.Sprint(m.Header) != fmt.Sprint(original.Header) {
					t.Fatalf("partition %d, txid %d: wrong data:\n%v %q\nit was\n%v %q", partition, from+uint64(i), m.Header, m.Data, original.Header, original.Data)
				}
			}
			if end.Next != from+uint64(len(got)) || end.Next == from {
				t.Fatalf("read from %d: %d transactions, next %d", from, len(got), end.Next)
			}
			from = end.Next
		}
	}
	if at := cursor(t, c, 0, "reader", ""); at.Error == nil && at.Txid != want.cursor {
		t.Errorf("the cursor is at %d, it was at %d", at.Txid, want.cursor)
	}
	return whole
}

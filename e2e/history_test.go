package e2e_test

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// maxLocks is the most locks a transaction may name.
const maxLocks = 64

// commit is one line of the history.
type commit struct {
	Commit string      `json:"commit"`
	Time   int64       `json:"time"`
	Files  [][2]string `json:"files"` // status letter, path
	// Part and Parts number the pieces of a commit that touches more paths
	// than a transaction can lock; both are 0 for one that is whole.
	Part  int `json:"part,omitempty"`
	Parts int `json:"parts,omitempty"`
}

// id names a commit or a piece of one.
func (c commit) id() string {
	if c.Parts == 0 {
		return c.Commit
	}
	return fmt.Sprintf("%s/%d", c.Commit, c.Part)
}

func (c commit) locks() []string {
	locks := make([]string, len(c.Files))
	for i, f := range c.Files {
		locks[i] = lockName(f[1])
	}
	return locks
}

// step is a commit, or a piece of one, as the replay appends it.
type step struct {
	commit
	payload []byte
	// builds names, for each path in order, the step that last touched it,
	// "" if none did.
	builds []string
	// after are the indexes of those steps, each once.
	after []int
}

// history is the file, and the state that a replay of it must lead to.
type history struct {
	// commits holds, for each line of the file, its steps.
	commits [][]int
	steps   []step
	byID    map[string]int
	// order is, for each path, the steps that touched it.
	order map[string][]string
	// exists reports for each path whether its last step left it there.
	exists map[string]bool
}

func newHistory() *history {
	return &history{byID: map[string]int{}, order: map[string][]string{}, exists: map[string]bool{}}
}

// shares distributes the paths over partitions by their top folder. A commit
// has a share in each partition that it touches; the shares in one partition
// are a history of their own.
func (h *history) shares(tb testing.TB, partitions int) []*history {
	tb.Helper()
	shares := make([]*history, partitions)
	for p := range shares {
		shares[p] = newHistory()
	}
	for _, steps := range h.commits {
		files := make([][][2]string, partitions)
		for _, i := range steps {
			for _, f := range h.steps[i].Files {
				top, _, _ := strings.Cut(f[1], "/")
				p := crc32.ChecksumIEEE([]byte(top)) % uint32(partitions)
				files[p] = append(files[p], f)
			}
		}
		for p, share := range files {
			if len(share) == 0 {
				continue
			}
			c := commit{Commit: h.steps[steps[0]].Commit, Time: h.steps[steps[0]].Time, Files: share}
			line, err := json.Marshal(c)
			if err != nil {
				tb.Fatal(err)
			}
			shares[p].add(tb, c, line)
		}
	}
	return shares
}

// head returns the history of the first commits.
func (h *history) head(tb testing.TB, commits int) *history {
	head := newHistory()
	for _, steps := range h.commits[:commits] {
		first := h.steps[steps[0]]
		c, line := commit{Commit: first.Commit, Time: first.Time}, first.payload
		for _, i := range steps {
			c.Files = append(c.Files, h.steps[i].Files...)
		}
		head.add(tb, c, line)
	}
	return head
}

// loadHistory reads testdata. The expected state comes from the file alone.
func loadHistory(tb testing.TB) *history {
	tb.Helper()
	file, err := os.Open("testdata/nats-server-history.jsonl.gz")
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		tb.Fatal(err)
	}
	h := newHistory()
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c commit
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			tb.Fatal(err)
		}
		h.add(tb, c, slices.Clone(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		tb.Fatal(err)
	}
	if len(h.commits) != 8319 || len(h.steps) != 8349 || len(h.order) != 1429 {
		tb.Fatalf("the history has %d commits, %d steps, %d paths", len(h.commits), len(h.steps), len(h.order))
	}
	return h
}

// add appends a commit's steps: one if it is small enough to be locked as a
// whole, otherwise one for each 64 of its paths.
func (h *history) add(tb testing.TB, c commit, line []byte) {
	if len(c.Files) <= maxLocks {
		h.commits = append(h.commits, []int{h.addStep(tb, c, line)})
		return
	}
	var indexes []int
	pieces := slices.Collect(slices.Chunk(c.Files, maxLocks))
	for i, files := range pieces {
		piece := commit{Commit: c.Commit, Time: c.Time, Files: files, Part: i + 1, Parts: len(pieces)}
		payload, err := json.Marshal(piece)
		if err != nil {
			tb.Fatal(err)
		}
		indexes = append(indexes, h.addStep(tb, piece, payload))
	}
	h.commits = append(h.commits, indexes)
}

func (h *history) addStep(tb testing.TB, c commit, payload []byte) int {
	s := step{commit: c, payload: payload}
	for _, f := range c.Files {
		before := ""
		if touched := h.order[f[1]]; len(touched) > 0 {
			before = touched[len(touched)-1]
			s.after = append(s.after, h.byID[before])
		}
		s.builds = append(s.builds, before)
		h.order[f[1]] = append(h.order[f[1]], c.id())
		h.exists[f[1]] = f[0] != "D"
	}
	for _, lock := range c.locks() {
		if tokens := strings.Split(lock, "."); len(tokens) > 16 || slices.ContainsFunc(tokens, badToken) {
			tb.Fatalf("commit %s: %q is no lock name", c.Commit, lock)
		}
	}
	slices.Sort(s.after)
	s.after = slices.Compact(s.after)
	h.byID[c.id()] = len(h.steps)
	h.steps = append(h.steps, s)
	return len(h.steps) - 1
}

func badToken(token string) bool { return token == "" || len(token) > 64 }

// lockName turns a path into a lock name: its parts become tokens, and what
// tokens cannot hold is percent-encoded.
func lockName(path string) string {
	var name strings.Builder
	for _, r := range path {
		switch {
		case r == '/':
			name.WriteByte('.')
		case strings.ContainsRune(".%*>,", r) || unicode.IsSpace(r):
			for _, b := range []byte(string(r)) {
				fmt.Fprintf(&name, "%%%02X", b)
			}
		default:
			name.WriteRune(r)
		}
	}
	return name.String()
}

func TestLockName(t *testing.T) {
	for path, want := range map[string]string{
		"server/jetstream.go": "server.jetstream%2Ego",
		".gitignore":          "%2Egitignore",
		"a b,c/100%*>":        "a%20b%2Cc.100%25%2A%3E",
	} {
		if got := lockName(path); got != want {
			t.Errorf("lockName(%q) = %q, want %q", path, got, want)
		}
	}
}

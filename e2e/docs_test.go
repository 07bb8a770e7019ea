//go:build unix

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/commandlines"
	"github.com/cantuslog/cantus/internal/testkit"
)

// pageWalk runs the command lines of a page in their order. It replaces only
// addresses, directories, and names in capitals, which readers have to choose.
type pageWalk struct {
	*newcomer
	page string
	walked
	cluster *cluster            // of a page about several nodes
	here    map[string]string   // what replaces what the page has, placeholders aside
	going   map[string]*process // the lines that go on, by their text
	ready   *node               // the last node that a line has started
	printed string              // what the last line has printed
}

// walked says how a page is walked.
type walked struct {
	long bool // it is left out of the usual run: make docs
	// only matches the lines that are run, if others are run elsewhere.
	only    *regexp.Regexp
	prepare func(*pageWalk)
	// steps has what is special about a line, by its text. Any other one has to
	// end with status 0.
	steps map[string]lineStep
	after func(*pageWalk)
}

// lineStep is what is special about a line.
type lineStep struct {
	before func(*pageWalk)
	input  string // what the reader types
	status int
	// goesOn is what a line prints or logs that does not end by itself. It runs
	// until it is stopped, or until the end. A node that is to be ready needs no
	// such text.
	goesOn string
	// shows is a line of the page that this one prints, with other numbers.
	shows  string
	prints []string // patterns
	after  func(*pageWalk)
}

// TestDocs walks through the pages. docs/ has what the reader sees.
func TestDocs(t *testing.T) {
	for page, how := range walks {
		t.Run(filepath.Base(page), func(t *testing.T) {
			if how.long {
				testkit.OnlyLong(t, "make docs walks through this page")
			}
			testkit.NotShort(t, "it starts several processes")
			testkit.Parallel(t)
			text, err := os.ReadFile("../" + page)
			if err != nil {
				t.Fatal(err)
			}
			w := &pageWalk{newcomer: newNewcomer(t, "CANTUS_LISTEN=127.0.0.1:0", "CANTUS_HTTP=off"), page: page, walked: how, here: map[string]string{}, going: map[string]*process{}}
			lines := commandlines.In(page, string(text))
			if w.prepare != nil {
				w.prepare(w)
			}
			seen := map[string]bool{}
			for _, l := range lines {
				if how.only == nil || how.only.MatchString(l.Text) {
					seen[l.Text] = true
					w.follow(string(text), l)
				}
			}
			for line := range w.steps {
				if !seen[line] {
					t.Errorf("%s has no line %q any more: take it out of walks", page, line)
				}
			}
			if w.after != nil {
				w.after(w)
			}
		})
	}
}

// placeholder matches what a page may have another thing for than the reader:
// an address, a path, a word in capitals, dots, or a bucket.
var placeholder = regexp.MustCompile(`^(?:(?:\w+://)?[\w.-]+:\d+(?:,(?:\w+://)?[\w.-]+:\d+)*|/[\w/.-]+|[A-Z]+|--\w+ …(?: --\w+ …)*|…)$`)

// put says what replaces a placeholder of the page.
func (w *pageWalk) put(there, here string) {
	w.t.Helper()
	if !placeholder.MatchString(there) {
		w.t.Fatalf("%q is not an address, a path or a name in capitals: write it on the page as it is to be typed", there)
	}
	w.here[there] = here
}

// local returns a line of the page as it is typed here.
func (w *pageWalk) local(line string) string {
	var pairs []string
	there := slices.SortedFunc(func(yield func(string) bool) {
		for t := range w.here {
			if !yield(t) {
				return
			}
		}
	}, func(a, b string) int { return len(b) - len(a) }) // the longest first
	for _, t := range there {
		pairs = append(pairs, t, w.here[t])
	}
	return strings.NewReplacer(pairs...).Replace(line)
}

// set sets a variable of the lines that follow.
func (w *pageWalk) set(name, value string) { w.env = append(w.env, name+"="+value) }

func (w *pageWalk) follow(text string, l commandlines.Line) {
	w.t.Helper()
	s := w.steps[l.Text]
	if s.before != nil {
		s.before(w)
	}
	line := w.local(l.Text)
	switch {
	case strings.HasPrefix(l.Text, "cantus serve "):
		w.ready = w.serve(line)
		if s.goesOn != "" {
			testkit.Until(w.t, l.Text+" logs "+s.goesOn, func() bool { return w.ready.running().stderr.has(s.goesOn) })
		} else if err := w.ready.awaitReady(); err != nil {
			w.t.Fatalf("%s:%d: %s: %v", l.Page, l.Number, l.Text, err)
		}
	case strings.HasPrefix(l.Text, "export "):
		w.env = append(w.env, strings.Fields(line)[1:]...)
	case s.goesOn != "":
		w.goOn(l.Text, line, s.goesOn)
	default:
		out, status := w.type_(line, s.input)
		for end := time.Now().Add(patience); status == tryAgain && status != s.status && time.Now().Before(end); {
			out, status = w.type_(line, s.input) // a leader may be changing
		}
		if status != s.status {
			w.t.Fatalf("%s:%d: %s: status %d, want %d\n%s", l.Page, l.Number, l.Text, status, s.status, out)
		}
		w.printed = out
	}
	if s.shows != "" {
		if !strings.Contains(text, s.shows) {
			w.t.Errorf("%s shows no %q any more", l.Page, s.shows)
		}
		if !strings.Contains(masked(w.printed), masked(s.shows)) {
			w.t.Errorf("%s:%d: %s: the page shows\n%s\nit prints\n%s", l.Page, l.Number, l.Text, s.shows, w.printed)
		}
	}
	for _, p := range s.prints {
		if !regexp.MustCompile(p).MatchString(w.printed) {
			w.t.Errorf("%s:%d: %s: no %q in\n%s", l.Page, l.Number, l.Text, p, w.printed)
		}
	}
	if s.after != nil {
		s.after(w)
	}
}

// tryAgain is the exit status with which nothing was done: README.md says to
// try again later.
const tryAgain = 4

var (
	numbersOf = regexp.MustCompile(`\d[\d.,:-]*\s?(?:[KMG]?i?B|[nµm]?s|h\d*m?\d*s?)?\b`)
	spacesOf  = regexp.MustCompile(`\s+`)
)

// masked returns a text without its numbers, sizes and times, and with single
// spaces.
func masked(text string) string {
	return strings.TrimSpace(spacesOf.ReplaceAllString(numbersOf.ReplaceAllString(text, "N"), " "))
}

// type_ runs a line, and types something when it asks.
func (w *pageWalk) type_(line, input string) (string, int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = w.dir, w.env, strings.NewReader(input), &out, &out
	if exit := (*exec.ExitError)(nil); !errors.As(cmd.Run(), &exit) && cmd.ProcessState == nil {
		w.t.Fatalf("%s did not run", line)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// goOn starts a line that goes on, and waits until it prints or logs a text.
func (w *pageWalk) goOn(name, line, until string) {
	w.t.Helper()
	cmd := exec.Command("sh", "-c", "exec "+line)
	var out output
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = w.dir, w.env, &out, &out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	w.t.Cleanup(p.kill)
	w.going[name] = p
	testkit.Until(w.t, name+" prints "+until, func() bool {
		select {
		case <-p.done:
			w.t.Fatalf("%s has ended: %v\n%s", name, p.err, out.String())
		case <-time.After(10 * time.Millisecond):
		}
		return strings.Contains(out.String(), until)
	})
	w.printed = out.String()
}

// stop stops a line that goes on.
func (w *pageWalk) stop(line string) {
	w.t.Helper()
	if w.going[line] == nil {
		w.t.Fatalf("%q does not go on", line)
	}
	w.going[line].kill()
	delete(w.going, line)
}

// node starts a node beside those of the page, for one that the page takes for
// granted.
func (w *pageWalk) node(args ...string) *node {
	w.t.Helper()
	return startNode(w.t, filepath.Join(w.t.TempDir(), "node"), append([]string{"--partitions", "4"}, args...)...)
}

// path is a path here for one of the page.
func (w *pageWalk) path(name string) string { return filepath.Join(w.dir, name) }

// write writes a file in the reader's directory.
func (w *pageWalk) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// mustRun runs a line that is not on the page, to prepare something.
func (w *pageWalk) mustRun(line string) string {
	w.t.Helper()
	out, status := w.run(line)
	if status != 0 {
		w.t.Fatalf("%s: status %d\n%s", line, status, out)
	}
	return out
}

// pageHistory is a log of transactions around the times that the pages have,
// with more of them than the highest txid on a page.
func pageHistory() string {
	var b strings.Builder
	begin := time.Date(2026, 10, 30, 12, 0, 0, 0, time.UTC)
	for i := range 815 {
		fmt.Fprintf(&b, `{"txid":%d,"time":%q,"payload":"transaction %d"}`+"\n", i+1, begin.Add(time.Duration(i)*6*time.Minute).Format(time.RFC3339), i+1)
	}
	return b.String()
}

// filled starts a node with that history in its partitions, which is the one
// that the lines ask.
func (w *pageWalk) filled(args ...string) *node {
	w.t.Helper()
	n := w.node(args...)
	w.set("CANTUS_SERVER", n.url)
	w.write("history.jsonl", pageHistory())
	for p := range 4 {
		w.mustRun(fmt.Sprintf("cantus import %d history.jsonl --keep", p))
	}
	return n
}

// three starts a cluster of three nodes for the lines, with a history of the
// present in partition 0.
func (w *pageWalk) three(args ...string) {
	w.t.Helper()
	c := &cluster{tb: sequential{w.t}, common: append([]string{"--partitions", "4"}, args...), routes: map[string]string{}}
	c.found(3)
	c.startAll()
	c.awaitPlaced()
	w.set("CANTUS_SERVER", c.url())
	var lines strings.Builder
	for i := range 815 {
		fmt.Fprintf(&lines, `{"payload":"transaction %d"}`+"\n", i+1)
	}
	w.write("now.jsonl", lines.String())
	w.mustRun("cantus import 0 now.jsonl")
	w.cluster = c
}

// waits starts a node with an empty directory, which waits until it is added.
func (w *pageWalk) waits(name string) {
	w.t.Helper()
	c := w.cluster
	n := c.prepare(name)
	if err := n.launch(); err != nil {
		w.t.Fatal(err)
	}
	c.nodes = append(c.nodes, n)
	c.awaitHeard(w.t, name, c.nodes[0])
}

// have makes nodes the members of a cluster, each a new one unless it is one
// already.
func (w *pageWalk) have(members ...string) {
	w.t.Helper()
	c := w.cluster
	for _, name := range members {
		if slices.ContainsFunc(c.nodes, func(n *node) bool { return n.name == name }) {
			continue
		}
		w.waits(name)
		w.mustRun("cantus cluster add " + name + " --wait 1m")
		if err := c.node(name).awaitReady(); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, n := range slices.Clone(c.nodes) {
		if !slices.Contains(members, n.name) {
			w.mustRun("cantus cluster remove " + n.name + " --wait 1m")
			w.left(n.name)
		}
	}
	w.set("CANTUS_SERVER", c.url())
}

// left waits until a node that was removed has ended.
func (w *pageWalk) left(name string) {
	w.t.Helper()
	c := w.cluster
	n := c.node(name)
	select {
	case <-n.running().done:
	case <-time.After(patience):
		w.t.Fatalf("%s runs %v after it was removed", name, patience)
	}
	c.nodes = slices.DeleteFunc(c.nodes, func(o *node) bool { return o == n })
	delete(c.routes, name)
	w.set("CANTUS_SERVER", c.url())
}

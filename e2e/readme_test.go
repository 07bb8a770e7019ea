//go:build unix

package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// readme returns the command lines in a section of README.md, in order.
func readme(t *testing.T, section string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+section+"\n")
	if !found {
		t.Fatalf("README.md has no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	for line := range strings.Lines(strings.ReplaceAll(rest, "\\\n", "")) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			lines = append(lines, strings.TrimSpace(command))
		}
	}
	return lines
}

// newcomer runs the lines of a document in an empty directory, with nothing but
// the binary.
type newcomer struct {
	t   *testing.T
	dir string
	env []string
}

func newNewcomer(t *testing.T, env ...string) *newcomer {
	path := "PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH")
	return &newcomer{t, t.TempDir(), append(append(os.Environ(), path), env...)}
}

// run runs a line and returns what it printed, and its exit status.
func (s *newcomer) run(line string) (string, int) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "sh", "-c", line)
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%s: %v", line, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// serve starts a node with a command line; it is killed when the test ends.
func (s *newcomer) serve(line string) *node {
	s.t.Helper()
	n := newNode(s.t, "", s.dir)
	cmd := exec.Command(program, strings.Fields(line)[1:]...)
	cmd.Dir, cmd.Env = s.dir, s.env
	var err error
	if n.process, err = runCommand(cmd); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// TestReadmeQuickStart follows the quick start of README.md.
func TestReadmeQuickStart(t *testing.T) {
	t.Parallel()
	s := newNewcomer(t, "CANTUS_LISTEN=127.0.0.1:0", "CANTUS_HTTP=127.0.0.1:0")
	statuses := []int{0, 3, 0, 0, 0}
	done := 0
	for _, line := range readme(t, "Quick start") {
		if line == "cantus serve" {
			n := s.serve(line)
			if err := n.awaitReady(); err != nil {
				t.Fatal(err)
			}
			s.env = append(s.env, "CANTUS_SERVER="+n.url)
			continue
		}
		if !strings.Contains(line, "cantus append") && !strings.HasPrefix(line, "cantus ") {
			continue // how it is built, and the nats command's
		}
		out, status := s.run(line)
		if done == len(statuses) || status != statuses[done] {
			t.Fatalf("%s: exit status %d, want %v of line %d\n%s", line, status, statuses, done, out)
		}
		done++
		if line == "cantus read 0" && (!strings.Contains(out, "account.42") || strings.Count(out, "deposit") != 2) {
			t.Errorf("%s:\n%s", line, out)
		}
	}
	if done != len(statuses) {
		t.Errorf("README.md has %d command lines, want %d", done, len(statuses))
	}
}

// TestReadmeThreeNodes founds the cluster that README.md describes, on other
// ports, and adds and removes its fourth node.
func TestReadmeThreeNodes(t *testing.T) {
	t.Parallel()
	lines := readme(t, "Three nodes")
	three := len(lines)
	lines = append(lines, readme(t, "A fourth node")...)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`)
	ports := map[string]string{}
	for i, line := range lines {
		lines[i] = address.ReplaceAllStringFunc(line, func(a string) string {
			if a == "127.0.0.1:4222" || a == "127.0.0.1:8222" {
				t.Errorf("%s is taken by the quick start's node: %s", a, line)
			}
			if ports[a] == "" {
				ports[a] = freeAddress(t)
			}
			return ports[a]
		})
	}
	s := newNewcomer(t)
	var nodes []*node
	env := ""
	run := func(line string) string {
		t.Helper()
		out, status := s.run(env + line)
		if status != 0 {
			t.Errorf("%s: exit status %d\n%s", line, status, out)
		}
		return out
	}
	status := ""
	for _, line := range lines[:three] {
		switch {
		case strings.HasPrefix(line, "cantus serve "):
			nodes = append(nodes, s.serve(line))
		case strings.HasPrefix(line, "export "):
			env = line + "\n"
		default:
			for _, n := range nodes {
				if err := n.awaitReady(); err != nil {
					t.Fatal(err)
				}
			}
			status = line
			out := run(line)
			for i := range nodes {
				if name := fmt.Sprintf("n%d", i+1); !regexp.MustCompile(name + ` +member +yes`).MatchString(out) {
					t.Errorf("%s: no ready member %s\n%s", line, name, out)
				}
			}
		}
	}
	if len(nodes) != 3 || env == "" || status == "" {
		t.Fatalf("README.md starts %d nodes, says to clients %q, and looks at the cluster with %q", len(nodes), env, status)
	}

	added, removed := false, false
	for _, line := range lines[three:] {
		switch {
		case strings.HasPrefix(line, "cantus serve "):
			nodes = append(nodes, s.serve(line))
			testkit.Until(t, "n4 waits", func() bool {
				out, _ := s.run(env + status)
				return regexp.MustCompile(`n4 +waiting,`).MatchString(out)
			})
		case strings.HasPrefix(line, "cantus cluster add n4 "):
			run(line)
			if err := nodes[3].awaitReady(); err != nil {
				t.Error(err)
			}
			added = true
		case strings.HasPrefix(line, "cantus cluster remove n4 "):
			run(line)
			testkit.Until(t, "n4 ends", func() bool {
				select {
				case <-nodes[3].process.done:
					return true
				default:
					return false
				}
			})
			removed = true
		default:
			run(line)
		}
	}
	if len(nodes) != 4 || !added || !removed {
		t.Errorf("README.md starts %d nodes, adds the fourth: %v, removes it: %v", len(nodes), added, removed)
	}
}

// freeAddress returns an address on which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

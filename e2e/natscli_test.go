//go:build natscli

package e2e_test

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/workload"
)

// natsLine is a command line of a document, with what the document says that it
// prints, if anything.
type natsLine struct {
	command string
	prints  string // "…" stands for anything
	shown   bool
}

// natsLines takes the lines that run the nats command out of a document's code.
// In a fenced block a line behind "$ " has its output below.
func natsLines(text string) (all []natsLine) {
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		command, shown := strings.CutPrefix(line, "$ ")
		if !strings.HasPrefix(command, "nats ") || !shown && !strings.HasPrefix(lines[i], "    ") {
			continue
		}
		for strings.HasSuffix(command, `\`) {
			i++
			command = strings.TrimSuffix(command, `\`) + strings.TrimSpace(lines[i])
		}
		l := natsLine{command: command, shown: shown}
		for shown && i+1 < len(lines) && !strings.HasPrefix(lines[i+1], "$ ") && lines[i+1] != "```" {
			i++
			l.prints += lines[i] + "\n"
		}
		all = append(all, l)
	}
	return all
}

// natsDocument describes how the command lines of a document are tried: in
// their order, on a node that was prepared for them. Each prints something that
// matches all of its patterns. A command that does not end by itself is stopped
// after act was done. act happens on another node, so that the document's own
// holds nothing else.
type natsDocument struct {
	prepare func(*testing.T, *workload.Client)
	prints  map[string][]string
	act     map[string]func(*testing.T, *workload.Client)
}

// appendAlways returns a function that appends to a partition.
func appendAlways(partition int) func(*testing.T, *workload.Client) {
	return func(t *testing.T, c *workload.Client) { mustAppend(t, c, partition, "seen on the feed") }
}

// refuseSilently sends an append without a reply subject that is refused.
func refuseSilently(t *testing.T, c *workload.Client) {
	t.Helper()
	m := workload.NewAppend(0, "", "Cantus-Nonsense", "x")
	if err := c.Conn.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
}

var natsDocuments = map[string]natsDocument{
	"README.md": {
		prepare: func(t *testing.T, c *workload.Client) { // with the cantus command, just before
			mustAppend(t, c, 0, `{"amount":100}`, "Cantus-Write-Lock", "account.42", "Cantus-High-Water-Mark", "0")
			mustAppend(t, c, 0, `{"amount":50}`, "Cantus-Write-Lock", "account.42", "Cantus-High-Water-Mark", "1")
		},
		prints: map[string][]string{
			`nats req cantus.append.0 '{"amount":50}' -H Cantus-Write-Lock:account.42 -H Cantus-High-Water-Mark:2`: {`"txid":3,`},
			`nats req cantus.read.0 '{"from":1}' --replies=0 --timeout=2s`:                                         {`\{"amount":100\}`, `Cantus-Txid: 3\n`, `Status: 204`, `Cantus-Next: 4\n`},
			`nats sub 'cantus.feed.0.>'`: {`Received on "cantus\.feed\.0\.tx"`, `seen on the feed`},
		},
		act: map[string]func(*testing.T, *workload.Client){`nats sub 'cantus.feed.0.>'`: appendAlways(0)},
	},
	"subjects.md": {
		prepare: func(t *testing.T, c *workload.Client) {
			for range 815 {
				mustAppend(t, c, 0, "x")
			}
			cursor(t, c, 0, "billing", `{"txid":800}`)
		},
		prints: map[string][]string{
			`nats req cantus.append.0 'hello'`: {`"txid":816,`},
			`nats req cantus.append.0 '{"balance":90}' -H 'Cantus-High-Water-Mark: 812' -H 'Cantus-Write-Lock: account.42' -H 'Nats-Msg-Id: 7f2c'`: {`"txid":817,`},
			`nats req cantus.append.key.alice 'hello'`:                                           {`"partition":3,`},
			`nats sub 'cantus.feed.0.>'`:                                                         {`Received on "cantus\.feed\.0\.tx"`, `seen on the feed`},
			`nats req cantus.admin.node.n1.read.0 '{"max":3}' --replies=0 --timeout=5s`:          {`Cantus-Txid: 1\n`, `Cantus-Txid: 3\n`, `Status: 204`},
			`nats req cantus.read.0 '{"from":814,"max":3,"wait":"2s"}' --replies=0 --timeout=5s`: {`Cantus-Txid: 814\n`, `Cantus-Txid: 816\n`, `Status: 204`},
			`nats req cantus.cursor.0.billing ''`:                                                {`"txid":800,`},
			`nats req cantus.cursor.0.billing '{"txid":812,"expected":800}'`:                     {`"txid":812,`},
			`nats req cantus.cursors.0 ''`:                                                       {`"name":"billing","txid":812,`},
			`nats req cantus.info.0 '{"at":"2026-11-01T00:00:00Z"}'`:                             {`"as_of":0,`, `"high_water_mark":81\d,`},
			`nats sub 'cantus.advisory.>'`:                                                       {`Received on "cantus\.advisory\.refused"`, `"endpoint":"append"`},
			`nats micro ls`:                                                                      {`│ cantus +│ \d+\.\d+\.\d+[^ ]* +│`},
			`nats micro info cantus`:                                                             {`Service: cantus`, `Version: \d+\.\d+\.\d+`, `Subject: cantus\.append\.\*`, `Subject: cantus\.cursor\.\*\.\*`},
			`nats micro stats cantus`:                                                            {`│ append +│ [1-9]\d* +│`, `│ cursor +│ [1-9]\d* +│`},
		},
		act: map[string]func(*testing.T, *workload.Client){`nats sub 'cantus.feed.0.>'`: appendAlways(0), `nats sub 'cantus.advisory.>'`: refuseSilently},
	},
	"docs/traces.md": {
		prints: map[string][]string{
			`nats req cantus.append.0 'hello' -H 'traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'`: {`"txid":1,`},
		},
	},
	"examples/shell/README.md": {
		prints: map[string][]string{`nats sub 'cantus.feed.1.>'`: {`Received on "cantus\.feed\.1\.tx"`, `seen on the feed`}},
		act:    map[string]func(*testing.T, *workload.Client){`nats sub 'cantus.feed.1.>'`: appendAlways(1)},
	},
}

// TestNATSCommand runs every line with nats in the documents, unchanged, with
// the real command, and checks what it prints.
func TestNATSCommand(t *testing.T) {
	nats := filepath.Join(t.TempDir(), "nats")
	build := exec.CommandContext(t.Context(), "go", "-C", filepath.Join("..", ".ci", "tools"), "build", "-o", nats, "github.com/nats-io/natscli/nats")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the nats command: %v\n%s", err, out)
	}
	found := map[string][]natsLine{}
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == ".git") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if lines := natsLines(string(text)); len(lines) > 0 {
			found[filepath.ToSlash(path)[len("../"):]] = lines
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(natsDocuments)); !slices.Equal(got, want) {
		t.Fatalf("documents with nats command lines: %q, the test knows %q", got, want)
	}
	for name, lines := range found {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			natsDocuments[name].try(t, nats, lines)
		})
	}
}

func (d natsDocument) try(t *testing.T, nats string, lines []natsLine) {
	n := startNode(t, t.TempDir(), "--partitions", "4")
	c := dial(t, n.url)
	if d.prepare != nil {
		d.prepare(t, c)
	}
	beside := startNode(t, t.TempDir())
	other := dial(t, beside.url)
	env := append(os.Environ(), "HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir(),
		"PATH="+filepath.Dir(nats)+string(os.PathListSeparator)+os.Getenv("PATH"))
	tried := map[string]bool{}
	for _, l := range lines {
		tried[l.command] = true
		patterns := d.prints[l.command]
		if l.shown {
			patterns = []string{`^\s*` + strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(l.prints)), "…", ".*") + `\s*$`}
		}
		if patterns == nil {
			t.Errorf("nobody says what this prints: %s", l.command)
			continue
		}
		url, act := n.url, func() {}
		if there := d.act[l.command]; there != nil {
			url, act = beside.url, func() { there(t, other) }
		}
		printed, err := runNATS(t, append(env, "NATS_URL="+url), l, patterns, act, d.act[l.command] != nil)
		if err != nil {
			t.Errorf("%s: %v\n%s", l.command, err, printed)
		}
	}
	for command := range d.prints {
		if !tried[command] {
			t.Errorf("the document has no line any more: %s", command)
		}
	}
}

// runNATS runs a command line. A command that does not end by itself is stopped
// when it has printed what it should. Until then act is repeated, since it is
// not known when the command has subscribed.
func runNATS(t *testing.T, env []string, l natsLine, patterns []string, act func(), goesOn bool) (printed string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out output
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+l.command)
	cmd.Env, cmd.Stdout = env, &out
	if !l.shown {
		cmd.Stderr = &out // headers are printed there
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for goesOn {
		select {
		case err := <-ended:
			return out.String(), fmt.Errorf("it ended: %v", err) //nolint:errorlint // it may be nil
		case <-ctx.Done():
			<-ended
			return out.String(), missing(out.String(), patterns)
		case <-tick.C:
			act()
		}
		if missing(out.String(), patterns) == nil {
			cancel()
			<-ended
			return out.String(), nil
		}
	}
	if err := <-ended; err != nil {
		return out.String(), err
	}
	printed = regexp.MustCompile(`\n{2,}`).ReplaceAllString(out.String(), "\n") // the command is generous with them
	return printed, missing(printed, patterns)
}

// missing returns an error that names a pattern that does not match what was
// printed, nil if all match.
func missing(printed string, patterns []string) error {
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(printed) {
			return fmt.Errorf("it does not print %s", p)
		}
	}
	return nil
}

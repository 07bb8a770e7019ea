package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/internal/commandlines"
)

// TestDocumentedCommandLines parses every command line of the documents, and
// every `cantus …` in their text, with the real grammar: a flag or a command
// that does not exist, or a value that no flag takes, is an error.
func TestDocumentedCommandLines(t *testing.T) {
	lines, err := commandlines.All("../..")
	if err != nil {
		t.Fatal(err)
	}
	parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	known, whole := variables(t, parser), 0
	for _, l := range lines {
		for _, c := range commandlines.Split(l.Text) {
			checkVariablesSet(t, l, c, known)
			if c.Program() != "cantus" {
				continue
			}
			whole++
			if err := parseDocumented(t, parser, c.Words[1:]); err != nil {
				t.Errorf("%s:%d: %s: %v; cantus %s --help says what is right", l.Page, l.Number, l.Text, err, c.Words[min(1, len(c.Words)-1)])
			}
		}
	}
	said := map[string]bool{}
	for _, l := range mentioned(t) {
		if said[l.Text] {
			continue
		}
		said[l.Text] = true
		for _, c := range commandlines.Split(l.Text) {
			// What is mentioned need not be complete.
			if err := parseDocumented(t, parser, c.Words[1:]); err != nil && !incomplete.MatchString(err.Error()) {
				t.Errorf("%s:%d: `%s`: %v", l.Page, l.Number, l.Text, err)
			}
		}
	}
	if whole < 100 || len(said) < 50 {
		t.Errorf("the documents have %d command lines and mention %d: the test would see little", whole, len(said))
	}
}

var (
	// incomplete matches what the parser says of a command line that only lacks
	// something.
	incomplete = regexp.MustCompile(`^(?:missing |expected |--[\w-]+: expected \w+ value but got "EOL")`)
	noFile     = regexp.MustCompile(`(?:stat|open) (\S+): no such file`)
	// standsFor has what the documents write for any value of a kind. "…" behind
	// a flag is an address, and otherwise anything.
	standsFor = map[string]string{"P": "0", "TIME": "1m", "HOST:PORT": "127.0.0.1:1"}
)

// parseDocumented parses the words of a documented command line. Files need not
// exist.
func parseDocumented(t *testing.T, parser *kong.Kong, words []string) error {
	t.Helper()
	var args []string
	for i, w := range words {
		switch stands, is := standsFor[w]; {
		case is:
			args = append(args, stands)
		case w == "…" && i > 0 && strings.HasPrefix(words[i-1], "--"):
			args = append(args, "127.0.0.1:1")
		case w != "…":
			args = append(args, w)
		}
	}
	for {
		forget := kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error { // what was set before
			switch v := node.(type) {
			case *kong.Flag:
				v.Set = false
			case *kong.Value:
				v.Set = false
			}
			return next(nil)
		})
		_, err := parser.Parse(spellHelp(args))
		err = errors.Join(forget, err)
		if err == nil {
			return nil
		}
		m := noFile.FindStringSubmatch(err.Error())
		i := slices.IndexFunc(args, func(a string) bool { return m != nil && (a == m[1] || filepath.Base(a) == filepath.Base(m[1])) })
		if i < 0 {
			return err
		}
		if args[i] = filepath.Join(t.TempDir(), "file"); os.WriteFile(args[i], nil, 0o600) != nil {
			t.Fatal("no file")
		}
	}
}

// checkVariablesSet checks that the variables with our prefix that a command
// line sets are those of flags, or ones that tests read.
func checkVariablesSet(t *testing.T, l commandlines.Line, c commandlines.Command, known []string) {
	t.Helper()
	set := c.Set
	if p := c.Program(); p == "export" || p == "env" {
		set = append(slices.Clone(set), c.Words[1:]...)
	}
	for _, s := range set {
		name, _, is := strings.Cut(s, "=")
		if is && strings.HasPrefix(name, "CANTUS_") && !slices.Contains(known, name) {
			t.Errorf("%s:%d: %s: no flag has the variable %s", l.Page, l.Number, l.Text, name)
		}
	}
}

// variables returns the environment variables of all flags, and those of tests.
func variables(t *testing.T, parser *kong.Kong) (all []string) {
	t.Helper()
	err := kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error {
		if f, is := node.(*kong.Flag); is {
			all = append(all, f.Envs...)
		}
		return next(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(all, "CANTUS_LONG", "CANTUS_SIM_SEED", "CANTUS_SIM_SCRIPT", "CANTUS_SIM_RUNS")
}

// mentioned returns what the text of the documents has in backticks that begins
// with the name of the program. The changelog also has what there was.
func mentioned(t *testing.T) (all []commandlines.Line) {
	t.Helper()
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/adr/*.md", "examples/*/*.md"} {
		found, err := filepath.Glob(filepath.Join("../..", pattern))
		if err != nil || len(found) == 0 {
			t.Fatal("no documents", pattern, err)
		}
		pages = append(pages, found...)
	}
	for _, page := range pages {
		if filepath.Base(page) == "CHANGELOG.md" {
			continue
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range regexp.MustCompile("`(cantus\\s[^`]+)`").FindAllSubmatchIndex(text, -1) {
			mention := strings.Join(strings.Fields(string(text[at[2]:at[3]])), " ")
			if mention != "cantus packed feed" { // the beginning of a signed text
				all = append(all, commandlines.Line{Page: page, Number: 1 + strings.Count(string(text[:at[0]]), "\n"), Text: mention})
			}
		}
	}
	return all
}

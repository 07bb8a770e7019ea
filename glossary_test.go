package cantus_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestGlossaryWordsAreInUse checks that the code uses each word of the
// glossary, in a comment or as a name, and that the rows are in alphabetical
// order, each word once.
func TestGlossaryWordsAreInUse(t *testing.T) {
	words := glossaryWords(t)
	if len(words) < 60 {
		t.Fatalf("the glossary has %d words: the test would see little", len(words))
	}
	for i, word := range words[1:] {
		if word <= words[i] {
			t.Errorf("%q comes after %q in the glossary", word, words[i])
		}
	}
	code := sources(t)
	for _, word := range words {
		// Words of several parts may be broken over lines, or joined by
		// hyphens.
		pattern := strings.ReplaceAll(regexp.QuoteMeta(word), " ", "[ -]")
		if !regexp.MustCompile(`(?i)\b` + pattern + `(s|es|d|ed)?\b`).MatchString(code) {
			t.Errorf("the code does not use %q: take it out of docs/glossary.md, or say what it is called now", word)
		}
	}
}

// twoMeanings are the words of the glossary that have a second one, and why
// both stay.
var twoMeanings = map[string]string{
	"drain":    "NATS clients drain too; the format of histories has the third",
	"follower": "the client's type; Raft's term",
	"frame":    "the term of both formats",
	"member":   "of a cluster and of a consumer group, as elsewhere",
	"outcome":  "a verdict's is what becomes the transaction's",
	"point":    "of a tree of names and of a chain: each is the usual word",
	"rebuild":  "both make something anew from the log",
	"segment":  "a piece of a log that is a file of its own, in both; other logs call theirs so",
	"token":    "NATS's term; other clusters have such a token too",
}

// TestGlossaryWordsHaveOneMeaning checks that a row of the glossary has one
// meaning, or is known to have more.
func TestGlossaryWordsHaveOneMeaning(t *testing.T) {
	text, err := os.ReadFile("docs/glossary.md")
	if err != nil {
		t.Fatal(err)
	}
	more := regexp.MustCompile(`(?m)^\| ([^|]*) \| (?:.*; (?:also|of an?|in an?) .*) \|$`)
	found := map[string]bool{}
	for _, m := range more.FindAllStringSubmatch(string(text), -1) {
		found[m[1]] = true
		if twoMeanings[m[1]] == "" && m[1] != "high-water mark" { // a partition's, and a client's of it
			t.Errorf("%q has two meanings: find another word for one of them", m[1])
		}
	}
	for word := range twoMeanings {
		if !found[word] {
			t.Errorf("%q has one meaning: remove it from the list", word)
		}
	}
}

// glossaryWords returns the words of the glossary, in its order.
func glossaryWords(t *testing.T) (words []string) {
	t.Helper()
	text, err := os.ReadFile("docs/glossary.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rows, _ := strings.Cut(string(text), "\n|---|---|\n")
	for row := range strings.Lines(rows) {
		cells := strings.Split(row, "|")
		if len(cells) != 4 {
			t.Fatalf("not a row of two cells: %s", row)
		}
		words = append(words, strings.TrimSpace(cells[1]))
	}
	return words
}

// sources returns the text of all Go files but this one, without comment marks
// and line breaks.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	breaks := regexp.MustCompile(`\s*\n\s*(//)?\s*`)
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains([]string{".git", "node_modules", "testdata"}, entry.Name()) {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" || path == "glossary_test.go" {
			return nil
		}
		text, err := os.ReadFile(path)
		all.Write(breaks.ReplaceAll(text, []byte(" ")))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

package cantus_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// columns is where prose wraps. A comment's indentation does not count.
const columns = 80

// TestProseIsWrapped checks that no line of a document or a comment is longer
// than 80 columns, unless it cannot be broken: it is a table, code, a link or a
// command.
func TestProseIsWrapped(t *testing.T) {
	seen := 0
	for _, path := range append(proseFiles(t), "CHANGELOG.md", "docs/performance-history.md") {
		var prose func(line string) (string, bool)
		switch filepath.Ext(path) {
		case ".md":
			prose = documentProse()
		case ".go":
			prose = commentProse
		default:
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte("// Output:")) {
			continue // lines of output are as long as they are
		}
		for i, line := range strings.Split(string(text), "\n") {
			if p, ok := prose(line); ok {
				seen++
				if tooLong(p) {
					t.Errorf("%s:%d: %d columns: wrap at %d", path, i+1, utf8.RuneCountInString(p), columns)
				}
			}
		}
	}
	if seen < 5000 {
		t.Errorf("%d lines of prose: the test would see little", seen)
	}
}

// commentProse returns a line comment of Go without its indentation. The code
// in a comment is not prose.
func commentProse(line string) (string, bool) {
	line = strings.TrimLeft(line, "\t")
	return line, strings.HasPrefix(line, "// ") && !strings.HasPrefix(line, "// \t")
}

// documentProse returns a function that returns the lines of a Markdown
// document which are prose: neither code nor tables nor headings.
func documentProse() func(line string) (string, bool) {
	fenced, indented, blank := false, false, true
	return func(line string) (string, bool) {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "```") {
			fenced = !fenced
			return "", false
		}
		indented = strings.HasPrefix(line, "    ") && (blank || indented)
		blank = trimmed == ""
		return line, !blank && !fenced && !indented && !strings.ContainsAny(trimmed[:1], "|#<")
	}
}

var (
	// unbroken matches what stays in one line: code and links.
	unbroken = regexp.MustCompile("`[^`]*`|!?\\[[^\\]]*\\]\\([^)]*\\)")
	// margin matches the indentation of a line and the mark of its list item or
	// comment.
	margin = regexp.MustCompile(`^(//)?\s*([-*]\s+|\d+\.\s+)?`)
)

// tooLong reports whether a line of prose is too long and has a place to break
// it.
func tooLong(line string) bool {
	if utf8.RuneCountInString(line) <= columns {
		return false
	}
	start := len(margin.FindString(line))
	body := unbroken.ReplaceAllStringFunc(line[start:], func(s string) string { return strings.ReplaceAll(s, " ", "_") })
	at := strings.IndexByte(body, ' ')
	return at >= 0 && utf8.RuneCountInString(line[:start]+body[:at]) <= columns
}

// TestLongLinesAreFound checks tooLong against examples.
func TestLongLinesAreFound(t *testing.T) {
	long := strings.Repeat("word ", 20)
	for _, bad := range []string{long, "- " + long, "// " + long, "see [a link](x.md), " + long} {
		if !tooLong(bad) {
			t.Errorf("%q is not found", bad)
		}
	}
	for _, good := range []string{"short", "`" + long + "`.", "- [" + long + "](x.md)", "  [" + long + "](x.md)", strings.Repeat("é", columns)} {
		if tooLong(good) {
			t.Errorf("%q is found", good)
		}
	}
}

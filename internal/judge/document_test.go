package judge_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/judge"
)

var update = flag.Bool("update", false, "write the classes into docs/checking.md")

const document = "../../docs/checking.md"

// TestDocumentHasTheClasses checks that docs/checking.md ends with a table of
// all classes.
func TestDocumentHasTheClasses(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	const head = "| class | means |\n|---|---|\n"
	before, rows, is := strings.Cut(string(text), head)
	var want strings.Builder
	for _, c := range judge.Classes() {
		fmt.Fprintf(&want, "| `%s` | %s |\n", c, c.Meaning())
	}
	if *update {
		if err := os.WriteFile(document, []byte(before+head+want.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !is || rows != want.String() {
		t.Errorf("%s ends with another table; go test ./internal/judge -run Document -update writes it:\n%s", document, want.String())
	}
}

// TestDocumentExamples checks that the examples of docs/checking.md are a
// history, and that nothing is wrong with it.
func TestDocumentExamples(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		lines.WriteString(block[1])
	}
	h, err := judge.Decode(strings.NewReader(lines.String()))
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Operations) == 0 || len(h.Drains) == 0 || len(h.Drains[0].Transactions) != 2 {
		t.Errorf("the examples have %d operations, %d logs", len(h.Operations), len(h.Drains))
	}
	for _, f := range judge.Check(h).Findings {
		t.Errorf("%s: %s", f.Class, f.Text)
	}
}

package cantus_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDecisionsAreListed checks that docs/adr/README.md lists each decision by
// the title of its page, in order, and nothing else.
func TestDecisionsAreListed(t *testing.T) {
	pages, err := filepath.Glob("docs/adr/[0-9]*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal("no decisions", err)
	}
	var want strings.Builder
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		title, _, _ := strings.Cut(string(text), "\n")
		want.WriteString("- [" + strings.TrimPrefix(title, "# ") + "](" + filepath.Base(page) + ")\n")
	}
	list, err := os.ReadFile("docs/adr/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(string(list), "\n\n- ")
	if got = "- " + got; got != want.String() {
		t.Errorf("docs/adr/README.md lists\n%s\nthe pages are\n%s", got, want.String())
	}
}

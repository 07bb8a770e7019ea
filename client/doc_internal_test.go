package client

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The overview in doc.go names every file of the package, and no other.
func TestTheOverviewNamesEveryFile(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, overview, _ := strings.Cut(string(text), "\npackage client\n")
	named := regexp.MustCompile(`\b[a-z]+\.go\b`).FindAllString(overview, -1)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if file != "doc.go" && !strings.HasSuffix(file, "_test.go") && !slices.Contains(named, file) {
			t.Errorf("doc.go does not name %s", file)
		}
	}
	for _, file := range named {
		// The library nats.go looks like a file.
		if file != "nats.go" && !slices.Contains(files, file) {
			t.Errorf("doc.go names %s, which does not exist", file)
		}
	}
}

package raftstore_test

import (
	"os"
	"strings"
	"testing"
)

// The package comment names every file.
func TestThePackageCommentNamesEveryFile(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := f.Name()
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") && name != "doc.go" && !strings.Contains(string(doc), name) {
			t.Errorf("doc.go does not name %s", name)
		}
	}
}

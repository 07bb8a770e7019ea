package cantus_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestDocumentsNameFilesThatExist checks that each path of ours in a document's
// code, such as `broker/queue.go` or `wal/journal`, is a file or a folder.
func TestDocumentsNameFilesThatExist(t *testing.T) {
	path := regexp.MustCompile("`((?:broker|cantustest|client|cmd|docs|e2e|examples|internal|lockmgr|raftstore|subjects|wal|\\.ci)/[\\w./-]+)`")
	found := 0
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/adr/*.md"} {
		documents, err := filepath.Glob(pattern)
		if err != nil || len(documents) == 0 {
			t.Fatal("no documents", pattern, err)
		}
		for _, document := range documents {
			text, err := os.ReadFile(document)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range path.FindAllSubmatch(text, -1) {
				found++
				if _, err := os.Stat(string(name[1])); err != nil {
					t.Errorf("%s names %s: %v", document, name[1], err)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("the documents name %d files: the test would see little", found)
	}
}

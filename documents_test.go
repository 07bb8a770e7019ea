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

// TestDeployIsListed checks that deploy/README.md has a line for each file
// there, or for its folder, and that what its links lead to exists.
func TestDeployIsListed(t *testing.T) {
	text, err := os.ReadFile("deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	linked := map[string]bool{}
	for _, link := range regexp.MustCompile(`\]\(([^)#]+)(#[\w-]+)?\)`).FindAllStringSubmatch(string(text), -1) {
		path := filepath.Join("deploy", link[1])
		linked[path] = true
		target, err := os.ReadFile(path)
		switch {
		case link[2] == "":
			_, err = os.Stat(path)
		case err == nil && !slices.Contains(anchorsOf(string(target)), link[2]):
			t.Errorf("deploy/README.md: %s has no section %s", path, link[2])
		}
		if err != nil {
			t.Errorf("deploy/README.md: %v", err)
		}
	}
	if err := filepath.WalkDir("deploy", func(path string, entry fs.DirEntry, err error) error {
		if entry.IsDir() && linked[path] {
			return fs.SkipDir
		}
		if err == nil && !entry.IsDir() && path != "deploy/README.md" && !linked[path] {
			t.Errorf("deploy/README.md does not say what %s is", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// anchorsOf returns the anchors of a document's headings.
func anchorsOf(text string) (all []string) {
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\w -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		all = append(all, "#"+strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

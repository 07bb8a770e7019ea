package cantus_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryFuzzTargetIsListed checks that docs/fuzzing.md lists each fuzz
// target once, by its package and name, and nothing else, and that each has a
// corpus.
func TestEveryFuzzTargetIsListed(t *testing.T) {
	text, err := os.ReadFile("docs/fuzzing.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, row := range regexp.MustCompile("(?m)\\| `([\\w/]+)` (Fuzz\\w+) \\|$").FindAllStringSubmatch(string(text), -1) {
		listed[row[1]+" "+row[2]]++
	}
	function := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	found := 0
	if err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range function.FindAllStringSubmatch(string(source), -1) {
			found++
			dir := filepath.ToSlash(filepath.Dir(path))
			if listed[dir+" "+m[1]] != 1 {
				t.Errorf("docs/fuzzing.md lists `%s` %s %d times", dir, m[1], listed[dir+" "+m[1]])
			}
			delete(listed, dir+" "+m[1])
			corpus, err := os.ReadDir(filepath.Join(dir, "testdata", "fuzz", m[1]))
			if err != nil || len(corpus) == 0 {
				t.Errorf("%s of %s has no corpus: %v", m[1], dir, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for row := range listed {
		t.Errorf("docs/fuzzing.md lists %s, which does not exist", row)
	}
	if found < 50 {
		t.Errorf("%d fuzz targets: the test would see little", found)
	}
}

package cantus_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryInvariantIsCheckedAndBroken checks that each assertion of package
// invariant is in the code of the product, and that a test makes it false, or
// has its event occur.
func TestEveryInvariantIsCheckedAndBroken(t *testing.T) {
	list, err := os.ReadFile("internal/invariant/list.go")
	if err != nil {
		t.Fatal(err)
	}
	var product, tests strings.Builder
	for _, folder := range []string{"broker", "raftstore", "wal"} {
		files, err := filepath.Glob(folder + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatal("no code in", folder, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") {
				tests.Write(text)
			} else {
				product.Write(text)
			}
		}
	}
	names := regexp.MustCompile(`(?m)^\t(\w+) += declare\(`).FindAllStringSubmatch(string(list), -1)
	for _, name := range names {
		if !regexp.MustCompile(`\binvariant\.` + name[1] + `\.(Check|Reached)\(`).MatchString(product.String()) {
			t.Errorf("%s is checked nowhere", name[1])
		}
		if !regexp.MustCompile(`(Violates\(.*|\{)invariant\.` + name[1] + `\b`).MatchString(tests.String()) {
			t.Errorf("no test makes %s false", name[1])
		}
	}
	if len(names) < 20 {
		t.Errorf("%d assertions: the test would see little", len(names))
	}
}

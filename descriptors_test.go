package cantus_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// No descriptor has two files. The garbage collector closes each of them, and
// the second one closes whatever has the number by then: a pipe of a test, from
// which it reads for ever, or a file of the log.
func TestADescriptorHasOneFile(t *testing.T) {
	second := regexp.MustCompile(`os\.NewFile\([^)]*\.Fd\(\)`)
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err == nil && second.Match(source) {
			t.Errorf("%s makes a second os.File of a descriptor", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDefectsFitTheSource checks that every text to replace is there, once.
func TestDefectsFitTheSource(t *testing.T) {
	names := map[string]bool{}
	for _, d := range defects {
		if names[d.name] || d.what == "" || d.simulation().test == "" {
			t.Errorf("%s: no name of its own, or no description", d.name)
		}
		names[d.name] = true
		for _, e := range d.edits {
			b, err := os.ReadFile(filepath.Join("../../..", e.file))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(b), e.old); n != 1 {
				t.Errorf("%s: %s has %q %d times, want once", d.name, e.file, e.old, n)
			}
		}
	}
}

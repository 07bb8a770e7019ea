package cantus_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every kind of advisory that a node publishes is in the contract.
func TestAdvisoriesAreInTheContract(t *testing.T) {
	contract, err := os.ReadFile("subjects.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(contract), "\n## Advisories\n")
	if !ok {
		t.Fatal("subjects.md has no section on advisories")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	files, err := filepath.Glob("broker/*.go")
	if err != nil {
		t.Fatal(err)
	}
	published := regexp.MustCompile(`\b(?:advise|publish|encode|encodeAdvisory)\("([a-z_]+)", (?:fields|map)`)
	found := map[string]bool{}
	for _, f := range files {
		source, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range published.FindAllStringSubmatch(string(source), -1) {
			found[m[1]] = true
		}
	}
	for kind := range found {
		if !strings.Contains(section, "\n| `"+kind+"` |") {
			t.Errorf("subjects.md does not list the advisory %q", kind)
		}
	}
	if len(found) < 10 {
		t.Errorf("only %v found", found)
	}
}

package cantus_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestThreatModelNamesItsTests checks that each line of docs/threat-model.md
// names tests that exist, or says that nothing stops the attack.
func TestThreatModelNamesItsTests(t *testing.T) {
	text, err := os.ReadFile("docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	code := sources(t)
	name := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
	lines := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || strings.HasPrefix(cells[1], "---") || cells[4] == " test " {
			continue
		}
		lines++
		tests := name.FindAllStringSubmatch(cells[4], -1)
		if len(tests) == 0 && !strings.Contains(line, "**not stopped**") {
			t.Errorf("no test, and not said that nothing stops it: %s", line)
		}
		for _, test := range tests {
			if !strings.Contains(code, "func "+test[1]+"(") {
				t.Errorf("there is no %s: %s", test[1], line)
			}
		}
	}
	if lines < 30 {
		t.Errorf("%d lines: the test would see little", lines)
	}
}

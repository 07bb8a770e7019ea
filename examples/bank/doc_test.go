package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
)

// TestTheDocumentsCommandsRunInOrder runs the command lines of the package's
// documentation in order, except those that take long.
func TestTheDocumentsCommandsRunInOrder(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	l := cantustest.New(t, cantustest.Options{})
	db := filepath.Join(t.TempDir(), "bank.db")
	ran := 0
	for line := range strings.Lines(string(text)) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "//\tbank ")
		if !ok || command == "watch" || strings.HasPrefix(command, "load ") {
			continue
		}
		if out, err := do(t, l, db, command); err != nil {
			t.Errorf("bank %s: %v\n%s", command, err, out)
		}
		ran++
	}
	if ran < 5 {
		t.Errorf("the documentation has %d commands: the test would see little", ran)
	}
}

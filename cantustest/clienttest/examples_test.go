package client_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
)

// TestExamples runs the examples of the client's module, each with a node of
// its own. In the module itself they only compile: it has no node, and no
// driver of a database.
func TestExamples(t *testing.T) {
	for folder, atLeast := range map[string]int{"client": 8, "client/group": 1, "client/sqlview": 1} {
		t.Run(folder, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join("..", "..", filepath.FromSlash(folder))
			binary := filepath.Join(t.TempDir(), "examples.exe")
			must(t, exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, "-overlay", withDrivers(t), "github.com/cantuslog/cantus/"+folder))
			all := strings.Fields(must(t, exec.CommandContext(t.Context(), binary, "-test.list", "^Example")))
			if len(all) < atLeast {
				t.Errorf("%s has %d examples, %v: the test would see little", folder, len(all), all)
			}
			for _, name := range all {
				l := cantustest.New(t, cantustest.Options{})
				cmd := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run", "^"+name+"$")
				cmd.Dir, cmd.Env = dir, append(os.Environ(), "CANTUS_EXAMPLES="+l.URL())
				if out := must(t, cmd); !strings.Contains(out, "--- PASS: "+name+" ") {
					t.Errorf("%s did not run:\n%s", name, out)
				}
			}
		})
	}
}

// withDrivers returns a file for go build's -overlay. It adds a test file to
// sqlview that imports what its example needs.
func withDrivers(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	driver := filepath.Join(dir, "driver_test.go")
	if err := os.WriteFile(driver, []byte("package sqlview_test\n\nimport _ \"modernc.org/sqlite\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	to, err := filepath.Abs(filepath.Join("..", "..", "client", "sqlview", "driver_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{to: driver}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// must runs a command and returns what it printed.
func must(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

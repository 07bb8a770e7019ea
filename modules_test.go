package cantus_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ofClient are the modules that a program gets with the client: ours, nats.go,
// and what nats.go requires. Of golang.org/x/net, term and text it gets the
// go.mod files only.
var ofClient = []string{
	module + "/client",
	module + "/subjects",
	"github.com/klauspost/compress",
	"github.com/nats-io/nats.go",
	"github.com/nats-io/nkeys",
	"github.com/nats-io/nuid",
	"golang.org/x/crypto",
	"golang.org/x/net",
	"golang.org/x/sys",
	"golang.org/x/term",
	"golang.org/x/text",
}

// TestClientBringsOnlyNATS checks which modules a program gets that imports the
// client. It makes the program with the commands of README.md, and without the
// network.
func TestClientBringsOnlyNATS(t *testing.T) {
	for _, imports := range [][]string{
		{module + "/client"},
		{module + "/client", module + "/client/group", module + "/client/sqlview"},
	} {
		dir := newProgram(t, imports)
		goIn(t, dir, "build", "./...")
		all := slices.DeleteFunc(lines(goIn(t, dir, "list", "-m", "-f", "{{if not .Main}}{{.Path}}{{end}}", "all")), isEmpty)
		if !slices.Equal(all, ofClient) {
			t.Errorf("a program that imports %v gets the modules\n%s\nand not\n%s", imports, strings.Join(all, "\n"), strings.Join(ofClient, "\n"))
		}
		linked := slices.DeleteFunc(lines(goIn(t, dir, "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./...")), isEmpty)
		if n := len(slices.Compact(slices.Sorted(slices.Values(linked)))); n > 10 {
			t.Errorf("packages of %d modules are linked in: at most 10 are allowed", n)
		}
	}
}

func isEmpty(line string) bool { return line == "" }

func lines(text string) []string { return strings.Split(text, "\n") }

// newProgram makes a program that imports packages of this checkout, and
// returns its directory.
func newProgram(t *testing.T, imports []string) string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile("client/go.sum")
	if err != nil {
		t.Fatal(err)
	}
	clone, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source := "package main\n\nimport (\n\t_ \"" + strings.Join(imports, "\"\n\t_ \"") + "\"\n)\n\nfunc main() {}\n"
	for name, content := range map[string]string{"main.go": source, "go.sum": string(sums)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	commands := regexp.MustCompile(`(?m)^    go (mod [^#\n]*)`).FindAllStringSubmatch(strings.ReplaceAll(string(readme), "\\\n", ""), -1)
	if len(commands) != 3 {
		t.Fatalf("README.md has the commands %q: the test expects init, edit and tidy", commands)
	}
	for _, command := range commands {
		goIn(t, dir, strings.Fields(strings.ReplaceAll(command[1], "/PATH/TO/CLONE", clone))...)
	}
	return dir
}

// goIn runs the go command in a directory, without the network, and returns
// what it printed.
func goIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOPROXY=off", "GOWORK=off")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, &stderr)
	}
	return string(out)
}

// TestModulesAgree checks that our modules require each other in the version
// that is released next, and other modules in the versions with which the root
// tests them.
func TestModulesAgree(t *testing.T) {
	root, own := requirements(t, "go.mod"), map[string]bool{}
	for _, file := range []string{"go.mod", "client/go.mod", "client/oteltrace/go.mod", "subjects/go.mod"} {
		for path, version := range requirements(t, file) {
			if root[path] != version {
				t.Errorf("%s requires %s %s, go.mod %s: go get it in both", file, path, version, root[path])
			}
			if strings.HasPrefix(path, module+"/") {
				own[version] = true
			}
		}
	}
	if len(own) != 1 {
		t.Errorf("the go.mod files require our own modules in the versions %v: they are released together", slices.Sorted(maps.Keys(own)))
	}
}

// requirements returns the modules that a go.mod file requires, and their
// versions.
func requirements(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^(?:require |\t)(\S+) (v\S+)( // indirect)?$`).FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = m[2]
	}
	return all
}

package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

const containerfile = "../../deploy/container/Containerfile"

// The container file has no mistake that its parser finds, builds with the Go
// of go.mod, and gives an image that does not run as root and has only the
// program.
func TestContainerfile(t *testing.T) {
	f, err := os.Open(containerfile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parsed, err := parser.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Error(w.Short)
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 2 || stages[0].Name != "build" {
		t.Fatalf("there are %d stages", len(stages))
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(mod))[1]
	if !strings.Contains(stages[0].BaseName, "golang:"+goVersion+"-") {
		t.Errorf("it builds with %s, go.mod with Go %s", stages[0].BaseName, goVersion)
	}
	if !strings.Contains(stages[1].BaseName, "/distroless/static-") {
		t.Errorf("the image is based on %s", stages[1].BaseName)
	}
	user := ""
	for _, c := range stages[1].Commands {
		switch c := c.(type) {
		case *instructions.UserCommand:
			user = c.User
		case *instructions.RunCommand:
			t.Error("the image has no shell to run anything with")
		case *instructions.CopyCommand:
			if c.From != "build" {
				t.Errorf("it copies %v, which the build did not make", c.SourcePaths)
			}
		case *instructions.AddCommand:
			t.Error("ADD fetches and unpacks: use COPY")
		case *instructions.EntrypointCommand:
			if c.PrependShell {
				t.Error("the entry point needs a shell")
			}
		}
	}
	if uid, _, _ := strings.Cut(user, ":"); uid != "65532" {
		t.Errorf("the user is %q: Kubernetes needs a number that is not 0, the manifests' one", user)
	}
}

// The build has the go.mod of every module that the program's go.mod has in a
// folder before it fetches the others: without one of them it fails.
func TestContainerModules(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(containerfile)
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(string(text), "\nRUN go mod download\n")
	folders := regexp.MustCompile(`(?m)=> \./(\S+)$`).FindAllStringSubmatch(string(mod), -1)
	if !found || len(folders) < 2 {
		t.Fatalf("%s does not fetch modules, or go.mod replaces %v", containerfile, folders)
	}
	for _, folder := range folders {
		if !regexp.MustCompile(`(?m)^COPY ` + folder[1] + `/go\.mod .*` + folder[1] + `/$`).MatchString(before) {
			t.Errorf("%s does not copy %s/go.mod before it fetches modules", containerfile, folder[1])
		}
	}
}

// The build gets every folder that the program is made of.
func TestContainerContext(t *testing.T) {
	ignore, err := os.ReadFile(containerfile + ".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.Dir}}", "./cmd/cantus")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, dir := range strings.Fields(string(out)) {
		path, err := filepath.Rel(root, dir)
		if err != nil || strings.HasPrefix(path, "..") {
			continue // of another module
		}
		seen++
		folder, _, _ := strings.Cut(path, string(filepath.Separator))
		if !strings.Contains(string(ignore), "\n!"+folder+"\n") {
			t.Errorf("%s.dockerignore leaves out %s, of which %s is part", containerfile, folder, path)
		}
	}
	if seen < 10 {
		t.Errorf("the program is made of %d packages of this repository", seen)
	}
}

package cantus_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/commandlines"
)

// ranBy says what runs the command lines of the documents: a test, by its file
// and its name, or nothing, for a reason. The first entry counts whose page and
// pattern match. A line of cantus is parsed by TestDocumentedCommandLines of
// cmd/cantus in any case.
//
// The best place for a new page is walks in e2e/docswalks_test.go, which runs
// every line of it.
var ranBy = []struct {
	page, lines string // lines is a pattern, "" for all
	file, test  string
	not         string // why nothing runs them
}{
	{page: "README.md", lines: `^nats `, file: "e2e/natscli_test.go", test: "TestNATSCommand"},
	{page: "README.md", lines: `^go build `, file: "e2e/node_test.go", test: "buildAndRun"},
	{page: "README.md", lines: `^export PATH=`, file: "e2e/readme_test.go", test: "newNewcomer"},
	{page: "README.md", lines: `^go test `, not: "it runs this test"},
	{page: "README.md", lines: `^go get `, not: "there is no release yet"},
	{page: "README.md", lines: `^go mod `, file: "modules_test.go", test: "PATH/TO/CLONE"},
	{page: "README.md", lines: `10\.0\.0\.|openssl|upgrade check`, file: "e2e/docswalks_test.go", test: "10\\.0\\.0\\.|openssl|upgrade check"},
	{page: "README.md", lines: `^echo |^cantus (?:serve|read 0|status)$`, file: "e2e/readme_test.go", test: "TestReadmeQuickStart"},
	{page: "README.md", lines: `127\.0\.0\.1:|^cantus cluster `, file: "e2e/readme_test.go", test: "TestReadmeThreeNodes"},
	{page: "subjects.md", lines: `^nats `, file: "e2e/natscli_test.go", test: "TestNATSCommand"},
	{page: "subjects.md", lines: `accounts\.conf`, file: "e2e/docswalks_test.go", test: "prepareAccounts"},
	{page: "docs/security.md", lines: `^nsc `, not: "nsc is not part of the tests: TestSecurityOperators makes what it makes, with the permissions of these lines"},
	{page: "docs/security.md", lines: `^systemctl |^rm `, file: "e2e/security_test.go", test: "replaceToken"},
	{page: "docs/security.md", lines: `^kill |^openssl `, file: "e2e/security_test.go", test: "renew"},
	{page: "docs/security.md", file: "e2e/security_test.go", test: "follow"},
	{page: "docs/guide.md", lines: `^cantus (?:cluster|serve|namespace)`, file: "e2e/docswalks_test.go", test: "olderCopySteps"},
	{page: "docs/guide.md", lines: `^cantus read 0 --lock room`, file: "cmd/cantus/testdata/script/read.txtar", test: "cantus read 0 --lock room.12 --newest-first --max 5"},
	{page: "docs/guide.md", lines: `^cantus append 0 --kind enrolled`, file: "cmd/cantus/testdata/script/unless.txtar", test: "cantus append 0 --kind enrolled --append course.c1 --append student.s2 --unless"},
	{page: "docs/guide.md", lines: `^cantus cursor give|--move billing=`, file: "cmd/cantus/testdata/script/cursor.txtar", test: "cantus cursor give 0 billing --session w9a1d --owner session:w7f2c"},
	{page: "docs/guide.md", lines: `^cantus append 0 --atomic`, file: "cmd/cantus/testdata/script/atomic.txtar", test: "cantus append 0 --atomic --hwm"},
	{page: "docs/guide.md", lines: `^cantus bench `, not: "each takes two to four minutes: cmd/internal/bench has tests of its own"},
	{page: "docs/page.md", lines: `^cantus `, file: "e2e/docswalks_test.go", test: "docs/page.md"},
	{page: "docs/page.md", lines: `^ssh `, not: "it takes another machine"},
	{page: "docs/install.md", lines: `^sha256sum `, file: ".ci/reproducible", test: "sha256sum --check --ignore-missing SHA256SUMS"},
	{page: "docs/install.md", lines: `^cantus cluster `, file: "e2e/kubernetes_test.go", test: "TestKubernetesAddsNodes"},
	{page: "docs/install.md", lines: `^podman `, file: ".ci/container", test: "podman run -d"},
	{page: "docs/install.md", lines: `^kubectl |^helm |^\(umask`, not: "there is no Kubernetes: e2e/kubernetes_test.go runs what the pods run"},
	{page: "docs/install.md", lines: `upgrade check`, file: "e2e/docswalks_test.go", test: "upgrade check"},
	{page: "docs/install.md", lines: `^apt |^cantus config |^systemctl enable`, file: ".ci/debian/inside.sh", test: "apt install -y ./cantus_0.1.0_amd64.deb"},
	{page: "docs/install.md", lines: `^git .*make release$`, not: "make reproducible makes two releases, for minutes"},
	{page: "docs/install.md", not: "they unpack, copy and print: make debian tries what the package does instead"},
	{page: "docs/traces.md", lines: `^cantus `, file: "e2e/docswalks_test.go", test: "docs/traces.md"},
	{page: "docs/traces.md", lines: `^nats `, file: "e2e/natscli_test.go", test: "docs/traces.md"},
	{page: "docs/performance.md", lines: `^go test .* -bench `, not: "a benchmark whose figures the page has"},
	{page: "docs/reliability.md", lines: `^make |^CANTUS_SIM_`, not: "each takes minutes to hours, and is run before a release; its figures are on the page"},
	{page: "docs/adr/0044-the-client-is-a-module.md", not: "there is no release yet"},
	{page: "docs/fuzzing.md", lines: `^make fuzz`, not: "the page says when it is run, and its figures"},
	{page: "examples/shell/README.md", file: "e2e/natscli_test.go", test: "TestNATSCommand"},
	{page: "examples/bank/doc.go", file: "examples/bank/doc_test.go", test: "TestTheDocumentsCommandsRunInOrder"},
	{page: "examples/seats/main.go", file: "examples/seats/main_test.go", test: "TestRules"},
	{page: "examples/courses/main.go", file: "examples/courses/main_test.go", test: "TestRules"},
	{page: "examples/follow/main.go", file: "examples/follow/main_test.go", test: "Test"},
	{page: "examples/transact/main.go", file: "examples/transact/main_test.go", test: "Test"},
	{page: "examples/node/doc.go", file: "examples/node/node_test.go", test: "Test"},
	{page: "e2e/bench/doc.go", not: "make bench-etcd runs it, for minutes; its module has tests of its own"},
	{page: "internal/sim/plants/main.go", not: "it plants one defect after the other, for an hour"},
}

// TestCommandLinesAreRun checks that each command line of the documents is run
// by a test, or that it says here why not.
func TestCommandLinesAreRun(t *testing.T) {
	lines, err := commandlines.All(".")
	if err != nil {
		t.Fatal(err)
	}
	walks, err := os.ReadFile("e2e/docswalks_test.go")
	if err != nil {
		t.Fatal(err)
	}
	used := make([]bool, len(ranBy))
	for _, l := range lines {
		checkMake(t, l)
		if regexp.MustCompile(`\n\t"`+regexp.QuoteMeta(l.Page)+`": +\{[^\n]*\},\n`).Match(walks) && !regexp.MustCompile(`\n\t"`+regexp.QuoteMeta(l.Page)+`": +\{[^\n]*only:`).Match(walks) {
			continue // all lines of the page
		}
		i := slices.IndexFunc(ranBy, func(r struct{ page, lines, file, test, not string }) bool {
			return r.page == l.Page && regexp.MustCompile(r.lines).MatchString(l.Text)
		})
		if i < 0 {
			t.Errorf("%s:%d: no test runs %q: add the page to walks in e2e/docswalks_test.go, which runs its lines, "+
				"or say in ranBy (commandlines_test.go) which test does, or why none can", l.Page, l.Number, l.Text)
			continue
		}
		used[i] = true
	}
	for i, r := range ranBy {
		if !used[i] {
			t.Errorf("%s has no line that matches %q any more: take it out of ranBy", r.page, r.lines)
		}
		if r.not != "" {
			continue
		}
		text, err := os.ReadFile(r.file)
		if err != nil || !strings.Contains(string(text), r.test) {
			t.Errorf("%s: %s has no %s: %v", r.page, r.file, r.test, err)
		}
	}
	if len(lines) < 150 {
		t.Errorf("the documents have %d command lines: the test would see little", len(lines))
	}
}

// checkMake checks that the verbs of a make line are in the Makefile, and that
// the variables that it sets mean something there.
func checkMake(t *testing.T, l commandlines.Line) {
	t.Helper()
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commandlines.Split(l.Text) {
		if c.Program() != "make" {
			continue
		}
		for _, word := range c.Words[1:] {
			verb := word
			if name, _, set := strings.Cut(word, "="); set {
				verb = ""
				if !regexp.MustCompile(`\$[({]?\$?[({]?` + name + `\b`).Match(makefile) {
					t.Errorf("%s:%d: %s: the Makefile has no %s", l.Page, l.Number, l.Text, name)
				}
			}
			if verb != "" && !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(verb)+`:.* ## `).Match(makefile) {
				t.Errorf("%s:%d: %s: the Makefile has no target %s", l.Page, l.Number, l.Text, verb)
			}
		}
	}
}

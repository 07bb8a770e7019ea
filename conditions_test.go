package cantus_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// notInCI says which tags' tests .ci/run only compiles, and why.
var notInCI = map[string]string{
	"alertslive":  "needs small file systems and strace, and takes minutes",
	"crashpoints": "needs strace, and a system that lets it trace",
	"encryption":  "needs dm-crypt, a kernel's or that of User-mode Linux",
	"fulldisk":    "needs a small file system, which only root can mount",
	"netfaults":   "needs network namespaces and the kernel's netem",
	"powercut":    "needs loop-mounted file systems",
}

// TestNoConditionHidesATest checks that CI has everything that a test depends
// on: what is missing there would never be tested, and nobody would notice. A
// test may be skipped for its length only (testkit.NotShort, testkit.OnlyLong),
// and CI skips nothing of the first kind.
func TestNoConditionHidesATest(t *testing.T) {
	ci, err := os.ReadFile(".ci/run")
	if err != nil {
		t.Fatal(err)
	}
	interop, err := os.ReadFile(".ci/interop")
	if err != nil {
		t.Fatal(err)
	}
	vet, err := os.ReadFile(".ci/vet")
	if err != nil {
		t.Fatal(err)
	}
	scripts := string(ci) + string(interop) + string(vet)
	// Only runs under the race detector may be short.
	all := regexp.MustCompile(`(?m)^(?:TMPDIR=\S+ )?\./\.ci/again go test (.* )?` + regexp.QuoteMeta(module+"/...") + `$`).FindString(scripts)
	if all == "" || strings.Contains(strings.ReplaceAll(scripts, "-race -short", ""), "-short") {
		t.Error(".ci/run does not run all tests, or leaves out those that -short does")
	}
	skip := regexp.MustCompile(`\b[tbf]\.Skip(f|Now)?\(`)
	condition := regexp.MustCompile(`(?m)^(?:\[([^\]]*)\] *)+`)
	one := regexp.MustCompile(`\[!?([^\]]*)\]`)
	tag := regexp.MustCompile(`(?m)^//go:build (.*)$`)
	word := regexp.MustCompile(`\w+`)
	systems := []string{"unix", "linux", "windows"}
	if err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if d != nil && (d.Name() == ".git" || d.Name() == "node_modules") {
				return fs.SkipDir
			}
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		switch {
		case strings.HasSuffix(path, ".txtar"):
			for _, m := range condition.FindAllString(string(text), -1) {
				for _, c := range one.FindAllStringSubmatch(m, -1) {
					if slices.Contains(systems, c[1]) {
						continue
					}
					tool, ok := strings.CutPrefix(c[1], "tool:")
					if !ok || !regexp.MustCompile(`\b`+tool+`\b`).MatchString(scripts) {
						t.Errorf("%s: condition %q: only [tool:NAME] of what .ci/run installs is allowed", path, c[0])
					}
				}
			}
		case strings.HasSuffix(path, "_test.go") && path != "conditions_test.go":
			for i, line := range strings.Split(string(text), "\n") {
				if skip.MatchString(line) {
					t.Errorf("%s:%d: a test is left out for another reason than its length, or not by testkit", path, i+1)
				}
			}
			if m := tag.FindStringSubmatch(string(text)); m != nil {
				tags := strings.ReplaceAll(m[1], "!race", "") // CI runs all tests without the race detector too
				for _, name := range word.FindAllString(tags, -1) {
					ran := regexp.MustCompile(`go test .*-tags (\S+,)?` + name + `\b`).MatchString(scripts)
					if !ran && notInCI[name] == "" && !slices.Contains(systems, name) {
						t.Errorf("%s: CI runs no test with the tag %s", path, name)
					}
					if !slices.Contains(systems, name) && !regexp.MustCompile(`go vet .*\b`+name+`\b`).MatchString(scripts) {
						t.Errorf("%s: CI does not vet the tag %s", path, name)
					}
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

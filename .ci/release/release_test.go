package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blakesmith/ar"
)

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		tag     string
		changed bool
		want    string
	}{
		{"v0.1.0", false, "0.1.0"},
		{"v1.2.3-rc.1", false, "1.2.3-rc.1"},
		{"", false, "0.1.0-dev+abc"},
		{"", true, "0.1.0-dev+abc.modified"},
		{"v1", false, "the tag v1 is no version, such as v0.1.0"},
	} {
		got, err := versionOf(c.tag, "abc", c.changed)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q, changed %v: %s, want %s", c.tag, c.changed, got, c.want)
		}
	}
}

// A binary that does not name the commit is no release of it.
func TestCommit(t *testing.T) {
	r := &release{commit: "abc"}
	for _, c := range []struct{ commit, changed, want string }{
		{"abc", "false", ""},
		{"", "", "does not name its commit, as in a worktree: make the release in a clone"},
		{"def", "false", "the binary is of commit def"},
		{"abc", "true", "modified=true"},
	} {
		info := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: c.commit}, {Key: "vcs.modified", Value: c.changed}}}
		if err := r.checkCommit(info); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("commit %q, modified %q: %v, want %q", c.commit, c.changed, err, c.want)
		}
	}
}

// What "go env -w" has written changes where modules come from, not the bytes.
func TestBuildEnvironment(t *testing.T) {
	written := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(written, []byte("GOFLAGS=-tags=nocloud\nGOPROXY=https://proxy.example\nGOAMD64=v3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOENV", written)
	for _, name := range []string{"GOFLAGS", "GOPROXY", "GOAMD64", "GOEXPERIMENT"} {
		t.Setenv(name, "")
	}
	env, err := buildEnvironment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "env", "GOFLAGS", "GOPROXY", "GOAMD64")
	cmd.Env = env
	out, err := cmd.Output()
	if want := "\nhttps://proxy.example\nv1\n"; err != nil || string(out) != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
}

// make release makes all targets, unless it is told otherwise.
func TestMakeRelease(t *testing.T) {
	for given, want := range map[string]string{"": "", "TARGETS=linux/arm64,darwin/arm64": " -targets linux/arm64,darwin/arm64"} {
		out, err := exec.CommandContext(t.Context(), "make", "-C", "../..", "--no-print-directory", "-n", "release", "DIST=/dist", "GO=go", cmp.Or(given, "TARGETS=")).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != "cd .ci/release && go run . -out /dist"+want {
			t.Errorf("%s: %v, %s", given, err, got)
		}
	}
}

// sample is a release of a binary that is this test itself.
func sample(t *testing.T) *release {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	r := &release{root: root, out: out, work: filepath.Join(out, "work"), version: "0.1.0-dev+abc", time: time.Unix(1_700_000_000, 0).UTC()}
	for _, name := range []string{"cantus.1", "completions/cantus.bash", "completions/cantus.zsh", "completions/cantus.fish"} {
		if err := r.writeDocument(name, []byte("text of "+name+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// Two archives of the same files are the same, wherever and whenever they are
// made.
func TestArchivesAreReproducible(t *testing.T) {
	for name, pack := range map[string]func(string, string, []file, time.Time) error{"tar.gz": packTar, "zip": packZip} {
		var all [][]byte
		for i := range 2 {
			dir := t.TempDir()
			binary, other := filepath.Join(dir, "binary"), filepath.Join(dir, "other")
			if err := errors.Join(os.WriteFile(binary, []byte("program"), 0o600<<i), os.WriteFile(other, []byte("text"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(binary, time.Unix(int64(i), 0), time.Unix(int64(i), 0)); err != nil {
				t.Fatal(err)
			}
			files := []file{{"cantus", binary, 0o755}, {"README.md", other, 0o644}}
			if i == 1 {
				slices.Reverse(files)
			}
			to := filepath.Join(dir, "archive")
			if err := pack(to, "cantus_1", files, time.Unix(1_700_000_000, 0).UTC()); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, data)
		}
		if !bytes.Equal(all[0], all[1]) {
			t.Errorf("two archives differ: %s", name)
		}
	}
}

func TestZip(t *testing.T) {
	dir := t.TempDir()
	binary, to := filepath.Join(dir, "binary"), filepath.Join(dir, "a.zip")
	if err := os.WriteFile(binary, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := packZip(to, "cantus_1", []file{{"cantus.exe", binary, 0o755}}, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	z, err := zip.OpenReader(to)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if f := z.File[0]; len(z.File) != 1 || f.Name != "cantus_1/cantus.exe" || f.Mode().Perm() != 0o755 {
		t.Errorf("%+v", z.File[0].FileHeader)
	}
}

// members returns the files of a Debian package: those that it installs, and
// those of its control part, which have no leading path.
func members(t *testing.T, path string) map[string]*tar.Header {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string]*tar.Header{}
	for r := ar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(strings.TrimSuffix(h.Name, "/"), ".tar.gz") {
			continue
		}
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		for members := tar.NewReader(z); ; {
			m, err := members.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimPrefix(m.Name, ".")
			if strings.HasPrefix(h.Name, "control") {
				name = strings.TrimPrefix(name, "/")
			}
			all[name] = m
		}
	}
}

// The package is the same however often it is made, its files are root's, and
// none of them is in the data directory.
func TestDeb(t *testing.T) {
	var all [][]byte
	for range 2 {
		r := sample(t)
		binary, bill := filepath.Join(r.work, "binary"), filepath.Join(r.work, "bill")
		if err := errors.Join(os.WriteFile(binary, []byte("program"), 0o700), os.WriteFile(bill, []byte("{}"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := r.makeDeb("amd64", binary, bill); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(r.out, "cantus_0.1.0-dev+abc_amd64.deb")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data)
		have := members(t, path)
		for name, mode := range map[string]int64{
			"/usr/bin/cantus": 0o755, "/etc/cantus/cantus.yaml": 0o644, "/lib/systemd/system/cantus.service": 0o644,
			"/usr/share/man/man1/cantus.1.gz": 0o644, "/usr/share/bash-completion/completions/cantus": 0o644,
			"/usr/share/doc/cantus/examples/nats.conf": 0o644, "/usr/share/doc/cantus/examples/alerts.yml": 0o644,
			"control": 0o644, "conffiles": 0o644, "postinst": 0o755, "prerm": 0o755, "postrm": 0o755,
		} {
			if h := have[name]; h == nil || h.Mode&0o777 != mode {
				t.Errorf("%s is not there, or not of mode %o: %+v", name, mode, h)
			}
		}
		for name, h := range have {
			if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 {
				t.Errorf("%s belongs to %d:%d and has mode %o", name, h.Uid, h.Gid, h.Mode)
			}
			if strings.HasPrefix(name, "/var") {
				t.Errorf("the package has %s: removing it would delete data", name)
			}
		}
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("two packages of the same files differ")
	}
}

// The bill names the program and every module that is linked into it, and does
// not change.
func TestBillOfMaterials(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bill, err := billOfMaterials(program, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	again, err := billOfMaterials(program, "1.2.3")
	if err != nil || !bytes.Equal(bill, again) {
		t.Errorf("two bills of one binary differ: %v", err)
	}
	var read struct {
		BOMFormat string
		Metadata  struct {
			Component struct{ Name, Version string }
		}
		Components []struct{ PURL string }
	}
	if err := json.Unmarshal(bill, &read); err != nil {
		t.Fatal(err)
	}
	if read.BOMFormat != "CycloneDX" || read.Metadata.Component.Version != "1.2.3" {
		t.Errorf("%+v", read)
	}
	text := fmt.Sprint(read.Components)
	for _, want := range []string{"pkg:golang/std@1.", "pkg:golang/github.com/goreleaser/nfpm/v2@v2."} {
		if !strings.Contains(text, want) {
			t.Errorf("the bill has no %s", want)
		}
	}
}

// A directory that has anything else in it is left alone.
func TestClear(t *testing.T) {
	dir := t.TempDir()
	ours, other := filepath.Join(dir, "cantus_1_linux_amd64.tar.gz"), filepath.Join(dir, "thesis.txt")
	if err := errors.Join(os.WriteFile(ours, nil, 0o600), os.WriteFile(other, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := clear(dir); err == nil || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("clear: %v", err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := clear(dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v are left: %v", left, err)
	}
}

// Every command below a command has a section, and nothing is taken for markup.
func TestManual(t *testing.T) {
	program := filepath.Join(t.TempDir(), "cantus")
	script := `#!/bin/sh
case "$*" in
--help) printf 'Usage: cantus <command>\n.dangerous\n\nCommands:\n  serve         Run a node.\n  cluster       Operate.\n\nExit status: 0\n' ;;
"cluster --help") printf 'Usage: cantus cluster <command>\n\nCommands:\n  cluster add NAME    Add a\n                      node.\n' ;;
"serve --help" | "cluster add --help") printf '%s\n' 'a\b' ;;
*) exit 1 ;;
esac
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	page, err := makeManual(t.Context(), program, "1.2.3", time.Unix(0, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".SH \"cantus serve\"\n.nf\na\\eb\n", ".SH \"cantus cluster\"", ".SS \"cantus cluster add\"", "\n\\&.dangerous\n"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
}

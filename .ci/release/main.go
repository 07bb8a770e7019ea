// Command release makes what a release consists of: archives of the binary for
// each system, Debian packages, the Helm chart, a software bill of materials
// beside each archive, and checksums. The same commit gives the same bytes,
// whatever directory and time it is built in.
//
// A release is made of a clean checkout of a tag. Everything else gives a
// snapshot, which says so in its version.
package main

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// targets are the systems that there is a binary for.
const targets = "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64,windows/amd64,windows/arm64"

func main() {
	root := flag.String("root", "../..", "checkout of the repository")
	out := flag.String("out", "", "directory for what is made; its contents are replaced")
	only := flag.String("targets", targets, "systems to build for")
	packages := flag.Bool("deb", true, "make Debian packages of the Linux binaries")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *out, strings.Split(*only, ","), *packages); err != nil {
		fmt.Fprintf(os.Stderr, "release: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, out string, targets []string, packages bool) error {
	if out == "" || flag.NArg() > 0 {
		return errors.New("usage: release -out DIR [flags]")
	}
	r, err := newRelease(ctx, root, out)
	if err != nil {
		return err
	}
	fmt.Printf("cantus %s, of %s\n", r.version, r.time.Format(time.RFC3339))
	if err := r.writeDocuments(ctx); err != nil {
		return err
	}
	for _, t := range targets {
		if err := r.makeTarget(ctx, t, packages); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
	}
	if err := r.packChart(); err != nil {
		return err
	}
	if err := os.RemoveAll(r.work); err != nil {
		return err
	}
	return writeChecksums(out)
}

// release is what is being made.
type release struct {
	root, out string
	work      string    // what archives are made from
	version   string    // semantic
	tag       string    // of the linker; empty for a snapshot
	commit    string    // that it is made of
	changed   bool      // whether there are uncommitted changes too
	time      time.Time // of the commit, and of every file
	documents []file    // that every archive has
}

// file is a file of an archive.
type file struct {
	name string // in the archive
	from string
	mode int64
}

func newRelease(ctx context.Context, root, out string) (*release, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if out, err = filepath.Abs(out); err != nil {
		return nil, err
	}
	r := &release{root: root, out: out, work: filepath.Join(out, "work")}
	seconds, err := r.git(ctx, "log", "-1", "--format=%ct")
	if err != nil {
		return nil, err
	}
	at, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return nil, err
	}
	r.time = time.Unix(at, 0).UTC()
	changed, err := r.git(ctx, "status", "--porcelain")
	if err != nil {
		return nil, err
	}
	tag, err := r.git(ctx, "describe", "--tags", "--exact-match", "--match", "v[0-9]*")
	if err != nil || changed != "" {
		tag = ""
	}
	if r.commit, err = r.git(ctx, "rev-parse", "HEAD"); err != nil {
		return nil, err
	}
	r.tag, r.changed = tag, changed != ""
	if r.version, err = versionOf(tag, r.commit[:12], r.changed); err != nil {
		return nil, err
	}
	if err := clear(out); err != nil {
		return nil, err
	}
	return r, os.MkdirAll(r.work, 0o755)
}

// clear removes what an earlier run made in a directory, and nothing else.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "work" && e.Name() != checksums && !made.MatchString(e.Name()) {
			return fmt.Errorf("%s has %s, which no release consists of: name another directory", dir, e.Name())
		}
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// made matches the names of a release's files.
var made = regexp.MustCompile(`^cantus[-_].*\.(tar\.gz|zip|deb|tgz|json)$`)

// semantic matches the tags of releases.
var semantic = regexp.MustCompile(`^v(\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?)$`)

// versionOf returns the version of a tag, or that of a snapshot if there is
// none. It is the one that the binary reports.
func versionOf(tag, commit string, changed bool) (string, error) {
	if tag != "" {
		m := semantic.FindStringSubmatch(tag)
		if m == nil {
			return "", fmt.Errorf("the tag %s is no version, such as v0.1.0", tag)
		}
		return m[1], nil
	}
	v := "0.1.0-dev+" + commit
	if changed {
		v += ".modified"
	}
	return v, nil
}

// git runs git in the repository and returns what it prints.
func (r *release) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// build builds the binary for a system. Its bytes depend on the commit alone.
func (r *release) build(ctx context.Context, goos, goarch, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=true", "-pgo=cmd/cantus/release.pgo", "-trimpath",
		"-ldflags", "-X main.version="+r.tag, "-o", to, "./cmd/cantus")
	cmd.Dir = r.root
	env, err := buildEnvironment(ctx)
	if err != nil {
		return err
	}
	cmd.Env = append(env, "GOOS="+goos, "GOARCH="+goarch)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	info, err := buildinfo.ReadFile(to)
	if err != nil {
		return err
	}
	return r.checkCommit(info)
}

// buildEnvironment returns the environment of builds, without the settings of
// this machine that change the bytes. For an empty variable Go takes what
// "go env -w" has written, so that file is not read; what it says of where
// modules come from stays.
func buildEnvironment(ctx context.Context) ([]string, error) {
	kept := []string{"GOPROXY", "GOSUMDB", "GOPRIVATE", "GONOPROXY", "GONOSUMDB", "GOINSECURE", "GOMODCACHE", "GOCACHE", "GOTOOLCHAIN"}
	out, err := exec.CommandContext(ctx, "go", append([]string{"env"}, kept...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	env := os.Environ()
	for i, value := range strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") {
		env = append(env, kept[i]+"="+value)
	}
	return append(env, "GOENV=off", "CGO_ENABLED=0", "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOFIPS140=off", "GOWORK=off"), nil
}

// checkCommit returns an error unless a binary names the release's commit. Go
// leaves it out, without a word, where it finds no repository: it knows those
// whose .git is a directory, and that of a worktree is a file.
func (r *release) checkCommit(info *debug.BuildInfo) error {
	var commit, changed string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.modified":
			changed = s.Value
		}
	}
	switch {
	case commit == "":
		return errors.New("the binary does not name its commit, as in a worktree: make the release in a clone")
	case commit != r.commit || changed != strconv.FormatBool(r.changed):
		return fmt.Errorf("the binary is of commit %s with modified=%s, and the release of %s with modified=%t: does somebody else change the checkout?", commit, changed, r.commit, r.changed)
	}
	return nil
}

// writeDocuments makes the completions and the manual with the binary of this
// machine.
func (r *release) writeDocuments(ctx context.Context) error {
	program := filepath.Join(r.work, "host", binaryName(runtime.GOOS))
	if err := r.build(ctx, runtime.GOOS, runtime.GOARCH, program); err != nil {
		return err
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script, err := exec.CommandContext(ctx, program, "completion", shell).Output()
		if err != nil {
			return fmt.Errorf("cantus completion %s: %w", shell, err)
		}
		if err := r.writeDocument("completions/cantus."+shell, script); err != nil {
			return err
		}
	}
	manual, err := makeManual(ctx, program, r.version, r.time)
	if err != nil {
		return err
	}
	if err := r.writeDocument("cantus.1", manual); err != nil {
		return err
	}
	for _, name := range []string{"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "subjects.md"} {
		r.documents = append(r.documents, file{name, filepath.Join(r.root, name), 0o644})
	}
	r.documents = append(r.documents, r.examples()...)
	return nil
}

// examples returns the files that an operator begins with.
func (r *release) examples() (all []file) {
	for _, e := range []struct{ name, from string }{
		{"cantus.yaml", "debian/cantus.yaml"},
		{"nats.conf", "nats/nats.conf"},
		{"prometheus.yml", "prometheus/prometheus.yml"},
		{"alerts.yml", "prometheus/alerts.yml"},
		{"grafana.json", "grafana/cantus.json"},
	} {
		all = append(all, file{"examples/" + e.name, filepath.Join(r.root, "deploy", e.from), 0o644})
	}
	return all
}

func (r *release) writeDocument(name string, text []byte) error {
	path := filepath.Join(r.work, name)
	r.documents = append(r.documents, file{name, path, 0o644})
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644))
}

func binaryName(goos string) string {
	if goos == "windows" {
		return "cantus.exe"
	}
	return "cantus"
}

// makeTarget makes the archive for a system, its bill of materials, and a
// package.
func (r *release) makeTarget(ctx context.Context, target string, packages bool) error {
	goos, goarch, found := strings.Cut(target, "/")
	if !found {
		return errors.New("a target is a system and an architecture, such as linux/amd64")
	}
	binary := file{binaryName(goos), filepath.Join(r.work, goos+"_"+goarch, binaryName(goos)), 0o755}
	if err := r.build(ctx, goos, goarch, binary.from); err != nil {
		return err
	}
	base := filepath.Join(r.out, fmt.Sprintf("cantus_%s_%s_%s", r.version, goos, goarch))
	bill, err := billOfMaterials(binary.from, r.version)
	if err != nil {
		return err
	}
	if err := os.WriteFile(base+".cdx.json", bill, 0o644); err != nil {
		return err
	}
	files := append([]file{binary, {"sbom.cdx.json", base + ".cdx.json", 0o644}}, r.documents...)
	if goos == "linux" {
		files = append(files, file{"cantus.service", filepath.Join(r.root, "deploy/systemd/cantus.service"), 0o644})
	}
	archive, pack := base+".tar.gz", packTar
	if goos == "windows" {
		archive, pack = base+".zip", packZip
	}
	if err := pack(archive, filepath.Base(base), files, r.time); err != nil {
		return err
	}
	if goos == "linux" && packages {
		return r.makeDeb(goarch, binary.from, base+".cdx.json")
	}
	return nil
}

// packChart packs the Helm chart, with the release's version.
func (r *release) packChart() error {
	dir := filepath.Join(r.root, "deploy/helm/cantus")
	var files []file
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files = append(files, file{filepath.ToSlash(name), path, 0o644})
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for i, f := range files {
		if f.name != "Chart.yaml" {
			continue
		}
		text, err := os.ReadFile(f.from)
		if err != nil {
			return err
		}
		files[i].from = filepath.Join(r.work, "Chart.yaml")
		text = regexp.MustCompile(`(?m)^(version|appVersion): .*$`).ReplaceAll(text, []byte(`$1: "`+r.version+`"`))
		if err := os.WriteFile(files[i].from, text, 0o644); err != nil {
			return err
		}
	}
	return packTar(filepath.Join(r.out, "cantus-"+r.version+".tgz"), "cantus", files, r.time)
}

// checksums is the file with the checksums, in the form of sha256sum.
const checksums = "SHA256SUMS"

// writeChecksums writes the checksums of all files in a directory.
func writeChecksums(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var lines []string
	for _, e := range entries {
		sum, err := checksum(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%x  %s\n", sum, e.Name()))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[64:], b[64:]) })
	return os.WriteFile(filepath.Join(dir, checksums), []byte(strings.Join(lines, "")), 0o644)
}

func checksum(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

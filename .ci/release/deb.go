package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // a format
	"github.com/goreleaser/nfpm/v2/files"
)

// maintainer is the one of the Debian package.
const maintainer = "The Cantus authors <maintainers@cantuslog.example>"

const description = `replicated transaction log behind NATS
Services publish transactions on NATS subjects. The leader of a partition
checks their locks, appends them to a replicated log, and publishes them on a
feed. This package has the node, which a unit of systemd runs, and the commands
that append, read and operate.`

// makeDeb makes a Debian package of a binary.
func (r *release) makeDeb(arch, binary, bill string) error {
	info, err := r.debInfo(arch, binary, bill)
	if err != nil {
		return err
	}
	packager, err := nfpm.Get("deb")
	if err != nil {
		return err
	}
	if err := nfpm.PrepareForPackager(info, "deb"); err != nil {
		return err
	}
	name := fmt.Sprintf("cantus_%s_%s.deb", r.version, arch)
	return create(filepath.Join(r.out, name), func(w io.Writer) error { return packager.Package(info, w) })
}

// debInfo says what is in the package.
func (r *release) debInfo(arch, binary, bill string) (*nfpm.Info, error) {
	contents, err := r.debContents(binary, bill)
	if err != nil {
		return nil, err
	}
	for _, c := range contents {
		c.FileInfo.MTime = r.time
		c.FileInfo.Owner, c.FileInfo.Group = "root", "root"
	}
	debian := filepath.Join(r.root, "deploy/debian")
	version, prerelease, _ := strings.Cut(r.version, "-")
	info := &nfpm.Info{
		Name: "cantus", Arch: arch, Platform: "linux", VersionSchema: "none", Version: version,
		Section: "database", Priority: "optional", Maintainer: maintainer, Description: description,
		Homepage: "https://github.com/cantuslog/cantus", License: "Apache-2.0", MTime: r.time,
		Overridables: nfpm.Overridables{
			Contents: contents, Depends: []string{"adduser"}, Recommends: []string{"systemd"}, Umask: 0o022,
			Scripts: nfpm.Scripts{
				PostInstall: filepath.Join(debian, "postinst"), PreRemove: filepath.Join(debian, "prerm"), PostRemove: filepath.Join(debian, "postrm"),
			},
		},
	}
	if prerelease != "" {
		info.Version += "~" + prerelease // before the release itself
	}
	return nfpm.WithDefaults(info), nil
}

// debContents returns the package's files.
func (r *release) debContents(binary, bill string) (files.Contents, error) {
	doc := "/usr/share/doc/cantus/"
	changes, err := r.compress("changelog", []byte(r.debChanges()))
	if err != nil {
		return nil, err
	}
	page, err := os.ReadFile(filepath.Join(r.work, "cantus.1"))
	if err != nil {
		return nil, err
	}
	manual, err := r.compress("cantus.1", page)
	if err != nil {
		return nil, err
	}
	upstream, err := os.ReadFile(filepath.Join(r.root, "CHANGELOG.md"))
	if err != nil {
		return nil, err
	}
	news, err := r.compress("CHANGELOG.md", upstream)
	if err != nil {
		return nil, err
	}
	all := files.Contents{{Destination: "/etc/cantus", Type: files.TypeDir, FileInfo: &files.ContentFileInfo{Mode: 0o755}}}
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{
		{binary, "/usr/bin/cantus", 0o755},
		{filepath.Join(r.root, "deploy/systemd/cantus.service"), "/lib/systemd/system/cantus.service", 0o644},
		{filepath.Join(r.work, "completions/cantus.bash"), "/usr/share/bash-completion/completions/cantus", 0o644},
		{filepath.Join(r.work, "completions/cantus.zsh"), "/usr/share/zsh/vendor-completions/_cantus", 0o644},
		{filepath.Join(r.work, "completions/cantus.fish"), "/usr/share/fish/vendor_completions.d/cantus.fish", 0o644},
		{manual, "/usr/share/man/man1/cantus.1.gz", 0o644},
		{filepath.Join(r.root, "deploy/debian/copyright"), doc + "copyright", 0o644},
		{filepath.Join(r.root, "deploy/debian/lintian-overrides"), "/usr/share/lintian/overrides/cantus", 0o644},
		{filepath.Join(r.root, "subjects.md"), doc + "subjects.md", 0o644},
		{changes, doc + "changelog.gz", 0o644},
		{news, doc + "CHANGELOG.md.gz", 0o644},
		{bill, doc + "sbom.cdx.json", 0o644},
	} {
		all = append(all, &files.Content{Source: f.from, Destination: f.to, FileInfo: &files.ContentFileInfo{Mode: f.mode}})
	}
	for _, f := range r.examples() {
		all = append(all, &files.Content{Source: f.from, Destination: doc + f.name, FileInfo: &files.ContentFileInfo{Mode: 0o644}})
	}
	return append(all, &files.Content{
		Source: filepath.Join(r.root, "deploy/debian/cantus.yaml"), Destination: "/etc/cantus/cantus.yaml",
		Type: files.TypeConfigNoReplace, FileInfo: &files.ContentFileInfo{Mode: 0o644},
	}), nil
}

// debChanges is the changelog in Debian's form, which names the version alone.
func (r *release) debChanges() string {
	version := strings.Replace(r.version, "-", "~", 1)
	return fmt.Sprintf("cantus (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz beside this file.\n\n -- %s  %s\n",
		version, maintainer, r.time.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
}

// compress writes a compressed file for the package, without a name or a time
// in it.
func (r *release) compress(name string, text []byte) (path string, err error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(text); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	path = filepath.Join(r.work, name+".gz")
	return path, os.WriteFile(path, b.Bytes(), 0o644)
}

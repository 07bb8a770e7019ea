package main

import (
	"fmt"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/cantuslog/cantus/subjects"
)

type versionCmd struct{}

// Run prints the version of cantus and of the Go that built it.
func (*versionCmd) Run(p *program) error {
	_, err := fmt.Fprintf(p.out, "cantus %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// develVersion is the version of builds between releases: a pre-release of the
// next.
const develVersion = "0.1.0-dev"

// buildVersion returns the program's semantic version.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(version, info)
}

// versionOf returns the version that the linker was given, or the module's
// version, if that is a release. For other builds it returns develVersion with
// the commit, or the linker's version, as build metadata.
func versionOf(linked string, info *debug.BuildInfo) string {
	if linked != "" {
		v := strings.TrimPrefix(linked, "v")
		if m := described.FindStringSubmatch(v); m != nil {
			v = m[1] + "+" + m[2] // with a hyphen it would be a pre-release of the tag
		}
		if subjects.CheckVersion(v) == nil {
			return v
		}
		return withBuild(linked)
	}
	if v := strings.TrimPrefix(info.Main.Version, "v"); subjects.CheckVersion(v) == nil && !pseudoVersion.MatchString(v) {
		return v
	}
	var build []string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			build = append(build, s.Value[:min(len(s.Value), 12)])
		case s.Key == "vcs.modified" && s.Value == "true":
			build = append(build, "modified")
		}
	}
	return withBuild(strings.Join(build, "."))
}

// described matches the output of git describe: a tag, the commits since, and
// whether there are uncommitted changes.
var described = regexp.MustCompile(`^(.*?)-(\d+-g[0-9a-f]+(?:-dirty)?|dirty)$`)

// pseudoVersion matches Go's version of a commit between releases, which ends
// in the commit's time and hash.
var pseudoVersion = regexp.MustCompile(`[-.]\d{14}-[0-9a-f]{12}(\+|$)`)

// withBuild returns develVersion with build metadata, without the characters
// that its grammar does not allow.
func withBuild(build string) string {
	build = strings.Trim(regexp.MustCompile(`[^0-9A-Za-z]+`).ReplaceAllString(build, "."), ".")
	if build == "" {
		return develVersion
	}
	return develVersion + "+" + build
}

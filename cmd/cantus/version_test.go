package main

import (
	"runtime/debug"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestVersionOf(t *testing.T) {
	commit := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}}
	for _, c := range []struct {
		linked, module string
		settings       []debug.BuildSetting
		want           string
	}{
		{"", "(devel)", nil, "0.1.0-dev"},
		{"", "", nil, "0.1.0-dev"},
		{"", "(devel)", commit, "0.1.0-dev+0123456789ab.modified"},
		{"", "v1.2.3", commit, "1.2.3"},
		{"", "v1.2.3-rc.1", nil, "1.2.3-rc.1"},
		{"", "v0.0.0-20261128034501-0123456789ab", commit[:1], "0.1.0-dev+0123456789ab"},
		{"", "v1.2.4-0.20261128034501-0123456789ab+dirty", commit, "0.1.0-dev+0123456789ab.modified"},
		{"v1.2.3", "(devel)", commit, "1.2.3"},
		{"1.2.3", "v9.9.9", nil, "1.2.3"},
		{"v1.2.3-4-g0123abc", "", nil, "1.2.3+4-g0123abc"},
		{"v1.2.3-rc.1-4-g0123abc-dirty", "", nil, "1.2.3-rc.1+4-g0123abc-dirty"},
		{"v1.2.3-dirty", "", nil, "1.2.3+dirty"},
		{"nightly/2026-11-28", "", nil, "0.1.0-dev+nightly.2026.11.28"},
		{"0123abc", "", nil, "0.1.0-dev+0123abc"},
	} {
		got := versionOf(c.linked, &debug.BuildInfo{Main: debug.Module{Version: c.module}, Settings: c.settings})
		if got != c.want || subjects.CheckVersion(got) != nil {
			t.Errorf("linked %q, module %q: got %q, want %q; %v", c.linked, c.module, got, c.want, subjects.CheckVersion(got))
		}
	}
}

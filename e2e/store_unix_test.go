//go:build unix

package e2e_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// nobody is a user without rights. Root, who is not bound by file modes, runs
// the program as that user.
const nobody = 65534

func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	for _, founded := range []bool{false, true} {
		dir := t.TempDir()
		if founded {
			n := startNode(t, dir)
			mustAppend(t, dial(t, n.url), 0, "x")
			if err := n.stop(); err != nil {
				t.Fatal(err)
			}
		}
		var before files
		if founded {
			before = snapshot(t, dir)
		}
		protect(t, dir)
		p, err := runAs(serve(dir)...)
		if err != nil {
			t.Fatal(err)
		}
		checkEnds(t, p, "not writable", dir)
		if founded && !snapshot(t, dir).equal(before) {
			t.Error("files changed")
		}
	}
}

// runAs runs the program without root's rights.
func runAs(args ...string) (*process, error) {
	if os.Geteuid() != 0 {
		return run(args...)
	}
	return runWith(&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}, args...)
}

// protect makes a tree read-only until the test ends, and its path accessible
// to the program.
func protect(t *testing.T, dir string) {
	t.Helper()
	root := os.Geteuid() == 0
	mode := func(path string, mode os.FileMode) {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if root {
		for _, above := range []string{filepath.Dir(dir), filepath.Dir(program)} {
			mode(above, 0o755)
		}
	}
	var dirs []string
	walk(t, dir, func(path string, info os.FileInfo) {
		if root {
			if err := os.Chown(path, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
		if info.IsDir() {
			dirs = append(dirs, path)
			return
		}
		mode(path, 0o444)
	})
	for _, d := range dirs {
		mode(d, 0o555)
	}
	t.Cleanup(func() {
		for _, d := range dirs {
			mode(d, 0o755)
		}
	})
}

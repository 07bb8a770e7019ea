//go:build unix

package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	debianSettings = "../deploy/debian/cantus.yaml"
	exampleUsers   = "../deploy/nats/nats.conf"
)

var unsetPassword = regexp.MustCompile(`\$[A-Z]+_PASSWORD`)

// writeExampleUsers writes the example of a NATS configuration, with the
// password "secret" for each user.
func writeExampleUsers(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(exampleUsers)
	if err != nil {
		t.Fatal(err)
	}
	// As docs/security.md has it.
	text = unsetPassword.ReplaceAllLiteral(text, []byte(`"$2b$10$ffOzc9ULZ7G3GIFL62c36eA6VKVavmLRC2PGSa3Pka3kNoKUKBkFe"`))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// as returns the flags of a user of the example.
func as(user string) []string {
	return []string{"--user", user, "--password", "secret", "--inbox-prefix", "_INBOX_" + user}
}

// The users of the example can do what its comments say, and not what others
// are for.
func TestExampleUsers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	users := filepath.Join(dir, "nats.conf")
	writeExampleUsers(t, users)
	n := startNode(t, filepath.Join(dir, "data"), "--partitions", "1", "--nats-config", users)
	payload := filepath.Join(dir, "payload")
	if err := os.WriteFile(payload, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, line string
		status     int
	}{
		{"app", "append 0 " + payload, 0},
		{"app", "read 0", 0},
		{"app", "trim 0 --before 1", 2},
		{"ops", "status", 0},
		{"ops", "cluster status", 0},
		{"ops", "trim 0 --before 1", 0},
		{"ops", "read 0", 2},
		{"backup", "backup --quiet --to " + filepath.Join(dir, "backup"), 0},
		{"backup", "append 0 " + payload, 2},
	} {
		args := append(append(strings.Fields(c.line), "--server", n.url), as(c.user)...)
		code, stdout, stderr := cantus(t, args...)
		if code != c.status || code != 0 && !strings.Contains(stderr, "does not permit this user") {
			t.Errorf("%s: cantus %s: status %d, want %d\n%s%s", c.user, c.line, code, c.status, stdout, stderr)
		}
	}
}

// The example is refused until the passwords are there.
func TestExampleUsersHaveNoPasswords(t *testing.T) {
	t.Parallel()
	code, _, stderr := cantus(t, "config", "check", "--data", t.TempDir(), "--nats-config", exampleUsers)
	if code != 2 || !strings.Contains(stderr, "APP_PASSWORD") {
		t.Errorf("status %d: %s", code, stderr)
	}
}

// The settings of the Debian package have no mistake, and neither have those
// that are commented out.
func TestDebianSettings(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(debianSettings)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeExampleUsers(t, filepath.Join(dir, "nats.conf"))
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^#([a-z-]+: )`).ReplaceAllString(string(text), "$1")
	for _, name := range []string{"http", "nats-config", "cluster-secret-file"} {
		if !strings.Contains(all, "\n"+name+": ") {
			t.Errorf("%s has no %s", debianSettings, name)
		}
	}
	for _, settings := range []string{string(text), all} {
		settings = strings.NewReplacer("/etc/cantus", dir, "/var/lib/cantus", filepath.Join(dir, "data")).Replace(settings)
		file := filepath.Join(dir, "cantus.yaml")
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := cantus(t, "config", "check", file); code != 0 {
			t.Errorf("status %d: %s, of\n%s", code, stderr, settings)
		}
	}
}

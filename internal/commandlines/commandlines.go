package commandlines

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Programs are those that the documents run. A line of code that begins with
// another word is none that a reader would type.
var Programs = []string{
	"apt", "apt-get", "awk", "bank", "bash", "brew", "cantus", "cat", "cd", "chmod", "chown", "cmake", "cosign", "cp", "curl", "dnf", "docker", "dpkg", "echo",
	"env", "export", "gh", "git", "go", "gpg", "grep", "head", "helm", "install", "journalctl", "jq", "kill", "kubectl", "ls", "make", "mkdir", "mount",
	"mv", "nats", "nats-server", "node", "npm", "npx", "nsc", "openssl", "pip", "pip3", "pkill", "podman", "printf", "prometheus", "promtool", "python",
	"python3", "rm", "rpm", "rsync", "scp", "sed", "sh", "sha256sum", "ssh", "strace", "sudo", "systemctl", "tail", "tar", "tee", "touch", "umask", "umount",
	"unset", "unzip", "useradd", "wget", "yum",
}

// Line is a command line of a document.
type Line struct {
	Page   string // the document's path, with slashes
	Number int    // of the line in the document
	Text   string // without a prompt; lines that end with a backslash are joined
	Prints string // what a line behind a prompt prints, according to the document
}

// All returns the command lines of the Markdown files, and of the comments of
// Go packages, below root.
func All(root string) (all []Line, err error) {
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && (name == "node_modules" || name == "testdata" || name == ".git" || name == "bin") {
			return fs.SkipDir
		}
		extension := filepath.Ext(path)
		if entry.IsDir() || extension != ".md" && extension != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		page, err := filepath.Rel(root, path)
		page = filepath.ToSlash(page)
		if extension == ".go" {
			all = append(all, inComments(page, string(text))...)
		} else {
			all = append(all, In(page, string(text))...)
		}
		return err
	})
	return all, err
}

// In returns the command lines in the text of a Markdown document.
func In(page, text string) (all []Line) {
	lines := strings.Split(text, "\n")
	fence, fenced, code := "", false, false
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if language, is := strings.CutPrefix(strings.TrimSpace(line), "```"); is {
			fence, fenced = language, !fenced
			continue
		}
		// What is indented after text goes on with a list's item.
		code = fenced || strings.HasPrefix(line, "    ") && (code || i == 0 || strings.TrimSpace(lines[i-1]) == "")
		if !code {
			continue
		}
		found, prompted := command(line, fence, fenced)
		if found == "" {
			continue
		}
		l := Line{Page: page, Number: i + 1}
		for strings.HasSuffix(found, `\`) && i+1 < len(lines) {
			i++
			found = strings.TrimSuffix(found, `\`) + strings.TrimSpace(lines[i])
		}
		l.Text = found
		for prompted && i+1 < len(lines) && !strings.HasPrefix(strings.TrimSpace(lines[i+1]), "$ ") && strings.TrimSpace(lines[i+1]) != "```" {
			i++
			l.Prints += strings.TrimSpace(lines[i]) + "\n"
		}
		all = append(all, l)
	}
	return all
}

var crontab = regexp.MustCompile(`^(?:[\d*/,-]+ ){5}(.*)$`)

// command returns the command in a line of code, "" if there is none, and
// whether it is behind a prompt.
func command(line, fence string, fenced bool) (text string, prompted bool) {
	line = strings.TrimSpace(line)
	if text, prompted = strings.CutPrefix(line, "$ "); prompted {
		return text, true
	}
	if text, is := strings.CutPrefix(line, "ExecStart="); is {
		return text, false
	}
	if m := crontab.FindStringSubmatch(line); m != nil {
		line = m[1]
	}
	switch {
	case line == "" || strings.HasPrefix(line, "#"):
		return "", false
	case fenced && slices.Contains([]string{"sh", "bash", "console", "shell"}, fence):
		return line, false
	case fenced:
		return "", false
	}
	if all := Split(line); len(all) > 0 && slices.Contains(Programs, all[0].Program()) && !isGo.MatchString(line) {
		return line, false
	}
	return "", false
}

// isGo matches a line of a Go program that begins like a command line.
var isGo = regexp.MustCompile(`^(?:\w+\(|go func|\w+ :?= )`)

// inComments returns the command lines that are code in the comments of a Go
// file.
func inComments(page, text string) []Line {
	var markdown strings.Builder
	for line := range strings.Lines(text) {
		comment, is := strings.CutPrefix(line, "//")
		switch {
		case is && strings.HasPrefix(comment, "\t"):
			markdown.WriteString("    " + strings.TrimPrefix(comment, "\t"))
		case is && strings.TrimSpace(comment) != "":
			markdown.WriteString("text\n")
		default:
			markdown.WriteString("\n")
		}
	}
	return In(page, markdown.String())
}

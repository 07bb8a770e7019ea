package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// makeManual returns the manual page, which has the help of each command.
func makeManual(ctx context.Context, program, version string, at time.Time) ([]byte, error) {
	overview, err := help(ctx, program)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH CANTUS 1 %s \"cantus %s\" \"User Commands\"\n.SH NAME\n", roff(at.Format(time.DateOnly)), roff(version))
	fmt.Fprintf(&b, "cantus \\- replicated transaction log behind NATS\n.SH SYNOPSIS\n.B cantus\n.I command\n[flags]\n.SH DESCRIPTION\n%s", verbatim(overview))
	if err := addCommands(ctx, &b, program, overview); err != nil {
		return nil, err
	}
	b.WriteString(".SH FILES\n.TP\n/etc/cantus/cantus.yaml\nSettings of the node that the unit cantus.service runs.\n" +
		".TP\n/var/lib/cantus\nIts data directory.\n")
	return b.Bytes(), nil
}

// command matches a line of a list of commands, which begins with the words of
// the command.
var command = regexp.MustCompile(`(?m)^  ([a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)*)(?: [^a-z ].*?)?  `)

// addCommands adds a section for each command that a help lists, and for those
// below it.
func addCommands(ctx context.Context, b *bytes.Buffer, program, list string, path ...string) error {
	_, list, found := strings.Cut(list, "\nCommands:\n")
	if !found {
		return nil
	}
	list, _, _ = strings.Cut(list, "\n\n")
	for _, m := range command.FindAllStringSubmatch(list, -1) {
		at := strings.Fields(m[1])
		if len(at) != len(path)+1 {
			return fmt.Errorf("the help of %q lists %q", strings.Join(path, " "), m[1])
		}
		text, err := help(ctx, program, at...)
		if err != nil {
			return err
		}
		section := ".SH"
		if len(at) > 1 {
			section = ".SS"
		}
		fmt.Fprintf(b, "%s \"cantus %s\"\n%s", section, strings.Join(at, " "), verbatim(text))
		if err := addCommands(ctx, b, program, text, at...); err != nil {
			return err
		}
	}
	return nil
}

func help(ctx context.Context, program string, path ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, append(path, "--help")...)
	cmd.Env = append(os.Environ(), "COLUMNS=78")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cantus %s --help: %w", strings.Join(path, " "), err)
	}
	return string(out), nil
}

// verbatim returns lines that a manual shows as they are.
func verbatim(text string) string {
	var b strings.Builder
	b.WriteString(".nf\n")
	for line := range strings.Lines(text) {
		line = roff(strings.TrimRight(line, "\n"))
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		b.WriteString(line + "\n")
	}
	b.WriteString(".fi\n")
	return b.String()
}

func roff(text string) string { return strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text) }

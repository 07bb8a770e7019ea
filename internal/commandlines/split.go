package commandlines

import (
	"path"
	"regexp"
	"strings"
)

// Command is a simple command: one program with its arguments.
type Command struct {
	Set   []string // variables that are set for it, as NAME=VALUE
	Words []string // the program and its arguments, without quotes
}

// Program returns the name of the program, without its folder.
func (c Command) Program() string {
	if len(c.Words) == 0 {
		return ""
	}
	return path.Base(c.Words[0])
}

var (
	assignment = regexp.MustCompile(`^\w+=`)
	// redirect is one with its target, or one whose target is the next word.
	redirect = regexp.MustCompile(`^\d*(?:>>?|<)&?`)
)

// Split splits a command line into its simple commands, as a shell does: at
// pipes, "&&", "||", ";" and parentheses. It drops redirections and comments.
// It does not replace variables.
func Split(line string) (all []Command) {
	var now Command
	target := false // the next word is that of a redirection
	end := func() {
		if len(now.Words) > 0 || len(now.Set) > 0 {
			all = append(all, now)
		}
		now = Command{}
	}
	for rest := line; ; {
		rest = strings.TrimLeft(rest, " \t")
		if rest == "" || rest[0] == '#' {
			break
		}
		if n := strings.IndexFunc(rest, func(r rune) bool { return !strings.ContainsRune("|&;()", r) }); n != 0 {
			if n < 0 {
				break
			}
			end()
			rest = rest[n:]
			continue
		}
		word, quoted, after := cut(rest)
		rest = after
		switch at := redirect.FindString(word); {
		case target:
			target = false
		case at != "" && !quoted:
			target = at == word
		case len(now.Words) == 0 && assignment.MatchString(word):
			now.Set = append(now.Set, word)
		default:
			now.Words = append(now.Words, word)
		}
	}
	end()
	return all
}

// cut cuts the first word off, and takes its quotes away.
func cut(line string) (word string, quoted bool, rest string) {
	quote := rune(0)
	var b strings.Builder
	for i, r := range line {
		switch {
		case quote == 0 && (r == '\'' || r == '"'):
			quote, quoted = r, true
		case r == quote:
			quote = 0
		case quote == 0 && strings.ContainsRune(" \t|;()", r), quote == 0 && r == '&' && !strings.HasSuffix(b.String(), ">"):
			return b.String(), quoted, line[i:]
		default:
			b.WriteRune(r)
		}
	}
	return b.String(), quoted, ""
}

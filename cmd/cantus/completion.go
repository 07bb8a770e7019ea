package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" name:"SHELL" enum:"bash,zsh,fish" help:"The shell."`
}

func (*completionCmd) Help() string {
	return `Examples:

  cantus completion bash >/etc/bash_completion.d/cantus
  cantus completion zsh >"${fpath[1]}/_cantus"
  cantus completion fish >~/.config/fish/completions/cantus.fish`
}

// Run prints the script.
func (c *completionCmd) Run(k *kong.Kong, p *program) error {
	switch c.Shell {
	case "bash":
		return bashCompletion(p.out, k.Model.Node)
	case "zsh":
		return zshCompletion(p.out, k.Model.Node)
	}
	return fishCompletion(p.out, k.Model.Node)
}

// The scripts are static: they are generated from the grammar, and run no
// command when the user presses tab.

func bashCompletion(w io.Writer, app *kong.Node) error {
	var b strings.Builder
	b.WriteString("# bash completion for cantus\n_cantus() {\n" +
		"  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}\n" +
		"  COMPREPLY=()\n  if ((COMP_CWORD == 1)); then\n")
	fmt.Fprintf(&b, "    COMPREPLY=($(compgen -W %q -- \"$cur\"))\n    return\n  fi\n", strings.Join(commandNames(app), " "))
	b.WriteString("  case $command:$prev in\n")
	for _, cmd := range app.Children {
		for _, f := range commandFlags(cmd) {
			switch {
			case f.Enum != "":
				fmt.Fprintf(&b, "  %s:--%s) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n",
					cmd.Name, f.Name, strings.Join(f.EnumSlice(), " "))
			case takesPath(f.Value):
				fmt.Fprintf(&b, "  %s:--%s) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n", cmd.Name, f.Name)
			case !f.IsBool():
				fmt.Fprintf(&b, "  %s:--%s) return ;;\n", cmd.Name, f.Name)
			}
		}
	}
	b.WriteString("  esac\n  case $command in\n")
	for _, cmd := range app.Children {
		words := flagWords(cmd)
		fmt.Fprintf(&b, "  %s)\n    if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W %q -- \"$cur\"))\n",
			cmd.Name, strings.Join(words, " "))
		if enum := argumentWords(cmd); enum != "" {
			fmt.Fprintf(&b, "    else COMPREPLY=($(compgen -W %q -- \"$cur\"))\n", enum)
		} else if argumentIsPath(cmd) {
			b.WriteString("    else COMPREPLY=($(compgen -f -- \"$cur\"))\n")
		}
		b.WriteString("    fi ;;\n")
	}
	b.WriteString("  esac\n}\ncomplete -o filenames -F _cantus cantus\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func zshCompletion(w io.Writer, app *kong.Node) error {
	var b strings.Builder
	b.WriteString("#compdef cantus\n# zsh completion for cantus\n_cantus() {\n" +
		"  if ((CURRENT == 2)); then\n    local -a commands=(\n")
	for _, cmd := range app.Children {
		fmt.Fprintf(&b, "      %s\n", singleQuoted(cmd.Name+":"+cmd.Help))
	}
	b.WriteString("    )\n    _describe command commands\n    return\n  fi\n  case $words[2] in\n")
	for _, cmd := range app.Children {
		fmt.Fprintf(&b, "  %s)\n    shift words; ((CURRENT--))\n    _arguments", cmd.Name)
		for _, f := range commandFlags(cmd) {
			fmt.Fprintf(&b, " \\\n      %s", singleQuoted(zshFlag(f)))
		}
		switch words := argumentWords(cmd); {
		case words != "":
			fmt.Fprintf(&b, " \\\n      %s", singleQuoted("1:argument:("+words+")"))
		case argumentIsPath(cmd):
			fmt.Fprintf(&b, " \\\n      %s", singleQuoted("*:file:_files"))
		}
		b.WriteString("\n    ;;\n")
	}
	b.WriteString("  esac\n}\nif [[ $zsh_eval_context[-1] == loadautofunc ]]; then _cantus \"$@\"; else compdef _cantus cantus; fi\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func zshFlag(f *kong.Flag) string {
	help := strings.NewReplacer("[", "(", "]", ")", ":", " -").Replace(firstSentence(f.Help))
	repeat := ""
	if f.IsCumulative() {
		repeat = "*"
	}
	spec := fmt.Sprintf("%s--%s[%s]", repeat, f.Name, help)
	switch {
	case f.IsBool():
		return spec
	case f.Enum != "":
		return spec + ":value:(" + strings.Join(f.EnumSlice(), " ") + ")"
	case takesPath(f.Value):
		return spec + ":file:_files"
	}
	return spec + ":value: "
}

func fishCompletion(w io.Writer, app *kong.Node) error {
	var b strings.Builder
	b.WriteString("# fish completion for cantus\ncomplete -c cantus -f\n")
	for _, cmd := range app.Children {
		fmt.Fprintf(&b, "complete -c cantus -n __fish_use_subcommand -a %s -d %s\n", cmd.Name, singleQuoted(cmd.Help))
	}
	for _, cmd := range app.Children {
		within := "complete -c cantus -n '__fish_seen_subcommand_from " + cmd.Name + "'"
		for _, f := range commandFlags(cmd) {
			fmt.Fprintf(&b, "%s -l %s -d %s", within, f.Name, singleQuoted(firstSentence(f.Help)))
			switch {
			case f.IsBool():
			case f.Enum != "":
				fmt.Fprintf(&b, " -x -a %s", singleQuoted(strings.Join(f.EnumSlice(), " ")))
			case takesPath(f.Value):
				b.WriteString(" -r -F")
			default:
				b.WriteString(" -x")
			}
			b.WriteString("\n")
		}
		switch words := argumentWords(cmd); {
		case words != "":
			fmt.Fprintf(&b, "%s -a %s\n", within, singleQuoted(words))
		case argumentIsPath(cmd):
			fmt.Fprintf(&b, "%s -F\n", within)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func commandNames(app *kong.Node) []string {
	var names []string
	for _, c := range app.Children {
		names = append(names, c.Name)
	}
	return names
}

// commandFlags returns a command's flags, including --help. For a command with
// subcommands it returns the flags of those, each once.
func commandFlags(cmd *kong.Node) []*kong.Flag {
	var flags []*kong.Flag
	for _, group := range cmd.AllFlags(true) {
		flags = append(flags, group...)
	}
	seen := map[string]bool{}
	for _, f := range flags {
		seen[f.Name] = true
	}
	for _, child := range cmd.Children {
		for _, f := range commandFlags(child) {
			if !seen[f.Name] {
				seen[f.Name] = true
				flags = append(flags, f)
			}
		}
	}
	return flags
}

func flagWords(cmd *kong.Node) []string {
	var words []string
	for _, f := range commandFlags(cmd) {
		words = append(words, "--"+f.Name)
	}
	return words
}

// takesPath reports whether a value is a file or a directory.
func takesPath(v *kong.Value) bool {
	if v.Flag == nil {
		return v.Name == "FILE" || v.Name == "DIR"
	}
	return v.Flag.PlaceHolder == "FILE" || v.Flag.PlaceHolder == "DIR"
}

// argumentWords returns what a command's first argument may be, "" for
// anything.
func argumentWords(cmd *kong.Node) string {
	if len(cmd.Children) > 0 {
		return strings.Join(commandNames(cmd), " ")
	}
	if len(cmd.Positional) == 0 || cmd.Positional[0].Enum == "" {
		return ""
	}
	return strings.Join(cmd.Positional[0].EnumSlice(), " ")
}

func argumentIsPath(cmd *kong.Node) bool {
	for _, arg := range cmd.Positional {
		if takesPath(arg) {
			return true
		}
	}
	return false
}

func firstSentence(help string) string {
	sentence, _, _ := strings.Cut(help, ". ")
	return strings.TrimSuffix(sentence, ".")
}

func singleQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

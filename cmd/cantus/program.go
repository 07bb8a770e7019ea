package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// program is one run of cantus: where it reads and writes.
type program struct {
	in          io.Reader
	out, errOut io.Writer
	args        []string
}

// grammar is the command line. Each command is a struct of flags with a
// method Run(ctx, p) that does it.
type grammar struct {
	Serve      serveCmd      `cmd:"" help:"Run a node."`
	Config     configCmd     `cmd:"" help:"Check the configuration of a node."`
	Append     appendCmd     `cmd:"" help:"Append one transaction."`
	Read       readCmd       `cmd:"" help:"Read transactions in order, and follow new ones."`
	Get        getCmd        `cmd:"" help:"Show one transaction, by its id or a lock."`
	Cursor     cursorCmd     `cmd:"" help:"Show, set, give and remove the cursors of a partition."`
	Status     statusCmd     `cmd:"" help:"Show the cluster and its partitions."`
	Cluster    clusterCmd    `cmd:"" help:"Operate a cluster: nodes, replicas, leaders."`
	Upgrade    upgradeCmd    `cmd:"" help:"Find out whether a node may be restarted."`
	Export     exportCmd     `cmd:"" help:"Write a partition's transactions to a file, as JSON lines."`
	Import     importCmd     `cmd:"" help:"Append the transactions of an exported file to a partition."`
	Trim       trimCmd       `cmd:"" help:"Delete a partition's oldest transactions."`
	Retention  retentionCmd  `cmd:"" help:"Trim partitions by a policy: by age, size, count and cursors."`
	Namespace  namespaceCmd  `cmd:"" help:"Give services partitions, names and limits of their own in one cluster."`
	Backup     backupCmd     `cmd:"" help:"Copy the logs to a directory or an object store, and check such a copy."`
	Restore    restoreCmd    `cmd:"" help:"Bring the logs of a backup into a new, empty cluster."`
	Mirror     mirrorCmd     `cmd:"" help:"Follow another cluster's logs into this one."`
	Recover    recoverCmd    `cmd:"" help:"Go on with what one node has after a majority is lost for good."`
	Verify     verifyCmd     `cmd:"" help:"Check a data directory that no node has open."`
	Salvage    salvageCmd    `cmd:"" help:"Read what is left in a damaged data directory."`
	Check      checkCmd      `cmd:"" help:"Check a recorded history against the protocol."`
	Bench      benchCmd      `cmd:"" help:"Measure a node, and JetStream beside it."`
	Completion completionCmd `cmd:"" help:"Print a shell completion script."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
}

const description = `A replicated transaction log behind NATS: transactions are appended to partitions,
checked against the locks they name, and read back in order.`

const examples = `Exit status: 0 done, 1 failed, 2 wrong usage or request, 3 conflict,
4 nothing was done (try again later), 5 unknown whether it committed.

Examples:

  cantus serve                               a node on 127.0.0.1:4222, data in ./cantus-data
  echo hello | cantus append 0               append to partition 0; prints the txid
  cantus append 0 --write account.42 --hwm 812 transfer.json
  cantus read 0 --follow                     all of partition 0, then what comes
  cantus status                              partitions, leaders, high-water marks`

// run executes the command line and returns the exit status. Cancelling ctx
// stops it cleanly.
func (p *program) run(ctx context.Context, args []string) int {
	exited := false
	parser, err := newParser(p, func(int) { exited = true })
	if err != nil {
		fmt.Fprintf(p.errOut, "cantus: %v\n", err)
		return exitFailed
	}
	p.args = args
	args = spellHelp(args)
	kctx, err := parser.Parse(args)
	switch {
	case exited: // --help was answered while parsing
		return exitDone
	case err != nil:
		p.printError(parseFailure(parser, args, err))
		return exitUsage
	}
	if err := checkRepeated(kctx); err != nil {
		p.printError(err)
		return exitUsage
	}
	if err := checkVariables(kctx).err(); err != nil {
		p.printError(err)
		return exitUsage
	}
	kctx.BindTo(ctx, (*context.Context)(nil))
	kctx.Bind(p)
	err = kctx.Run()
	p.printError(err)
	return exitStatus(err)
}

// checkRepeated returns an error if a flag that takes one value is there more
// than once: only the last one would count.
func checkRepeated(kctx *kong.Context) error {
	given := map[*kong.Flag]bool{}
	for _, at := range kctx.Path {
		f := at.Flag
		if f == nil || at.Resolved || f.IsBool() || f.IsSlice() || f.IsMap() || f.IsCumulative() {
			continue
		}
		if given[f] {
			return usagef("--%s is there more than once, and takes one value: give it once", f.Name)
		}
		given[f] = true
	}
	return nil
}

// printError prints an error for the user, if there is one. Each mistake has a
// line of its own.
func (p *program) printError(err error) {
	if all, ok := errors.AsType[mistakes](err); ok {
		for _, err := range all {
			p.printError(err)
		}
		return
	}
	if err != nil {
		fmt.Fprintf(p.errOut, "cantus: %s\n", errorText(err))
	}
}

// note prints a message for the user that is not an error.
func (p *program) note(format string, args ...any) {
	fmt.Fprintf(p.errOut, "cantus: "+format+"\n", args...)
}

func newParser(p *program, exit func(int)) (*kong.Kong, error) { return p.parser(&grammar{}, exit) }

// parser parses command lines into g.
func (p *program) parser(g *grammar, exit func(int)) (*kong.Kong, error) {
	parser, err := kong.New(g, append(append(strictNumbers(), strictPaths()...),
		kong.Name("cantus"),
		kong.Description(description),
		kong.Writers(p.out, p.errOut),
		kong.Exit(exit),
		kong.Help(printHelp),
		kong.ValueFormatter(describeValue),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "source", Title: "Source:"},
			{Key: "connection", Title: "Connection:"},
			{Key: "cluster", Title: "Cluster:"},
			{Key: "limits", Title: "Limits:"},
			{Key: "log", Title: "Log:"},
			{Key: "traces", Title: "Traces:"},
		}),
	)...)
	if err != nil {
		return nil, err
	}
	parser.Model.HelpFlag.Help = "Show this help."
	return parser, nil
}

// spellHelp lets "cantus help append" and a bare "cantus help" stand for the
// --help flag, and --version for the command.
func spellHelp(args []string) []string {
	switch {
	case len(args) > 0 && args[0] == "help":
		return append(args[1:len(args):len(args)], "--help")
	case len(args) == 1 && args[0] == "--version":
		return []string{"version"}
	}
	return args
}

// parseFailure rewords kong's error about the command line.
func parseFailure(parser *kong.Kong, args []string, err error) error {
	if found, ok := errors.AsType[*failure](err); ok {
		return found
	}
	commands := commandNames(parser.Model.Node)
	if len(args) == 0 {
		return errors.New("name a command: " + strings.Join(commands, ", ") + "; \"cantus --help\" explains them")
	}
	word := args[0]
	if !strings.HasPrefix(word, "-") && parserCommand(parser, word) == nil {
		return errors.New(withoutCommand(parser.Model.Node, word))
	}
	text := strings.Replace(err.Error(), "(from envar ", "(from ", 1)
	if missing := missingValue(err, text); missing != "" {
		return errors.New(missing)
	}
	if better := misplaced(err, args, text); better != "" {
		return errors.New(better)
	}
	if name := unknownFlag.FindString(text); name != "" {
		return errors.New(withoutFlag(parser, err, word, strings.TrimPrefix(name, "unknown flag ")))
	}
	return errors.New(text)
}

// withoutCommand returns an error text for a word in place of a command.
func withoutCommand(group *kong.Node, word string) string {
	of := ""
	if group.Parent != nil {
		of = group.Path() + " "
	}
	commands := commandNames(group)
	if near := nearest(word, commands); near != "" {
		return fmt.Sprintf("there is no command %q: did you mean %q?", of+word, of+near)
	}
	return fmt.Sprintf("there is no command %q: the commands are %s", of+word, strings.Join(commands, ", "))
}

// commandGroup returns the group whose command word was meant to name, nil if
// no command is expected there. A path is not meant as a command.
func commandGroup(node *kong.Node, args []string, word string) *kong.Node {
	switch {
	case len(node.Children) > 0:
		return node
	case node.Parent != nil && node.Parent.DefaultCmd == node && len(args) > 1 && args[1] == word && !strings.ContainsAny(word, "./:"):
		return node.Parent
	}
	return nil
}

// withoutFlag returns an error text for a flag that the command does not have.
func withoutFlag(parser *kong.Kong, err error, word, name string) string {
	text := "unknown flag " + name
	node := parserCommand(parser, word)
	if parse, ok := errors.AsType[*kong.ParseError](err); ok && parse.Context != nil && parse.Context.Selected() != nil {
		node = parse.Context.Selected()
	}
	if node == nil {
		return text
	}
	var flags []string
	for _, group := range node.AllFlags(true) {
		for _, f := range group {
			flags = append(flags, f.Name)
		}
	}
	if near := nearest(strings.TrimLeft(name, "-"), flags); near != "" {
		text += fmt.Sprintf(", did you mean %q?", "--"+near)
	}
	return text + fmt.Sprintf("; \"cantus %s --help\" lists the flags", node.Path())
}

// Kong's errors for a flag that there is not, for one at the end of the line,
// and for a missing argument. Its suggestions are not taken: everything
// that begins with what was typed is one of them.
var (
	unknownFlag      = regexp.MustCompile(`unknown flag -[^\s,]*`)
	unexpectedWord   = regexp.MustCompile(`^unexpected argument ([^\s,]+)`)
	flagWithoutValue = regexp.MustCompile(`^--([a-z-]+): (?:expected .* but got (?:"EOL"|"--[^"]*" \(long flag\)|"-[a-zA-Z]" \(short flag\))|missing value)`)
	missingArgument  = regexp.MustCompile(`^expected "<(.+?)>`)
	dashedValue      = regexp.MustCompile(`^--([a-z-]+): expected .* but got "(-[^"]*)"`)
)

// misplaced returns an error text for values that the parser does not accept
// where they are: after a flag and with a dash, and without the flags that a
// command needs. It returns "" for anything else.
func misplaced(err error, args []string, text string) string {
	parse, ok := errors.AsType[*kong.ParseError](err)
	if !ok || parse.Context == nil {
		return ""
	}
	if m := dashedValue.FindStringSubmatch(text); m != nil {
		for _, f := range flagsOf(parse.Context) {
			if f.Name != m[1] {
				continue
			}
			if err := tryValue(f, m[2]); err != nil {
				return fmt.Sprintf("--%s: %v", f.Name, err)
			}
		}
	}
	node := parse.Context.Selected()
	word := unexpectedWord.FindStringSubmatch(text)
	if node == nil || word == nil {
		return ""
	}
	if group := commandGroup(node, args, word[1]); group != nil {
		return withoutCommand(group, word[1])
	}
	var flags []string
	for _, f := range node.Flags {
		if f.Required {
			flags = append(flags, "--"+f.Name)
		}
	}
	first := len(args) - len(flags) // of the values that lack a flag
	if len(flags) == 0 || first < len(node.Positional) || slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }) {
		return ""
	}
	words := append([]string{"cantus"}, args[:first]...)
	for i, f := range flags {
		words = append(words, f, args[first+i])
	}
	return fmt.Sprintf("%s; did you mean %q?", text, strings.Join(words, " "))
}

// missingValue returns an error text for a flag without a value or a missing
// argument, with an example. It returns "" for anything else.
func missingValue(err error, text string) string {
	parse, ok := errors.AsType[*kong.ParseError](err)
	if !ok || parse.Context == nil {
		return ""
	}
	if m := flagWithoutValue.FindStringSubmatch(text); m != nil {
		for _, f := range flagsOf(parse.Context) {
			if f.Name == m[1] {
				return fmt.Sprintf("--%s needs a value%s", f.Name, valueExample(f))
			}
		}
	}
	node := parse.Context.Selected()
	if node != nil && len(node.Children) > 0 && strings.HasPrefix(text, "expected ") {
		return fmt.Sprintf("name a command: %s; \"cantus %s --help\" explains them", strings.Join(commandNames(node), ", "), node.Path())
	}
	if m := missingArgument.FindStringSubmatch(text); m != nil && node != nil {
		for _, arg := range node.Positional {
			if arg.Name == m[1] {
				return fmt.Sprintf("%s is missing: %s; \"cantus %s --help\" explains it", arg.Name, strings.TrimSuffix(arg.Help, "."), node.Path())
			}
		}
	}
	return ""
}

// flagsOf returns the flags of the command that is being parsed, and those of
// the one that its group means without a name.
func flagsOf(c *kong.Context) []*kong.Flag {
	flags := c.Flags()
	if node := c.Selected(); node != nil && node.DefaultCmd != nil {
		flags = append(flags, node.DefaultCmd.Flags...)
	}
	return flags
}

// valueExample returns an example of a flag's value.
func valueExample(f *kong.Flag) string {
	switch {
	case f.Enum != "":
		return ": one of " + strings.Join(f.EnumSlice(), ", ")
	case f.PlaceHolder == "TIME":
		return ", such as --" + f.Name + "=5s"
	case f.PlaceHolder == "TXID":
		return ", such as --" + f.Name + "=812"
	case f.PlaceHolder != "":
		return ": --" + f.Name + "=" + f.PlaceHolder
	}
	return ": " + f.Help
}

func parserCommand(parser *kong.Kong, name string) *kong.Node {
	for _, c := range parser.Model.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

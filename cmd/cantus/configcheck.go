package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"
)

type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Check a node's configuration without starting it, and print it."`
}

// configCheckCmd has the flags of serve.
type configCheckCmd struct {
	File string `arg:"" optional:"" name:"FILE" help:"Configuration file, as --config of \"cantus serve\"."`

	serveFlags
}

func (*configCheckCmd) Help() string {
	return `Takes the flags, the environment and the configuration file as "cantus serve" would, and prints every mistake in them, with its line in
the file. Then it prints each setting and where its value comes from, as a configuration file; secrets are left out. The exit
status is 2 if serve would refuse the configuration, else 0. A node may be running meanwhile.

It reads the files that the settings name: the NATS configuration, certificates, the cluster's token. It warns of files with secrets
that others can read, and of certificates that have expired or will within two weeks. It does not try whether ports
are free, whether the data directory is that of this node, or whether other machines answer.

Examples:

  cantus config check cantus.yaml
  cantus config check /etc/cantus/cantus.yaml --data /var/lib/cantus
  CANTUS_PARTITIONS=8 cantus config check`
}

// BeforeReset reads the environment and the configuration file. Kong calls it
// after it has parsed the command line and before it fills in other flags.
func (c *configCheckCmd) BeforeReset(ctx *kong.Context) (err error) {
	file := ""
	for _, at := range ctx.Path {
		switch {
		case at.Positional != nil:
			file = ctx.Value(at).String()
		case at.Flag != nil && at.Flag.Name == "config" && file != "":
			return usagef("the configuration file is there twice: as FILE and by --config")
		}
	}
	c.file, err = readSettings(ctx, file)
	return err
}

// Run prints the configuration and its mistakes.
func (c *configCheckCmd) Run(ctx context.Context, p *program, parsed *kong.Context) error {
	if err := c.print(p.out, parsed); err != nil {
		return err
	}
	for _, text := range slices.Concat(c.readable(), c.expiring(time.Now())) {
		p.note("warning: %s", text)
	}
	return c.refusals(ctx).err()
}

// print prints each setting as a line of a configuration file, and where its
// value comes from.
func (c *configCheckCmd) print(w io.Writer, parsed *kong.Context) error {
	given := givenFlags(parsed)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range parsed.Selected().Flags {
		if f.Name == "config" || f.Name == "help" {
			continue
		}
		text, source := settingText(f.Target), c.source(f, given[f])
		switch shown, secret := withoutSecret(f); {
		case secret:
			fmt.Fprintf(t, "# %s: %s\t# %s\n", f.Name, shown, source)
		case text == "":
			fmt.Fprintf(t, "# %s:\t# %s\n", f.Name, source)
		default:
			fmt.Fprintf(t, "%s: %s\t# %s\n", f.Name, text, source)
		}
	}
	return t.Flush()
}

// withoutSecret returns what may be shown of the value of a flag that has a
// secret in it; false for any other value.
func withoutSecret(f *kong.Flag) (string, bool) {
	switch value := f.Target.String(); {
	case f.Name == "cluster-secret" && value != "":
		return "not shown", true
	case f.Name == "archive" && withoutCredentials(value) != value:
		return withoutCredentials(value), true
	}
	return "", false
}

// source says where the value of a flag comes from.
func (c *configCheckCmd) source(f *kong.Flag, given bool) string {
	value, inFile := c.file.values[f.Name]
	env := variableOf(f)
	switch {
	case given:
		return "--" + f.Name
	case env != "":
		return env
	case inFile:
		return fmt.Sprintf("%s:%d", c.file.name, value.line)
	case f.HasDefault || f.IsBool():
		return "default"
	}
	return "not set"
}

package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// printHelp prints kong's help, with the examples at the end of the overview.
func printHelp(options kong.HelpOptions, ctx *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, ctx); err != nil {
		return err
	}
	if ctx.Selected() != nil {
		return nil
	}
	_, err := fmt.Fprintf(ctx.Stdout, "\n%s\n", examples)
	return err
}

// describeValue returns a flag's or an argument's text in the help: its
// description, its default and its environment variable.
func describeValue(v *kong.Value) string {
	var extra []string
	if v.Enum != "" {
		extra = append(extra, "one of "+strings.Join(v.EnumSlice(), ", "))
	}
	if v.HasDefault && v.Default != "" && !v.IsBool() && !strings.Contains(v.Help, "[default") {
		extra = append(extra, "default "+v.Default)
	}
	for _, env := range v.Tag.Envs {
		extra = append(extra, "$"+env)
	}
	if len(extra) == 0 {
		return v.Help
	}
	return v.Help + " [" + strings.Join(extra, "; ") + "]"
}

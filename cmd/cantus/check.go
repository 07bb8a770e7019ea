package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"text/tabwriter"

	"github.com/cantuslog/cantus/internal/judge"
)

type checkCmd struct {
	File string `arg:"" name:"FILE" help:"History to check, \"-\" for standard input."`
	JSON bool   `name:"json" help:"Print one JSON object: findings, count, a number for each class, and what was checked."`
}

func (*checkCmd) Help() string {
	return `Decides whether a recorded history is one that the protocol allows. A history is a file of JSON lines: what
clients asked for and were answered, and what each replica has in its log at the end. docs/checking.md describes
the format, and what each class of findings means.

Each finding is a line, at most ` + fmt.Sprint(judge.MaxFindings) + ` of a class and partition. A finding is proof of an error; a history without findings may still hide one.

Exit status: 0 if nothing is wrong, 1 if anything is, 2 if FILE is no history.`
}

// Run checks a history and prints what is wrong.
func (c *checkCmd) Run(p *program) error {
	h, err := c.read(p.in)
	switch {
	case errors.Is(err, judge.ErrFormat):
		return usagef("%s: %w", c.File, err)
	case err != nil:
		return usagef("%w", err)
	}
	report := judge.Check(h)
	if c.JSON {
		err = printJSON(p.out, report)
	} else {
		err = printReport(p.out, report)
	}
	if err != nil {
		return err
	}
	total := 0
	for n := range maps.Values(report.Count) {
		total += n
	}
	if total > 0 {
		return failf(exitFailed, "%s: %s of %s", c.File, plural(total, "finding"), pluralClasses(len(report.Count)))
	}
	return nil
}

func (c *checkCmd) read(in io.Reader) (*judge.History, error) {
	if c.File == "-" {
		return judge.Decode(in)
	}
	f, err := os.Open(c.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return judge.Decode(f)
}

func pluralClasses(n int) string {
	if n == 1 {
		return "1 class"
	}
	return fmt.Sprintf("%d classes", n)
}

// printReport prints the findings, how often each class was found, and what was
// checked.
func printReport(out io.Writer, r *judge.Report) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(r.Findings) > 0 {
		fmt.Fprintln(t, "PARTITION\tCLASS\tFINDING")
	}
	for _, f := range r.Findings {
		fmt.Fprintf(t, "%d\t%s\t%s\n", f.Partition, f.Class, f.Text)
	}
	if len(r.Findings) > 0 {
		fmt.Fprintln(t, "\nTIMES\tCLASS\tMEANING")
	}
	for _, class := range judge.Classes() {
		if n := r.Count[class]; n > 0 {
			fmt.Fprintf(t, "%d\t%s\t%s\n", n, class, class.Meaning())
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	verdict := "nothing is wrong"
	if len(r.Findings) > 0 {
		verdict = "something is wrong"
	}
	_, err := fmt.Fprintf(out, "%s, %s, %s of replicas: %s\n", plural(r.Operations, "operation"),
		plural(r.Transactions, "transaction"), plural(r.Drains, "log"), verdict)
	return err
}

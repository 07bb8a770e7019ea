package main

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
)

// nolint matches golangci-lint's comment with a reason.
var nolint = regexp.MustCompile(`^//nolint:([a-z,]+) // .`)

// withNolint returns the analyzer without the findings that a comment leaves
// out. A parameter that had one value so far is no finding in a test: it says
// in each call what the call means.
func withNolint(a *analysis.Analyzer) *analysis.Analyzer {
	quiet := *a
	quiet.Run = func(pass *analysis.Pass) (any, error) {
		left, err := commented(pass, a.Name)
		if err != nil {
			return nil, err
		}
		p := *pass
		p.Report = func(d analysis.Diagnostic) {
			at := pass.Fset.Position(d.Pos)
			constant := a == unusedParameters && strings.HasSuffix(at.Filename, "_test.go") && strings.Contains(d.Message, " always receives ")
			if !constant && !left[line{at.Filename, at.Line}] {
				pass.Report(d)
			}
		}
		return a.Run(&p)
	}
	return &quiet
}

// line is a line of a file.
type line struct {
	file   string
	number int
}

// commented returns the lines in which a comment leaves out an analyzer's
// findings. A comment that has a line of its own stands for the next one.
func commented(pass *analysis.Pass, name string) (map[line]bool, error) {
	lines := map[line]bool{}
	for _, f := range pass.Files {
		text, err := os.ReadFile(pass.Fset.Position(f.FileStart).Filename)
		if err != nil {
			return nil, err
		}
		for _, group := range f.Comments {
			for _, c := range group.List {
				m := nolint.FindStringSubmatch(c.Text)
				if m == nil || !slices.Contains(strings.Split(m[1], ","), name) {
					continue
				}
				at := pass.Fset.Position(c.Pos())
				if before := text[at.Offset-at.Column+1 : at.Offset]; len(bytes.TrimSpace(before)) == 0 {
					at.Line++
				}
				lines[line{at.Filename, at.Line}] = true
			}
		}
	}
	return lines, nil
}

// Command lint runs the linters of .golangci.yml that are quick to build:
// staticcheck, errname, errorlint, exported (a rule of revive), misspell,
// nilerr, unparam and usetesting. golangci-lint itself takes longer to build
// than .ci/run has time for; `make lint` runs it.
//
// A comment like golangci-lint's leaves out a finding that is wrong, in its
// line or above it:
//
//	//nolint:NAME // why it is wrong
//
// A finding of staticcheck's own analyzers takes //lint:ignore.
package main

import (
	"os"

	"codeberg.org/polyfloyd/go-errorlint/errorlint"
	errname "github.com/Antonboom/errname/pkg/analyzer"
	"github.com/gostaticanalysis/nilerr"
	"github.com/ldez/usetesting"
	"golang.org/x/tools/go/analysis"
	"honnef.co/go/tools/analysis/lint"
	"honnef.co/go/tools/lintcmd"
	"honnef.co/go/tools/simple"
	"honnef.co/go/tools/staticcheck"
	"honnef.co/go/tools/stylecheck"
	"honnef.co/go/tools/unused"
)

func main() {
	cmd := lintcmd.NewCommand("lint")
	cmd.ParseFlags(os.Args[1:])
	cmd.AddAnalyzers(simple.Analyzers...)
	cmd.AddAnalyzers(staticcheck.Analyzers...)
	cmd.AddAnalyzers(stylecheck.Analyzers...)
	cmd.AddAnalyzers(unused.Analyzer)
	errorf := errorlint.NewAnalyzer()
	if err := errorf.Flags.Set("errorf", "true"); err != nil {
		panic(err)
	}
	for _, a := range []*analysis.Analyzer{
		errname.New(),
		errorf,
		exported,
		misspelled,
		nilerr.Analyzer,
		unusedParameters,
		usetesting.NewAnalyzer(),
	} {
		cmd.AddAnalyzers(&lint.Analyzer{Doc: &lint.RawDocumentation{Title: a.Doc}, Analyzer: withNolint(a)})
	}
	cmd.Run()
}

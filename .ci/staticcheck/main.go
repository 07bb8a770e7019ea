// Command staticcheck is staticcheck with the analyzers errname and usetesting:
// those of .golangci.yml that are quick to build. golangci-lint itself takes
// longer to build than .ci/run has time for; `make lint` runs it.
package main

import (
	"os"

	errname "github.com/Antonboom/errname/pkg/analyzer"
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
	cmd := lintcmd.NewCommand("staticcheck")
	cmd.ParseFlags(os.Args[1:])
	cmd.AddAnalyzers(simple.Analyzers...)
	cmd.AddAnalyzers(staticcheck.Analyzers...)
	cmd.AddAnalyzers(stylecheck.Analyzers...)
	cmd.AddAnalyzers(unused.Analyzer)
	for _, a := range []*analysis.Analyzer{errname.New(), usetesting.NewAnalyzer()} {
		cmd.AddAnalyzers(&lint.Analyzer{Doc: &lint.RawDocumentation{Title: a.Doc}, Analyzer: a})
	}
	cmd.Run()
}

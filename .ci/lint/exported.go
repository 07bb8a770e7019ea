package main

import (
	"go/token"
	"os"

	revive "github.com/mgechev/revive/lint"
	"github.com/mgechev/revive/rule"
	"golang.org/x/tools/go/analysis"
)

// exported checks with revive that each exported name has a comment that
// begins with it.
var exported = &analysis.Analyzer{
	Name: "revive",
	Doc:  "revive's rule exported",
	Run: func(pass *analysis.Pass) (any, error) {
		files := map[string]*token.File{}
		var names []string
		for _, f := range pass.Files {
			file := pass.Fset.File(f.FileStart)
			files[file.Name()] = file
			names = append(names, file.Name())
		}
		check := &rule.ExportedRule{}
		if err := check.Configure(nil); err != nil {
			return nil, err
		}
		linter := revive.New(os.ReadFile, 0)
		failures, err := linter.Lint([][]string{names}, []revive.Rule{check}, revive.Config{
			Confidence: 0.8,
			Rules:      revive.RulesConfig{"exported": {}},
		})
		if err != nil {
			return nil, err
		}
		for f := range failures {
			if file := files[f.Filename()]; file != nil {
				pass.Reportf(file.Pos(f.Position.Start.Offset), "%s", f.Failure)
			}
		}
		return nil, nil
	},
}

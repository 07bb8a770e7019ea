package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/buildssa"
	"golang.org/x/tools/go/packages"
	"mvdan.cc/unparam/check"
)

// unusedParameters looks for parameters and results that could be left out.
var unusedParameters = &analysis.Analyzer{
	Name:     "unparam",
	Doc:      "unused parameters and results",
	Requires: []*analysis.Analyzer{buildssa.Analyzer},
	Run: func(pass *analysis.Pass) (any, error) {
		if tested, err := testedWithin(pass); err != nil || tested {
			return nil, err // it is checked together with its tests
		}
		ssa := pass.ResultOf[buildssa.Analyzer].(*buildssa.SSA)
		checker := &check.Checker{}
		checker.Packages([]*packages.Package{{
			Fset:      pass.Fset,
			Syntax:    pass.Files,
			Types:     pass.Pkg,
			TypesInfo: pass.TypesInfo,
		}})
		checker.ProgramSSA(ssa.Pkg.Prog)
		found, err := checker.Check()
		for _, f := range found {
			pass.Reportf(f.Pos(), "%s", f.Message())
		}
		return nil, err
	},
}

// testedWithin reports whether the package has tests in its own name, and is
// here without them: they may call a function in ways that nothing else does.
func testedWithin(pass *analysis.Pass) (bool, error) {
	var dir string
	for _, f := range pass.Files {
		name := pass.Fset.File(f.FileStart).Name()
		if strings.HasSuffix(name, "_test.go") {
			return false, nil
		}
		dir = filepath.Dir(name)
	}
	tests, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return false, err
	}
	for _, test := range tests {
		var f *ast.File
		f, err = parser.ParseFile(token.NewFileSet(), test, nil, parser.PackageClauseOnly)
		if err != nil {
			return false, err
		}
		if f.Name.Name == pass.Pkg.Name() {
			return true, nil
		}
	}
	return false, nil
}

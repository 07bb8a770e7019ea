package cantus_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// What is longer is split, tests aside.
const (
	maxFileLines     = 600
	maxFunctionLines = 65
)

func TestFilesAndFunctionsAreShort(t *testing.T) {
	for _, path := range proseFiles(t) {
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			continue
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), "\n"); n > maxFileLines {
			t.Errorf("%s has %d lines: at most %d are allowed", path, n, maxFileLines)
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := files.Position(fn.End()).Line - files.Position(fn.Pos()).Line + 1; n > maxFunctionLines {
				t.Errorf("%s: %s has %d lines: at most %d are allowed", path, fn.Name.Name, n, maxFunctionLines)
			}
		}
	}
}

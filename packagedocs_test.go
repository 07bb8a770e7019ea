package cantus_test

import (
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// publicPackages are those whose documentation begins with a short program.
var publicPackages = []string{"client", "client/sqlview", "client/group", "cantustest", "broker", "lockmgr"}

// TestPackageDocsBeginWithAProgram checks that the program in a package's
// documentation is code that compiles and runs: its lines are those of one of
// the package's examples, in order. It may leave lines out, such as the
// handling of errors, and add comments.
func TestPackageDocsBeginWithAProgram(t *testing.T) {
	for _, dir := range publicPackages {
		program := programOf(t, dir)
		if len(program) < 4 {
			t.Errorf("%s: doc.go begins with a program of %d lines", dir, len(program))
		}
		if !slices.ContainsFunc(examplesOf(t, dir), func(example []string) bool { return isWithin(program, example) }) {
			t.Errorf("%s: the program in doc.go is in none of the package's examples:\n%s", dir, strings.Join(program, "\n"))
		}
	}
}

// programOf returns the lines of the first code block of a package's
// documentation, which has to come before any heading or list.
func programOf(t *testing.T, dir string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, "doc.go"), nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var p comment.Parser
	for _, block := range p.Parse(f.Doc.Text()).Content {
		switch block := block.(type) {
		case *comment.Code:
			return codeLines(block.Text)
		case *comment.Heading, *comment.List:
			return nil
		}
	}
	return nil
}

// examplesOf returns the lines of each example of a package.
func examplesOf(t *testing.T, dir string) (all [][]string) {
	t.Helper()
	path := filepath.Join(dir, "example_test.go")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, path, text, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Example") {
			all = append(all, codeLines(string(text[files.Position(fn.Pos()).Offset:files.Position(fn.End()).Offset])))
		}
	}
	return all
}

// codeLines returns the lines of code, without indentation, comments and empty
// lines.
func codeLines(code string) (lines []string) {
	for line := range strings.Lines(code) {
		line, _, _ = strings.Cut(line, "// ")
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// isWithin reports whether all has the lines of part, in order.
func isWithin(part, all []string) bool {
	for _, line := range part {
		i := slices.Index(all, line)
		if i < 0 {
			return false
		}
		all = all[i+1:]
	}
	return true
}

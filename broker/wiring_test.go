package broker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// No part of a node has the node: each states what it needs. So nothing but the files
// that wire a node has a field, a parameter or a result of its type.
func TestNoPartHasTheNode(t *testing.T) {
	wiring := map[string]bool{"node.go": true, "wiring.go": true}
	files := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fields := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if f, is := n.(*ast.FuncDecl); is && f.Recv != nil && namesNode(f.Recv.List[0].Type) {
				if f.Body != nil {
					ast.Inspect(f.Type, check(t, files, wiring[name], &fields))
					ast.Inspect(f.Body, check(t, files, wiring[name], &fields))
				}
				return false // the receiver may be the node
			}
			check(t, files, wiring[name], &fields)(n)
			return true
		})
	}
	if fields < 500 {
		t.Errorf("the test has seen %d fields and parameters: it would miss some", fields)
	}
}

// check reports fields, parameters and results that are the node.
func check(t *testing.T, files *token.FileSet, may bool, seen *int) func(ast.Node) bool {
	return func(n ast.Node) bool {
		if f, is := n.(*ast.Field); is {
			if *seen++; !may && namesNode(f.Type) {
				t.Errorf("%s: a part must not have the node: let it state what it needs", files.Position(f.Pos()))
			}
		}
		return true
	}
}

// namesNode reports whether a type is made of the node's: *Node, []*Node, func(*Node).
func namesNode(typ ast.Expr) (is bool) {
	ast.Inspect(typ, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && id.Name == "Node" {
			is = true
		}
		return !is
	})
	return is
}

package broker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// No part of a node has the node: each states what it needs. So only node.go,
// with Open, has a field, a parameter or a result of type *Node; and the
// methods of Node are in the files that open, wire, reload and close it.
func TestNoPartHasTheNode(t *testing.T) {
	own := map[string]bool{"node.go": true, "wiring.go": true, "reload.go": true, "close.go": true}
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
				if !own[name] {
					t.Errorf("%s: a method of the node: let a part state what it needs, and have the method", files.Position(f.Pos()))
				}
				ast.Inspect(f.Type, check(t, files, name == "node.go", &fields))
				ast.Inspect(f.Body, check(t, files, name == "node.go", &fields))
				return false // the receiver may be the node
			}
			check(t, files, name == "node.go", &fields)(n)
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

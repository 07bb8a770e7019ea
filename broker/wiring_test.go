package broker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// No part of a node has the node: each states what it needs. So only node.go,
// with Open, has a field, a parameter or a result of type *Node; and the
// methods of Node are in the files that open, wire, reload, probe and close it,
// and log in to it.
func TestNoPartHasTheNode(t *testing.T) {
	checkHolders(t, "Node", []string{"node.go"}, []string{"node.go", "wiring.go", "reload.go", "close.go", "login.go", "probe.go"})
}

// No part of a replica has the replica, or all that it is given by its node.
// Only those that open, close and list replicas have one, and its methods are
// in the files that wire its parts and take it through a leader epoch.
func TestNoPartHasTheReplica(t *testing.T) {
	checkHolders(t, "replica", []string{"replica.go", "replicacontroller.go", "replicas.go", "scrapepartitions.go"},
		[]string{"replica.go", "leader.go", "subscriptions.go", "reconcile.go"})
	checkHolders(t, "host", []string{"replica.go", "wiring.go", "replicacontroller.go"}, nil)
}

// checkHolders reports fields, parameters and results of a type outside some
// files, and its methods outside others.
func checkHolders(t *testing.T, typ string, holders, methods []string) {
	t.Helper()
	files := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fields, held := 0, map[string]bool{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		receivers := map[*ast.Field]bool{}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil || !hasType(n.Recv.List[0].Type, typ) {
					return true
				}
				receivers[n.Recv.List[0]] = true
				if held[name] = true; !slices.Contains(methods, name) {
					t.Errorf("%s: a method of %s: let a part state what it needs, and have the method", files.Position(n.Pos()), typ)
				}
			case *ast.Field:
				if fields++; receivers[n] || !hasType(n.Type, typ) {
					return true
				}
				if held[name] = true; !slices.Contains(holders, name) {
					t.Errorf("%s: a part must not have %s: let it state what it needs", files.Position(n.Pos()), typ)
				}
			}
			return true
		})
	}
	if fields < 500 {
		t.Errorf("the test has seen %d fields and parameters: it would miss some", fields)
	}
	for _, name := range slices.Concat(holders, methods) {
		if !held[name] {
			t.Errorf("%s has no %s and no method of it any more: remove it from the list", name, typ)
		}
	}
}

// hasType reports whether a type is made of a named one of this package: for
// Node, *Node, []*Node and func(*Node) are.
func hasType(typ ast.Expr, name string) (has bool) {
	ast.Inspect(typ, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			has = has || hasType(n.Type, name) // its own name is not a type
			return false
		case *ast.SelectorExpr:
			return false
		case *ast.Ident:
			has = has || n.Name == name
		}
		return !has
	})
	return has
}

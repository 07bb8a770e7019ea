package main

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// configFile holds the flags that a configuration file sets, by name. The
// command line and the environment have precedence over it, and it over the
// defaults.
type configFile map[string]string

// loadConfig reads a YAML file whose keys are flags of node, and checks each
// value with its flag. Its errors name file, line and key.
func loadConfig(file string, node *kong.Node) (configFile, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	doc, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, fmt.Errorf("--config %s is not YAML: %w", file, err)
	}
	entries, err := configEntries(file, doc)
	if err != nil {
		return nil, err
	}
	flags := configFlags(node)
	config := configFile{}
	for _, e := range entries {
		at := fmt.Sprintf("%s:%d", file, e.Key.GetToken().Position.Line)
		key := e.Key.GetToken().Value
		flag, ok := flags[key]
		if !ok {
			return nil, unknownKey(at, key, flags)
		}
		if _, ok := config[key]; ok {
			return nil, fmt.Errorf("%s: key %q is there twice", at, key)
		}
		value, ok := scalar(e.Value)
		if !ok {
			return nil, fmt.Errorf("%s: %s needs a single value, not a list or a map", at, key)
		}
		if err := tryValue(flag, value); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", at, key, err)
		}
		config[key] = value
	}
	return config, nil
}

// configEntries returns the entries of a document that is one map. An empty
// document has none.
func configEntries(file string, doc *ast.File) ([]*ast.MappingValueNode, error) {
	var bodies []ast.Node
	for _, d := range doc.Docs {
		if d.Body != nil && d.Body.Type() != ast.NullType && d.Body.Type() != ast.CommentType {
			bodies = append(bodies, d.Body)
		}
	}
	switch len(bodies) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, fmt.Errorf("--config %s holds %d documents: one is allowed", file, len(bodies))
	}
	switch body := bodies[0].(type) {
	case *ast.MappingNode:
		return body.Values, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{body}, nil
	}
	return nil, fmt.Errorf("--config %s is not a map of flags to values, such as \"partitions: 4\"", file)
}

// configFlags returns the flags of a command that a file may set.
func configFlags(node *kong.Node) map[string]*kong.Flag {
	flags := map[string]*kong.Flag{}
	for _, f := range node.Flags {
		if f.Name != "config" && f.Name != "help" {
			flags[f.Name] = f
		}
	}
	return flags
}

func unknownKey(at, key string, flags map[string]*kong.Flag) error {
	var names []string
	for name := range flags {
		names = append(names, name)
	}
	slices.Sort(names)
	if near := nearest(strings.ReplaceAll(key, "_", "-"), names); near != "" {
		return fmt.Errorf("%s: unknown key %q: did you mean %q?", at, key, near)
	}
	return fmt.Errorf("%s: unknown key %q: the keys are %s", at, key, strings.Join(names, ", "))
}

// scalar returns a value as text, so that the flag parses 4, "4" and 256MiB as
// on the command line.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// tryValue returns nil if a flag accepts value. It changes nothing.
func tryValue(flag *kong.Flag, value string) error {
	set := flag.Set
	defer func() { flag.Set = set }()
	target := reflect.New(flag.Target.Type()).Elem()
	err := flag.Parse(kong.Scan().PushTyped(value, kong.FlagValueToken), target)
	if err == nil {
		err = checkEnum(flag, value)
	}
	if inner := errors.Unwrap(err); inner != nil {
		return inner // without the flag's name, which the caller adds
	}
	return err
}

func checkEnum(flag *kong.Flag, value string) error {
	if flag.Enum == "" || flag.EnumMap()[value] {
		return nil
	}
	return fmt.Errorf("%q is none of %s", value, strings.Join(flag.EnumSlice(), ", "))
}

// Validate implements [kong.Resolver].
func (configFile) Validate(*kong.Application) error { return nil }

// Resolve implements [kong.Resolver]. Kong calls it for flags that are not on
// the command line, after it has applied the environment.
func (c configFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	value, ok := c[flag.Name]
	if !ok {
		return nil, nil
	}
	for _, env := range flag.Envs {
		if _, set := os.LookupEnv(env); set {
			return nil, nil
		}
	}
	return value, nil
}

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// configFile is a configuration file: the flags that it sets, by name. The
// command line and the environment have precedence over it, and it over the
// defaults.
type configFile struct {
	name   string
	values map[string]configValue
}

// configValue is a value as on the command line, and its key's line.
type configValue struct {
	text string
	line int
}

// loadConfig reads a YAML file whose keys are flags of node, and checks each
// value with its flag. The errors name file, line and key. A flag that is
// overridden is not used, so that a file that it names need not be there.
func loadConfig(file string, node *kong.Node, overridden func(*kong.Flag) bool) (configFile, mistakes) {
	config := configFile{file, map[string]configValue{}}
	text, err := readBounded(file)
	if err != nil {
		return config, mistakes{fmt.Errorf("--config: %w", err)}
	}
	doc, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return config, mistakes{notYAML(file, err)}
	}
	entries, err := configEntries(file, doc)
	if err != nil {
		return config, mistakes{err}
	}
	var all mistakes
	flags := configFlags(node)
	for _, e := range entries {
		key, line := e.Key.GetToken().Value, lineOf(e.Key)
		at := fmt.Sprintf("%s:%d", file, line)
		flag, ok := flags[key]
		if !ok {
			all = append(all, unknownKey(at, key, flags))
			continue
		}
		if first, ok := config.values[key]; ok {
			all = append(all, fmt.Errorf("%s: key %q is there twice: first in line %d", at, key, first.line))
			continue
		}
		text, wrong := config.value(flag, e, overridden(flag))
		all = append(all, wrong...)
		config.values[key] = configValue{text, line}
	}
	return config, all
}

// maxRead bounds the files that are read as a whole: settings, tokens and
// certificates.
const maxRead = 1 << 20

// readBounded reads a file, and refuses one that is too large to be what it was
// named as, such as /dev/zero.
func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRead+1))
	if err == nil && len(text) > maxRead {
		err = fmt.Errorf("%s has more than 1 MiB: name the right file", file)
	}
	return text, err
}

// notYAML returns the error for a file that is not YAML. It does not show the
// file's text, as the parser's own error does: there may be a secret in it.
func notYAML(file string, err error) error {
	if at, ok := errors.AsType[yaml.Error](err); ok && at.GetToken() != nil {
		return fmt.Errorf("%s:%d: not YAML: %s", file, at.GetToken().Position.Line, at.GetMessage())
	}
	return fmt.Errorf("--config %s is not YAML", file)
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

// value returns an entry's value as on the command line: a list's elements are
// joined by commas. Each element is checked by itself, so that its error can
// name its line.
func (c configFile) value(flag *kong.Flag, e *ast.MappingValueNode, overridden bool) (text string, all mistakes) {
	elements := []ast.Node{e.Value}
	list, isList := e.Value.(*ast.SequenceNode)
	if isList = isList && isListFlag(flag) && len(list.Values) > 0; isList {
		elements = list.Values
	}
	var texts []string
	for _, n := range elements {
		text, ok := scalar(n)
		line, err := lineOf(n), error(nil)
		switch {
		case !ok:
			line, err = max(line, lineOf(e.Key)), notScalar(flag, n, isList)
		case isList && strings.Contains(text, ","):
			err = fmt.Errorf("%q holds a comma: make each value an element of its own", text)
		default:
			err = checkSetting(flag, text, overridden)
		}
		if err != nil {
			all = append(all, fmt.Errorf("%s:%d: %s: %w", c.name, line, flag.Name, err))
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ","), all
}

func isListFlag(flag *kong.Flag) bool { return flag.Target.Kind() == reflect.Slice }

// notScalar returns the error for a value that is no text, and says what would
// be right.
func notScalar(flag *kong.Flag, n ast.Node, element bool) error {
	what := "an anchor, an alias or a tag"
	switch n.Type() {
	case ast.SequenceType:
		what = "a list"
		if isListFlag(flag) && !element {
			what = "an empty list"
		}
	case ast.MappingType, ast.MappingValueType:
		what = "a map"
	case ast.NullType:
		what = "nothing"
	}
	example := strings.TrimSuffix(flag.PlaceHolder, ",…")
	if flag.IsBool() {
		example = "true"
	}
	if isListFlag(flag) {
		return fmt.Errorf("takes a list of values, and here is %s: write \"%s: [%s, %s]\", or leave the key out", what, flag.Name, example, example)
	}
	return fmt.Errorf("takes one value, and here is %s: write \"%s: %s\", or leave the key out", what, flag.Name, example)
}

// lineOf returns a node's line, 0 if it has none.
func lineOf(n ast.Node) int {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 0
	}
	return n.GetToken().Position.Line
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
	_, err := parseValue(flag, value)
	return err
}

// checkSetting is tryValue for a flag of serve: the value must also be in the
// range that the node accepts. A flag that is overridden is not used: a file
// that it names need not be there.
func checkSetting(flag *kong.Flag, value string, overridden bool) error {
	set := flag.Set
	defer func() { flag.Set = set }()
	flag.Set = overridden
	v, err := parseValue(flag, value)
	if err != nil {
		return err
	}
	return checkRange(flag.Name, v)
}

// parseValue returns the value that a flag makes of a text. It changes nothing.
func parseValue(flag *kong.Flag, value string) (reflect.Value, error) {
	set := flag.Set
	defer func() { flag.Set = set }()
	target := reflect.New(flag.Target.Type()).Elem()
	err := flag.Parse(kong.Scan().PushTyped(value, kong.FlagValueToken), target)
	if err == nil {
		err = checkEnum(flag, value)
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the flag's name, which the caller adds
	}
	return target, err
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
	value, ok := c.values[flag.Name]
	if !ok || variableOf(flag) != "" {
		return nil, nil
	}
	return value.text, nil
}

// variableOf returns the variable that sets a flag, "" if none is set.
func variableOf(flag *kong.Flag) string {
	for _, env := range flag.Envs {
		if _, set := os.LookupEnv(env); set {
			return env
		}
	}
	return ""
}

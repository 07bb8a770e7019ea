package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// configurationPage has the settings of a node, in tables between two marks,
// which this test writes with -update.
const (
	configurationPage = "../../docs/configuration.md"
	tablesBegin       = "<!-- make configuration writes from here on -->\n"
	tablesEnd         = "<!-- up to here -->\n"
)

// TestConfigurationPage checks that the page's tables are those of serve's
// flags.
func TestConfigurationPage(t *testing.T) {
	text, err := os.ReadFile(configurationPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), tablesBegin)
	_, after, ended := strings.Cut(rest, tablesEnd)
	if !found || !ended {
		t.Fatalf("%s lacks the marks %q and %q", configurationPage, tablesBegin, tablesEnd)
	}
	want := before + tablesBegin + "\n" + settingTables(t) + "\n" + tablesEnd + after
	if *update {
		if err := os.WriteFile(configurationPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Errorf("%s is stale: run \"make configuration\"; want\n%s", configurationPage, settingTables(t))
	}
}

func serveNode(t *testing.T) *kong.Node {
	t.Helper()
	parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	return parserCommand(parser, "serve")
}

// settingTables returns a table for each group of serve's flags.
func settingTables(t *testing.T) string {
	titles := []string{"Node", "Cluster", "Limits", "Log", "Traces"}
	rows := map[string][]string{}
	for _, f := range serveNode(t).Flags {
		if f.Name == "help" || f.Name == "config" {
			continue
		}
		title := titles[0]
		if f.Group != nil {
			title = strings.TrimSuffix(f.Group.Title, ":")
		}
		if !slices.Contains(titles, title) {
			t.Errorf("--%s is in the group %s, which the page does not have", f.Name, title)
		}
		rows[title] = append(rows[title], settingRow(t, f))
	}
	var parts []string
	for _, title := range titles {
		parts = append(parts, "## "+title+"\n\n| key | flag | variable | default | unit | range | reloaded | meaning |\n|---|---|---|---|---|---|---|---|\n"+
			strings.Join(rows[title], ""))
	}
	return strings.Join(parts, "\n")
}

// defaultInHelp is what a flag's description says of a default that is none of
// the flag's own.
var defaultInHelp = regexp.MustCompile(` \[default (.*)\]$`)

func settingRow(t *testing.T, f *kong.Flag) string {
	meaning, standard := f.Help, "–"
	switch m := defaultInHelp.FindStringSubmatch(meaning); {
	case m != nil:
		meaning, standard = strings.TrimSuffix(meaning, m[0]), m[1]
	case f.HasDefault:
		standard = "`" + f.Default + "`"
	case f.IsBool():
		standard = "`false`"
	}
	unit, span := settingUnit(t, f)
	reloaded := "no"
	if slices.Contains(reloadable, f.Name) {
		reloaded = "yes"
	}
	return fmt.Sprintf("| `%s` | `--%s` | `%s` | %s | %s | %s | %s | %s |\n", f.Name, f.Name, strings.Join(f.Envs, "`, `"), standard, unit, span, reloaded,
		strings.ReplaceAll(meaning, "|", `\|`))
}

// settingUnit returns in what a setting is given, and what it may be.
func settingUnit(t *testing.T, f *kong.Flag) (unit, span string) {
	none := "–"
	between := func(suffix string) string {
		r, ok := rangeOf(f.Name)
		if !ok {
			t.Errorf("--%s has no range: rangedFlags in settings.go lacks it", f.Name)
		}
		show := func(n int64) string { return settingText(reflect.ValueOf(n).Convert(f.Target.Type())) }
		return show(max(r.Least, 1)) + " to " + show(r.Most) + suffix
	}
	if f.Enum != "" {
		return "word", strings.Join(f.EnumSlice(), ", ")
	}
	switch f.Target.Interface().(type) {
	case bool:
		return none, "true, false"
	case string:
		return strings.ReplaceAll(f.PlaceHolder, "|", " or "), none
	case token:
		return "name", fmt.Sprintf("1 to %d bytes, no space, `.`, `*` or `>`", subjects.MaxToken)
	case prefix:
		return "subject", "names joined by dots"
	case listenAddr, dialAddr:
		return "HOST:PORT", none
	case optionalAddr:
		return "HOST:PORT", "or off"
	case addresses:
		return "list of HOST:PORT", none
	case nodeNames:
		return "list of names", none
	case count, partitionCount:
		return "number", between("")
	case replicaCount:
		return "number", "1, 3, 5"
	case duration:
		return "time: ms, s, m, h", between("")
	case idWindow:
		return "time: ms, s, m, h", between(", or log")
	case byteSize:
		return "size: KiB, MiB, GiB", between("")
	case collectorURL:
		return "URL", "http, https"
	case share:
		return "number", "0 to 1"
	case scrubRate:
		return "size: KiB, MiB, GiB", between(", or off")
	}
	t.Errorf("--%s is a %v, which the page has no words for", f.Name, f.Target.Type())
	return none, none
}

// TestRangesOfSettings checks that the range of each setting is that of the
// option that it becomes.
func TestRangesOfSettings(t *testing.T) {
	g := &grammar{}
	parser, err := (&program{out: io.Discard, errOut: io.Discard}).parser(g, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"serve"}); err != nil {
		t.Fatal(err)
	}
	dir, checked := t.TempDir(), 0
	for _, f := range parserCommand(parser, "serve").Flags {
		r, ok := rangeOf(f.Name)
		if !ok {
			continue
		}
		checked++
		normal := f.Target.Int()
		for _, n := range []int64{r.Least - 1, r.Least, r.Most, r.Most + 1} {
			f.Target.SetInt(n)
			opts, err := g.Serve.options()
			if err != nil {
				t.Fatal(err)
			}
			right := n >= r.Least && n <= r.Most || n == 0 || n < 0 && f.Name == "scrub-rate" // 0 is the default
			if all := broker.Check(dir, opts); right != (len(all) == 0) {
				t.Errorf("--%s of %d: %v", f.Name, n, all)
			}
		}
		f.Target.SetInt(normal)
	}
	if checked != len(rangedFlags) || checked != len(broker.Ranges()) {
		t.Errorf("%d settings have a range, rangedFlags has %d, and the broker %d", checked, len(rangedFlags), len(broker.Ranges()))
	}
}

func TestTextsOfSettings(t *testing.T) {
	for _, test := range []struct {
		value any
		text  string
	}{
		{byteSize(1), "1B"}, {byteSize(1 << 20), "1MiB"}, {byteSize(3 << 30), "3GiB"}, {byteSize(1500), "1500B"}, {byteSize(1 << 50), "1PiB"},
		{scrubRate(-1), "off"}, {scrubRate(4 << 20), "4MiB"}, {optionalAddr(""), "off"}, {optionalAddr(":80"), `":80"`},
		{duration(2 * time.Minute), "2m"}, {duration(time.Hour), "1h"}, {duration(90 * time.Second), "1m30s"}, {duration(500 * time.Millisecond), "500ms"},
		{addresses{"[::1]:1", "b:2"}, `["[::1]:1", b:2]`}, {addresses(nil), ""}, {token("null"), `"null"`}, {token("a: b#"), `"a: b#"`},
		{true, "true"}, {count(5), "5"}, {partitionCount(0), ""},
	} {
		if got := settingText(reflect.ValueOf(test.value)); got != test.text {
			t.Errorf("%v: %s, want %s", test.value, got, test.text)
		}
	}
}

// TestNoVariableLooksLikeAServices checks that Kubernetes never sets a variable
// of ours for a Service, whatever its name is.
func TestNoVariableLooksLikeAServices(t *testing.T) {
	parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	all := variablesOf(parser.Model.Node)
	if len(all) < 50 {
		t.Fatalf("%d variables: the test would see little", len(all))
	}
	for _, name := range all {
		if !strings.HasPrefix(name, variablePrefix) {
			t.Errorf("%s does not begin with %s", name, variablePrefix)
		}
		for i, c := range name {
			if c == '_' && serviceVariable.MatchString(name[i:]) {
				t.Errorf("Kubernetes sets %s in a pod if there is a Service of the name %q", name, name[:i])
			}
		}
	}
}

// TestVariablesOfTestsAreKnown checks that a command which a test starts does
// not refuse a variable that the test itself reads.
func TestVariablesOfTestsAreKnown(t *testing.T) {
	name := regexp.MustCompile(`"(CANTUS_[A-Z0-9_]+)"`)
	var read []string
	err := filepath.WalkDir("../..", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() && path == filepath.Join("..", "..", "cmd") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			read = append(read, m[1])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, name := range read {
		env[name] = "1"
	}
	for _, name := range testVariables {
		if env[name] == "" {
			t.Errorf("no test reads %s", name)
		}
	}
	parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range unknownVariables(parser.Model.Node, env) {
		t.Errorf("testVariables lacks one: %v", err)
	}
}

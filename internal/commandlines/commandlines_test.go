package commandlines_test

import (
	"reflect"
	"testing"

	"github.com/cantuslog/cantus/internal/commandlines"
)

func TestIn(t *testing.T) {
	const text = "# Page\n\nText:\n\n    cantus serve --name n1 \\\n      --data d\n    # a comment\n    {\"payload\":\"x\"}\n    15 2 * * * A=b cantus backup >/dev/null\n\n" +
		"1. An item\n    make them wrap\n\n       cantus status\n\n```sh\nwhoami\n```\n\n```\n$ nats req a\n{\"txid\":1}\n$ nats req b\n```\n\n" +
		"```ini\nExecStart=/usr/bin/cantus serve\n```\n\n    make([]byte, 1)\n    go func() {}\n    node, err := broker.Open()\n"
	got := commandlines.In("p.md", text)
	want := []commandlines.Line{
		{Page: "p.md", Number: 5, Text: "cantus serve --name n1 --data d"},
		{Page: "p.md", Number: 9, Text: "A=b cantus backup >/dev/null"},
		{Page: "p.md", Number: 14, Text: "cantus status"},
		{Page: "p.md", Number: 17, Text: "whoami"},
		{Page: "p.md", Number: 21, Text: "nats req a", Prints: "{\"txid\":1}\n"},
		{Page: "p.md", Number: 23, Text: "nats req b"},
		{Page: "p.md", Number: 27, Text: "/usr/bin/cantus serve"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant\n%+v", got, want)
	}
}

func TestSplit(t *testing.T) {
	type commands = []commandlines.Command
	for line, want := range map[string]commands{
		`echo '{"a": 1}' | cantus append 0 --write a.>`:       {{Words: []string{"echo", `{"a": 1}`}}, {Words: []string{"cantus", "append", "0", "--write", "a.>"}}},
		`(umask 077; openssl rand -hex 32 > token)`:           {{Words: []string{"umask", "077"}}, {Words: []string{"openssl", "rand", "-hex", "32"}}},
		`A=b C="d e" cantus x 2>&1 >>file </dev/null # as is`: {{Set: []string{"A=b", "C=d e"}, Words: []string{"cantus", "x"}}},
		`cd a && make b; true`:                                {{Words: []string{"cd", "a"}}, {Words: []string{"make", "b"}}, {Words: []string{"true"}}},
		`kill -HUP "$(pidof cantus)"`:                         {{Words: []string{"kill", "-HUP", "$(pidof cantus)"}}},
	} {
		if got := commandlines.Split(line); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", line, got, want)
		}
	}
	if p := (commandlines.Command{Words: []string{"/usr/bin/cantus"}}).Program(); p != "cantus" {
		t.Errorf("the program is %q", p)
	}
}

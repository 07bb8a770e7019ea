package shell_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/cantustest"
)

// request is a line of the document, with the expected answers.
type request struct {
	line    string
	msg     *nats.Msg
	many    bool
	answers []string
}

// words splits a command line as a shell does, as far as the document needs it.
func words(line string) (all []string) {
	for _, w := range regexp.MustCompile(`'[^']*'|\S+`).FindAllString(line, -1) {
		all = append(all, strings.Trim(w, "'"))
	}
	return all
}

func parse(t *testing.T, line string) *request {
	t.Helper()
	r := &request{line: line, msg: &nats.Msg{Header: nats.Header{}}}
	var plain []string
	args := words(line)
	if len(args) < 2 || args[0] != "nats" || args[1] != "req" {
		t.Fatalf("not a nats req: %s", line)
	}
	for i := 2; i < len(args); i++ {
		switch {
		case args[i] == "-H":
			i++
			key, value, ok := strings.Cut(args[i], ":")
			if !ok {
				t.Fatalf("not a header: %s", args[i])
			}
			r.msg.Header.Add(key, value)
		case args[i] == "--replies=0":
			r.many = true
		case args[i] == "--raw", strings.HasPrefix(args[i], "--timeout="):
		default:
			plain = append(plain, args[i])
		}
	}
	if len(plain) != 2 {
		t.Fatalf("not a subject and a body: %q", plain)
	}
	r.msg.Subject, r.msg.Data = plain[0], []byte(plain[1])
	return r
}

// requests reads the document.
func requests(t *testing.T) (all []*request) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		switch command, isCommand := strings.CutPrefix(line, "$ "); {
		case line == "```":
			inside = !inside
		case inside && isCommand:
			all = append(all, parse(t, command))
		case inside:
			last := all[len(all)-1]
			last.answers = append(last.answers, line)
		}
	}
	return all
}

func TestTheDocumentsRequestsAreAnsweredSo(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{Partitions: 3})
	nc, err := l.Connect()
	if err != nil {
		t.Fatal(err)
	}
	all := requests(t)
	if len(all) < 8 {
		t.Fatalf("the document has %d requests: the test would see nothing", len(all))
	}
	for _, r := range all {
		sub, err := nc.SubscribeSync(nats.NewInbox())
		if err != nil {
			t.Fatal(err)
		}
		r.msg.Reply = sub.Subject
		if err := nc.PublishMsg(r.msg); err != nil {
			t.Fatal(err)
		}
		for i, want := range r.answers {
			m, err := sub.NextMsg(time.Minute)
			if err != nil {
				t.Fatalf("%s\nanswer %d: %v", r.line, i, err)
			}
			pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".*") + "$"
			if len(m.Data) == 0 {
				m.Data = []byte("nil body") // what the command prints
			}
			if !regexp.MustCompile(pattern).Match(m.Data) {
				t.Errorf("%s\nis answered\n%s\nand not\n%s", r.line, m.Data, want)
			}
			if last := i == len(r.answers)-1; r.many && last != (m.Header.Get("Status") == "204") {
				t.Errorf("%s\nanswer %d has the status %q", r.line, i, m.Header.Get("Status"))
			}
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
}

//go:build interop

package node_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

func script(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "node", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("node %v: %v (did you run npm ci in examples/node?)\n%s", args, err, out)
	}
	return string(out)
}

func TestTransactLosesNone(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { script(t, "transact.mjs", l.URL(), "visits", "2") })
	}
	wg.Wait()
	if out := script(t, "transact.mjs", l.URL(), "visits", "1"); out != "visits 7\n" {
		t.Errorf("it says %q", out)
	}
}

func TestFollowOfAPartitionThatDoesNotExist(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	out, err := exec.CommandContext(t.Context(), "node", "follow.mjs", l.URL(), "9").CombinedOutput()
	if want := "partition 9 does not exist: this cluster has"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("it ended with %v and says %q", err, out)
	}
}

func TestWithoutANode(t *testing.T) {
	for _, args := range [][]string{{"follow.mjs", "nats://127.0.0.1:1", "0"}, {"transact.mjs", "nats://127.0.0.1:1", "visits", "1"}, {"courses.mjs", "nats://127.0.0.1:1", "enroll", "go", "alice"}} {
		out, err := exec.CommandContext(t.Context(), "node", args...).CombinedOutput()
		want := "no connection to nats://127.0.0.1:1: "
		if err == nil || !strings.HasPrefix(string(out), want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s ended with %v and says %q", args[0], err, out)
		}
	}
}

func TestFollowPrintsAll(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	want, first := "", ""
	for i := range 300 { // more than one read returns
		if _, err := c.Append(t.Context(), &client.Request{Payload: fmt.Append(nil, i), Kind: "n"}); err != nil {
			t.Fatal(err)
		}
		want += fmt.Sprintf("%d n %d\n", i+1, i)
		if i == 2 {
			first = want
		}
	}
	if out := script(t, "follow.mjs", l.URL(), "0", "3"); out != first {
		t.Errorf("asked for 3 it printed %q", out)
	}
	if out := script(t, "follow.mjs", l.URL(), "0", "300"); out != want {
		t.Errorf("it printed %q", out)
	}
}

// A request or an answer may be lost with a connection; the follower reads
// again.
func TestFollowReadsAgainAfterALoss(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	if _, err := c.Append(t.Context(), &client.Request{Payload: []byte("a"), Kind: "n"}); err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]cantustest.Fault{"request": cantustest.Drop(), "end": cantustest.LosePart(2), "answer": cantustest.LosePart(1)} {
		l.FailNext(1, cantustest.Read, fault)
		if out := script(t, "follow.mjs", l.URL(), "0", "1"); out != "1 n a\n" {
			t.Errorf("%s lost: it printed %q", name, out)
		}
	}
}

// However many enroll at once, a course has no more students than places, and a
// student no more courses than allowed. What goes wrong on the way is tried
// again.
func TestCoursesKeepBothRules(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	const course, student = "Go, part 2.", "Ann *"
	define := func(course string) { script(t, "courses.mjs", l.URL(), "define", course, "2") }
	enroll := func(course, student string) (refusal string) {
		out, err := exec.CommandContext(t.Context(), "node", "courses.mjs", l.URL(), "enroll", course, student).CombinedOutput()
		if (err == nil) != (string(out) == "done\n") {
			t.Errorf("enroll %s %s: %v\n%s", course, student, err, out)
		}
		return strings.TrimSuffix(string(out), "\n")
	}
	l.FailNext(1, cantustest.Read, cantustest.LosePart(1))
	l.FailNext(1, cantustest.Append, cantustest.RefuseAs(subjects.Unavailable))
	define(course)
	answers := make([]string, 3)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = enroll(course, fmt.Sprint(student, i)) })
	}
	wg.Wait()
	slices.Sort(answers)
	if want := []string{"done", "done", "the course is full"}; !slices.Equal(answers, want) {
		t.Errorf("three enroll in a course with two places: %q", answers)
	}
	for i := range 4 {
		want := "done"
		if i == 3 {
			want = "the student takes 3 courses already"
		}
		define(fmt.Sprint(i))
		if got := enroll(fmt.Sprint(i), student); got != want {
			t.Errorf("course %d: %q, want %q", i, got, want)
		}
	}
	if got, want := enroll("0", student), "the student takes the course already"; got != want {
		t.Errorf("once more: %q, want %q", got, want)
	}
	all, err := l.Transactions(t.Context(), 0)
	if err != nil || len(all) != 1+2+4+3 {
		t.Fatalf("%d transactions, %v", len(all), err)
	}
	if last := all[len(all)-2]; !slices.Contains(last.AppendLocks, "student."+subjects.Token(student)) {
		t.Errorf("the locks of an enrolment are %q", last.AppendLocks)
	}
}

// The tokens of Node.js are those of Go.
func TestTokensAreThoseOfGo(t *testing.T) {
	texts := []string{"", "%", "alice", "Ann O'Neill, *1990.", "ベア\u00a0>", "\n\x7f~!", strings.Repeat("a", 64), strings.Repeat("é", 40), strings.Repeat(".", 22)}
	const program = `import { token } from "./token.mjs"; for (const text of process.argv.slice(1)) console.log(token(text))`
	got := strings.Split(script(t, append([]string{"--input-type=module", "--eval", program, "--"}, texts...)...), "\n")
	if len(got) != len(texts)+1 {
		t.Fatalf("%d texts have the tokens %q", len(texts), got)
	}
	for i, text := range texts {
		if want := subjects.Token(text); got[i] != want {
			t.Errorf("%q: %q, in Go %q", text, got[i], want)
		}
	}
}

// TestDecisions runs the six decisions of dcb.test.mjs.
func TestDecisions(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{Partitions: 6})
	cmd := exec.CommandContext(t.Context(), "node", "--test", "dcb.test.mjs")
	cmd.Env = append(os.Environ(), "CANTUS_SERVER="+l.URL())
	if out, err := cmd.CombinedOutput(); err != nil || !regexp.MustCompile(`(?m)^. pass 6$`).Match(out) {
		t.Errorf("%v\n%s", err, out)
	}
}

// Wrong arguments end a script before it connects: a counter must not become
// "NaN".
func TestWrongArgumentsGetTheUsage(t *testing.T) {
	for _, args := range [][]string{
		{"transact.mjs"}, {"transact.mjs", nobody, "visits"}, {"transact.mjs", nobody, "visits", "x"}, {"transact.mjs", nobody, "visits", "1", "2"},
		{"courses.mjs"}, {"courses.mjs", nobody, "enroll", "go"}, {"courses.mjs", nobody, "define", "go", "x"}, {"courses.mjs", nobody, "leave", "go", "a"},
		{"courses.mjs", nobody, "enroll", "go", "a", "b"},
		{"follow.mjs"}, {"follow.mjs", nobody}, {"follow.mjs", nobody, "x"}, {"follow.mjs", nobody, "0", "x"},
	} {
		out, err := exec.CommandContext(t.Context(), "node", args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.HasPrefix(string(out), "usage: node "+args[0]) {
			t.Errorf("node %q: %v\n%s", args, err, out)
		}
	}
}

const nobody = "nats://127.0.0.1:1"

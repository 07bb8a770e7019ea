package subjects_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/cantuslog/cantus/subjects"
)

// checkRefused checks that err is a refusal of a reason whose text has all of
// the words.
func checkRefused(t *testing.T, err error, reason subjects.Reason, words ...string) {
	t.Helper()
	var e *subjects.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a refusal", err)
	}
	if e.Reason != reason || e.Code != reason.Code() {
		t.Errorf("refused as %s (%d), want %s (%d)", e.Reason, e.Code, reason, reason.Code())
	}
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			t.Errorf("message %q does not say %q", e.Message, w)
		}
	}
}

// tokens joins n tokens.
func tokens(n int) string { return strings.TrimSuffix(strings.Repeat("a.", n), ".") }

var long = strings.Repeat("x", subjects.MaxToken)

func TestCheckLockAccepts(t *testing.T) {
	for name, lock := range map[string]string{
		"a point":                         "account.42",
		"one token":                       "a",
		"the most tokens":                 tokens(subjects.MaxLockTokens),
		"the longest token":               "a." + long + ".b",
		"the longest name":                strings.TrimSuffix(strings.Repeat(long+".", subjects.MaxLockTokens), "."),
		"a subtree":                       "account.>",
		"the whole partition":             ">",
		"a subtree with the most tokens":  tokens(subjects.MaxLockTokens-1) + ".>",
		"letters of any script":           "käse.東京.дом",
		"the longest token, not in ASCII": strings.Repeat("é", subjects.MaxToken/2),
		"signs":                           "$a-b_c/d:e\"f\\.#%&",
		"a replacement character as such": "a.\uFFFD",
	} {
		t.Run(name, func(t *testing.T) {
			if err := subjects.CheckLock(lock); err != nil {
				t.Errorf("%q: %v", lock, err)
			}
		})
	}
}

func TestCheckLockRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		lock  string
		words []string
	}{
		"the empty name":             {"", []string{"empty", "16"}},
		"an empty first token":       {".a", []string{"token 1", "empty"}},
		"an empty token inside":      {"a..b", []string{"token 2", "empty"}},
		"an empty last token":        {"a.", []string{"token 2", "empty"}},
		"a dot alone":                {".", []string{"token 1", "empty"}},
		"too many tokens":            {tokens(17), []string{"17 tokens", "at most 16"}},
		"a subtree of too many":      {tokens(16) + ".>", []string{"17 tokens"}},
		"a token too long":           {"a." + long + "x", []string{"token 2", "65 bytes", "at most 64"}},
		"too long, not in ASCII":     {strings.Repeat("é", 33), []string{"66 bytes"}},
		"a star":                     {"a.*", []string{"token 2", "wildcard"}},
		"a star within a token":      {"a.b*c.d", []string{"token 2", "wildcard"}},
		"a subtree inside":           {"a.>.b", []string{"token 2", "wildcard"}},
		"a subtree first":            {">.a", []string{"token 1", "wildcard"}},
		"a greater sign in a token":  {"a.b>", []string{"token 2", "wildcard"}},
		"a wildcard behind a letter": {"é*", []string{"token 1", "wildcard"}},
		"a space":                    {"a b", []string{"white space"}},
		"a space behind a letter":    {"é b", []string{"white space"}},
		"a tab":                      {"a\tb", []string{"white space"}},
		"a line end":                 {"a\r\nb", []string{"white space"}},
		"a no-break space":           {"a\u00a0b", []string{"white space"}},
		"a line separator":           {"a\u2028b", []string{"white space"}},
		"a NUL":                      {"a\x00b", []string{"control character"}},
		"a comma":                    {"a,b", []string{"comma", "give one name"}},
		"a delete":                   {"a\x7fb", []string{"control character"}},
		"a C1 control character":     {"a\u0081b", []string{"control character"}},
		"half a letter":              {"a.\xc3", []string{"token 2", "UTF-8"}},
		"a surrogate":                {"\xed\xa0\x80", []string{"UTF-8"}},
		"very much":                  {strings.Repeat("a.", 500_000), []string{"bytes)", "at most 16"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := subjects.CheckLock(c.lock)
			checkRefused(t, err, subjects.BadRequest, c.words...)
			if n := len(err.Error()); n > 400 {
				t.Errorf("the message has %d bytes", n)
			}
		})
	}
}

// TestLockList puts every list of good names into the value of a header, and
// takes it out again.
func TestLockList(t *testing.T) {
	for value, want := range map[string][]string{
		"a":             {"a"},
		"a,b":           {"a", "b"},
		"a, b":          {"a", "b"},
		" a \t,\t b.> ": {"a", "b.>"},
		"":              {""},
		",":             {"", ""},
		"a,":            {"a", ""},
		"a, ,b":         {"a", "", "b"},
		"a b,c":         {"a b", "c"},
		"größe.東京,雪":    {"größe.東京", "雪"},
	} {
		if got := subjects.LockNames(value); !slices.Equal(got, want) {
			t.Errorf("%q holds %q, want %q", value, got, want)
		}
	}
	if got := subjects.LockNames("a", "b,c", "d"); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("three headers hold %q", got)
	}
	if got := subjects.LockNames(); got != nil {
		t.Errorf("no header holds %q", got)
	}
	for _, names := range [][]string{nil, {"a"}, {"a", "b.>", "c.d"}} {
		line := string(subjects.AppendLocks([]byte("x"), "K", names...))
		want := "x"
		if names != nil {
			want = "xK: " + strings.Join(names, ",") + "\r\n"
		}
		if line != want {
			t.Errorf("the line of %q is %q, want %q", names, line, want)
		}
	}
}

// TestOneToken checks what kinds, keys and cursors' names have in common.
func TestOneToken(t *testing.T) {
	for what, check := range map[string]func(string) error{"kind": subjects.CheckKind, "key": subjects.CheckKey, "cursor name": subjects.CheckCursor} {
		for _, good := range []string{"tx", "a", long, "é", "$x", "a-b", "a,b"} {
			if err := check(good); err != nil {
				t.Errorf("%s %q: %v", what, good, err)
			}
		}
		for bad, word := range map[string]string{
			"": "empty", "a.b": "dot", "é.b": "dot", ".": "dot", ">": "wildcard", "*": "wildcard", "a b": "white space",
			long + "x": "65 bytes", "\xff": "UTF-8", "a\x01": "control",
		} {
			checkRefused(t, check(bad), subjects.BadRequest, what, word)
		}
	}
}

func TestCheckMsgID(t *testing.T) {
	for _, good := range []string{"1", "with space, and \xff", strings.Repeat("x", subjects.MaxMsgID)} {
		if err := subjects.CheckMsgID(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	checkRefused(t, subjects.CheckMsgID(""), subjects.BadRequest, "Nats-Msg-Id", "empty")
	checkRefused(t, subjects.CheckMsgID(strings.Repeat("x", 129)), subjects.BadRequest, "Nats-Msg-Id", "129", "128")
}

// twinCheck is CheckLock by its definition.
func twinCheck(name string) bool {
	all := strings.Split(name, ".")
	if len(all) > 16 || strings.Contains(name, ",") {
		return false
	}
	for i, token := range all {
		if token == ">" && i == len(all)-1 {
			continue
		}
		if token == "" || len(token) > 64 || !utf8.ValidString(token) {
			return false
		}
		for _, r := range token {
			if r == '*' || r == '>' || unicode.IsSpace(r) || unicode.IsControl(r) {
				return false
			}
		}
	}
	return true
}

// twinOverlap is Overlap token by token.
func twinOverlap(a, b []string) bool {
	switch {
	case len(a) == 0 || len(b) == 0:
		return len(a) == len(b)
	case a[0] == ">" || b[0] == ">":
		return true
	}
	return a[0] == b[0] && twinOverlap(a[1:], b[1:])
}

// checkOverlap compares Overlap with its twin, both ways round.
func checkOverlap(t *testing.T, a, b string) (overlap bool) {
	t.Helper()
	want := twinOverlap(strings.Split(a, "."), strings.Split(b, "."))
	if got := subjects.Overlap(a, b); got != want {
		t.Errorf("Overlap(%q, %q) = %v, want %v", a, b, got, want)
	}
	if got := subjects.Overlap(b, a); got != want {
		t.Errorf("Overlap(%q, %q) = %v, want %v", b, a, got, want)
	}
	return want
}

// TestOverlapTwin compares random names of few short tokens, some of which
// begin others.
func TestOverlapTwin(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	words := []string{"a", "b", "aa", "ab", "é"}
	name := func() string {
		all := make([]string, 1+r.IntN(4))
		for i := range all {
			all[i] = words[r.IntN(len(words))]
		}
		if r.IntN(3) == 0 {
			all[len(all)-1] = ">"
		}
		return strings.Join(all, ".")
	}
	yes, no := 0, 0
	for range 100_000 {
		a, b := name(), name()
		if subjects.CheckLock(a) != nil {
			t.Fatalf("%q is not a lock name", a)
		}
		if checkOverlap(t, a, b) {
			yes++
		} else {
			no++
		}
	}
	if yes < 1000 || no < 1000 {
		t.Errorf("%d pairs overlap and %d do not: the names say nothing", yes, no)
	}
}

func FuzzLock(f *testing.F) {
	for _, pair := range [][2]string{
		{"a", "a"}, {">", "a.b"}, {"a.>", "a"}, {"a.>", "a.>"}, {"a.>", "a.b.>"}, {"a>", "a.b"},
		{"", "."}, {"é", "\xc3"}, {"a..>", "a.*"}, {tokens(16), tokens(17)}, {long, long + "x"},
	} {
		f.Add(pair[0], pair[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, name := range []string{a, b} {
			err := subjects.CheckLock(name)
			if (err == nil) != twinCheck(name) {
				t.Fatalf("CheckLock(%q): %v", name, err)
			}
			if err != nil {
				checkRefused(t, err, subjects.BadRequest)
				return
			}
		}
		checkOverlap(t, a, b)
	})
}

package subjects_test

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func ExampleToken() {
	fmt.Println("user." + subjects.Token("alice"))
	fmt.Println("user." + subjects.Token("Ada L. <ada@example.org>"))
	// Output:
	// user.alice
	// user.Ada%20L%2E%20<ada@example%2Eorg%3E
}

func TestDocumentedTokens(t *testing.T) {
	for _, row := range tables(t, "text", "token") {
		text := ""
		if row[0] != "(empty)" {
			text = code(t, row[0])
		}
		if got, want := subjects.Token(text), code(t, row[1]); got != want {
			t.Errorf("the token of %q is %q; subjects.md says %q", text, got, want)
		}
	}
}

// Texts that an escaping without care would confuse have tokens of their own.
func TestTokensDiffer(t *testing.T) {
	long := strings.Repeat("a", 65)
	seen := map[string]string{}
	for _, text := range []string{
		"", "%", "%25", "%2525", "a.b", "a%2Eb", "a%2eb", "a b", "a+b", "a,b", "a*", "a>", ">", "A", "a", "\x00", "é", "e\u0301", "\xc3", "\xff", "\uFFFD",
		long[:64], long, long + "a", long[:22] + "b" + long, subjects.Token(long), strings.Repeat(".", 21), strings.Repeat(".", 22), strings.Repeat("%2E", 21),
	} {
		token := subjects.Token(text)
		if other, found := seen[token]; found {
			t.Errorf("%q and %q are both %q", other, text, token)
		}
		seen[token] = text
	}
}

// FuzzToken makes tokens of two texts. Each is valid wherever a token is, and
// says which text it was made from.
func FuzzToken(f *testing.F) {
	for _, s := range []string{"", "%", "alice", "a.b, c*>", "é\u00a0\u3000", "\xff\x00\n", strings.Repeat("a", 64), strings.Repeat(".", 22), "a%=" + strings.Repeat("0", 61)} {
		f.Add(s, s+"x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, text := range []string{a, b} {
			token := subjects.Token(text)
			for _, err := range []error{subjects.CheckLock("a." + token), subjects.CheckKind(token), subjects.CheckKey(token), subjects.CheckCursor(token)} {
				if err != nil {
					t.Fatalf("%q became %q: %v", text, token, err)
				}
			}
			checkTokenOf(t, text, token)
		}
		if x, y := subjects.Token(a), subjects.Token(b); (x == y) != (a == b) {
			t.Fatalf("%q is %q, and %q is %q", a, x, b, y)
		}
	})
}

// checkTokenOf decodes a token, and compares with the text.
func checkTokenOf(t *testing.T, text, token string) {
	t.Helper()
	switch start, hash, isLong := strings.Cut(token, "%="); {
	case token == "%":
		if text != "" {
			t.Fatalf("%q became %q", text, token)
		}
	case isLong:
		if len(start) != 22 || hash != fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:40] {
			t.Fatalf("%q became %q", text, token)
		}
	default:
		if got, err := url.PathUnescape(token); err != nil || got != text {
			t.Fatalf("%q became %q, which decodes to %q, %v", text, token, got, err)
		}
	}
}

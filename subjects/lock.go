package subjects

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CheckLock tells whether name is a lock name: 1 to 16 tokens joined by
// dots, each 1 to 64 bytes of UTF-8 without white space, control characters,
// "*" or ">"; the last may be ">", which makes it a subtree. The error says
// which token is wrong and what would be right.
func CheckLock(name string) error {
	if name == "" {
		return badf("a lock name is empty: it needs 1 to %d tokens joined by dots", MaxLockTokens)
	}
	n := 0
	for rest, more := name, true; more; n++ {
		var token string
		token, rest, more = strings.Cut(rest, ".")
		if n == MaxLockTokens {
			return badf("lock %q has %d tokens: at most %d are allowed",
				clip(name), strings.Count(name, ".")+1, MaxLockTokens)
		}
		if token == ">" && !more {
			continue
		}
		if err := checkToken(token); err != nil {
			return badf("lock %q, token %d: %v", clip(name), n+1, err)
		}
	}
	return nil
}

// CheckKind tells whether kind can be the last token of a feed subject: one
// token as in lock names.
func CheckKind(kind string) error {
	if err := checkToken(kind); err != nil {
		return badf("kind %q: %v", clip(kind), err)
	}
	return nil
}

// CheckCursor tells whether name can name a cursor: one token as in lock
// names.
func CheckCursor(name string) error {
	if err := checkToken(name); err != nil {
		return badf("cursor name %q: %v", clip(name), err)
	}
	return nil
}

// CheckMsgID tells whether id can be a message id: 1 to 128 bytes.
func CheckMsgID(id string) error {
	switch {
	case id == "":
		return badf("%s is empty: leave the header out, or give 1 to %d bytes", HeaderMsgID, MaxMsgID)
	case len(id) > MaxMsgID:
		return badf("%s has %d bytes: at most %d are allowed", HeaderMsgID, len(id), MaxMsgID)
	}
	return nil
}

// checkToken is the hot half of CheckLock: plain ASCII is decided byte by
// byte, the rest by rune.
func checkToken(token string) error {
	if token == "" {
		return errors.New("it is empty")
	}
	if len(token) > MaxToken {
		return fmt.Errorf("it has %d bytes: at most %d are allowed", len(token), MaxToken)
	}
	for i := 0; i < len(token); i++ {
		c := token[i]
		if c >= utf8.RuneSelf {
			return checkRunes(token)
		}
		if c <= ' ' || c == 0x7f || c == '*' || c == '>' || c == '.' {
			return badByte(c)
		}
	}
	return nil
}

func badByte(c byte) error {
	switch c {
	case '*', '>':
		return fmt.Errorf("%q is a wildcard: only a last token may be \">\", and no other wildcard is allowed", c)
	case '.':
		return errors.New("it holds a dot, which separates tokens")
	case ' ', '\t', '\n', '\v', '\f', '\r':
		return fmt.Errorf("it holds white space (%q)", c)
	}
	return fmt.Errorf("it holds a control character (%q)", c)
}

func checkRunes(token string) error {
	if !utf8.ValidString(token) {
		return errors.New("it is not valid UTF-8")
	}
	for _, r := range token {
		switch {
		case r == '*' || r == '>' || r == '.' || r == ' ':
			return badByte(byte(r))
		case unicode.IsSpace(r):
			return fmt.Errorf("it holds white space (%q)", r)
		case unicode.IsControl(r):
			return fmt.Errorf("it holds a control character (%q)", r)
		}
	}
	return nil
}

// Overlap tells whether two lock names overlap: they are equal, or one is a
// subtree that holds the other. Both are assumed to pass [CheckLock].
func Overlap(a, b string) bool {
	return a == b || holds(a, b) || holds(b, a)
}

// holds tells whether tree is a subtree that name, a point or a subtree of
// its own, lies in. What stands before the ">" of a lock name is empty or ends
// in a dot, so that a prefix ends where a token does.
func holds(tree, name string) bool {
	stem, ok := strings.CutSuffix(tree, ">")
	return ok && strings.HasPrefix(name, stem)
}

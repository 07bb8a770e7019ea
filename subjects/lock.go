package subjects

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// lockSeparator separates the names in the value of a lock header.
const lockSeparator = ','

// NextLock returns the first name in the value of a lock header, which holds
// one name, or several separated by commas with optional blanks. more reports
// whether a comma follows the name, and so another name in rest. NextLock does
// not check the name.
func NextLock[S ~string | ~[]byte](value S) (name, rest S, more bool) {
	for i := range len(value) {
		if value[i] == lockSeparator {
			return trim(value[:i]), value[i+1:], true
		}
	}
	return trim(value), rest, false
}

// LockNames returns the names in the values of a lock header, in order.
func LockNames(values ...string) []string {
	var names []string
	for _, value := range values {
		for more := true; more; {
			var name string
			name, value, more = NextLock(value)
			names = append(names, name)
		}
	}
	return names
}

// AppendLocks appends one header line with all of the names to dst, or nothing
// if there are none. The names must pass [CheckLock].
func AppendLocks[S ~string | ~[]byte](dst []byte, key string, names ...S) []byte {
	if len(names) == 0 {
		return dst
	}
	dst = append(append(dst, key...), ": "...)
	for i, name := range names {
		if i > 0 {
			dst = append(dst, lockSeparator)
		}
		dst = append(dst, name...)
	}
	return append(dst, "\r\n"...)
}

// CheckLock returns nil if name is a lock name: 1 to 16 tokens joined by dots,
// each 1 to 64 bytes of UTF-8 without white space, control characters, commas,
// "*" or ">"; the last may be ">", which makes it a subtree. The error says
// which token is wrong and what would be right.
func CheckLock(name string) error {
	if name == "" {
		return badf("a lock name is empty: it needs 1 to %d tokens joined by dots", MaxLockTokens)
	}
	if strings.IndexByte(name, lockSeparator) >= 0 {
		return badf("lock %q holds a comma, which separates names in a header: give one name", clip(name))
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

// CheckKind returns nil if kind can be the last token of a feed subject: one
// token as in lock names, which may hold commas.
func CheckKind(kind string) error {
	if err := checkToken(kind); err != nil {
		return badf("kind %q: %v", clip(kind), err)
	}
	return nil
}

// CheckCursor returns nil if name can be the name of a cursor: one token as in
// lock names, which may hold commas.
func CheckCursor(name string) error {
	if err := checkToken(name); err != nil {
		return badf("cursor name %q: %v", clip(name), err)
	}
	return nil
}

// CheckKey returns nil if key can be the last token of a subject of
// [Names.AppendKey]: one token, as in [CheckKind].
func CheckKey(key string) error {
	if err := checkToken(key); err != nil {
		return badf("key %q: %v", clip(key), err)
	}
	return nil
}

// CheckSession returns nil if name can be the name of a session: one token as
// in lock names, which may hold commas.
func CheckSession(name string) error {
	if err := checkToken(name); err != nil {
		return badf("%s %q: %v", HeaderSession, clip(name), err)
	}
	return nil
}

// CheckMsgID returns nil if id can be a message id: 1 to 128 bytes.
func CheckMsgID(id string) error {
	switch {
	case id == "":
		return badf("%s is empty: leave the header out, or give 1 to %d bytes", HeaderMsgID, MaxMsgID)
	case len(id) > MaxMsgID:
		return badf("%s has %d bytes: at most %d are allowed", HeaderMsgID, len(id), MaxMsgID)
	}
	return nil
}

// checkToken checks one token. It is on the path of every append, so it handles
// ASCII byte by byte, and only other text by rune.
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
		return errors.New("it contains a dot, which separates tokens")
	case ' ', '\t', '\n', '\v', '\f', '\r':
		return fmt.Errorf("it contains white space (%q)", c)
	}
	return fmt.Errorf("it contains a control character (%q)", c)
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
			return fmt.Errorf("it contains white space (%q)", r)
		case unicode.IsControl(r):
			return fmt.Errorf("it contains a control character (%q)", r)
		}
	}
	return nil
}

// Overlap reports whether two lock names overlap: they are equal, or one is a
// subtree that contains the other. Both must pass [CheckLock].
func Overlap(a, b string) bool {
	return a == b || holds(a, b) || holds(b, a)
}

// holds reports whether tree is a subtree that contains name, which is a point
// or a subtree. The part of a subtree's name before ">" is empty or ends in a
// dot, so a string prefix ends where a token does.
func holds(tree, name string) bool {
	stem, ok := strings.CutSuffix(tree, ">")
	return ok && strings.HasPrefix(name, stem)
}

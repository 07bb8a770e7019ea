package subjects

import (
	"crypto/sha256"
	"encoding/hex"
)

// A token of a text that is too long ends in hashMark and the first hashDigits
// digits of its hash. No escape begins like hashMark.
const (
	hashMark   = "%="
	hashDigits = 40
)

// Token returns a token of a lock name that stands for a text, such as a user's
// name or an address: the same token for the same text, and another one for any
// other. It may also be a kind, a key or a cursor's name.
//
// Bytes of the text other than visible ASCII, and "%", "*", ",", "." and ">",
// become "%" and two upper-case hexadecimal digits, and the empty text becomes
// "%". What would be longer than [MaxToken] keeps its first 22 bytes, followed
// by "%=" and the first 40 lower-case hexadecimal digits of the text's SHA-256.
func Token(text string) string {
	if text == "" {
		return "%"
	}
	token := make([]byte, 0, MaxToken)
	for i := 0; i < len(text) && len(token) <= MaxToken; i++ {
		token = appendEscaped(token, text[i])
	}
	if len(token) > MaxToken {
		hash := sha256.Sum256([]byte(text))
		token = append(token[:MaxToken-len(hashMark)-hashDigits], hashMark...)
		token = hex.AppendEncode(token, hash[:hashDigits/2])
	}
	return string(token)
}

// appendEscaped appends a byte of a text, escaped unless it stands for itself.
func appendEscaped(dst []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	switch {
	case c <= ' ' || c >= 0x7f || c == '%' || c == '*' || c == lockSeparator || c == '.' || c == '>':
		return append(dst, '%', digits[c>>4], digits[c&0xf])
	}
	return append(dst, c)
}

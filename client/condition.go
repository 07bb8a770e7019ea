package client

import (
	"encoding/json"

	"github.com/cantuslog/cantus/subjects"
)

// appendItem appends an item of a condition in JSON.
func appendItem(dst []byte, item *subjects.QueryItem) []byte {
	dst = append(dst, '{')
	if len(item.Kinds) > 0 {
		dst = appendNames(append(dst, `"kinds":`...), item.Kinds)
	}
	if len(item.Locks) > 0 {
		if len(item.Kinds) > 0 {
			dst = append(dst, ',')
		}
		dst = appendNames(append(dst, `"locks":`...), item.Locks)
	}
	return append(dst, '}')
}

func appendNames(dst []byte, names []string) []byte {
	dst = append(dst, '[')
	for i, name := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		if isPlain(name) {
			dst = append(append(append(dst, '"'), name...), '"')
			continue
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			panic(err) // strings can be encoded
		}
		dst = append(dst, quoted...)
	}
	return append(dst, ']')
}

// isPlain reports whether a string in JSON stands for itself.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// itemSize returns an upper bound on the bytes that appendItem appends: a byte
// takes six at most.
func itemSize(item *subjects.QueryItem) int {
	n := len(`{"kinds":[],"locks":[]}`)
	for _, names := range [][]string{item.Kinds, item.Locks} {
		for _, name := range names {
			n += 6*len(name) + 3
		}
	}
	return n
}

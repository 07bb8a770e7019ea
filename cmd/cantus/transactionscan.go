package main

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

// scanTransaction decodes a line of the kind that an export writes, several
// times as fast as package json, which decides about all other lines: ok is
// false for whatever is unusual, whether it is right or wrong.
func scanTransaction(line []byte, t *transaction) (ok bool) {
	s := lineScanner{rest: line}
	if !utf8.Valid(line) || !s.next('{') {
		return false
	}
	seen := 0 // a bit for each field
	for more := true; more; more = s.next(',') {
		name, ok := s.plain()
		if !ok || !s.next(':') {
			return false
		}
		field := 0
		switch string(name) {
		case "partition":
			var n uint64
			n, field = s.number(), 1
			t.Partition = int(n)
			if n > 1<<31 {
				return false
			}
		case "txid":
			t.Txid, field = s.number(), 2
		case "time":
			text, ok := s.plain()
			if field = 4; !ok || t.Time.UnmarshalText(text) != nil {
				return false
			}
		case "kind":
			t.Kind, field = s.text(), 8
		case "write_locks":
			t.WriteLocks, field = s.list(), 16
		case "read_locks":
			t.ReadLocks, field = s.list(), 32
		case "append_locks":
			t.AppendLocks, field = s.list(), 64
		case "high_water_mark":
			mark := s.number()
			t.HighWaterMark, field = &mark, 128
		case "msg_id":
			t.MsgID, field = s.text(), 256
		case "headers":
			t.Headers, field = s.headers(), 512
		case "payload":
			text := s.text()
			t.Payload, field = &text, 1024
		}
		if s.bad || field == 0 || seen&field != 0 {
			return false
		}
		seen |= field
	}
	return s.next('}') && len(s.rest) == 0
}

// lineScanner takes JSON without blanks from the front of a line. Once
// something is unusual it is bad.
type lineScanner struct {
	rest []byte
	bad  bool
}

// next takes one byte, if it comes next.
func (s *lineScanner) next(c byte) bool {
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// plain takes a string without escapes.
func (s *lineScanner) plain() (text []byte, ok bool) {
	raw, escaped := s.quoted()
	return raw, !s.bad && !escaped
}

// quoted takes a string and returns what is between its quotes.
func (s *lineScanner) quoted() (raw []byte, escaped bool) {
	if !s.next('"') {
		s.bad = true
		return nil, false
	}
	for i := 0; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			raw, s.rest = s.rest[:i], s.rest[i+1:]
			return raw, escaped
		case c < ' ':
			s.bad = true
			return nil, false
		case c == '\\':
			escaped = true
			i++
		}
	}
	s.bad = true
	return nil, false
}

// escapes are the escapes of one character, by their second one.
var escapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// text takes a string.
func (s *lineScanner) text() string {
	raw, escaped := s.quoted()
	if !escaped {
		return string(raw)
	}
	b := make([]byte, 0, len(raw))
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return string(append(b, raw...))
		}
		c := escapes[raw[i+1]] // quoted has seen that there is one
		if c == 0 {
			s.bad = true // by a number
			return ""
		}
		b, raw = append(append(b, raw[:i]...), c), raw[i+2:]
	}
}

// number takes a whole number from 0 on.
func (s *lineScanner) number() uint64 {
	i := 0
	for i < len(s.rest) && s.rest[i] >= '0' && s.rest[i] <= '9' {
		i++
	}
	n, err := strconv.ParseUint(string(s.rest[:i]), 10, 64)
	if err != nil || i > 1 && s.rest[0] == '0' {
		s.bad = true
	}
	s.rest = s.rest[i:]
	return n
}

// list takes a list of strings, at least one.
func (s *lineScanner) list() (all []string) {
	if !s.next('[') {
		s.bad = true
	}
	for more := !s.bad; more; more = !s.bad && s.next(',') {
		all = append(all, s.text())
	}
	if !s.next(']') {
		s.bad = true
	}
	return all
}

// headers takes an object whose values are lists of strings.
func (s *lineScanner) headers() (h headers) {
	if !s.next('{') {
		s.bad = true
	}
	for more := !s.bad; more; more = !s.bad && s.next(',') {
		name, ok := s.plain()
		if !ok || !s.next(':') {
			s.bad = true
			return nil
		}
		for _, line := range h {
			s.bad = s.bad || line.key == string(name) // twice
		}
		key := string(name)
		for _, v := range s.list() {
			h = append(h, header{key, v})
		}
	}
	if !s.next('}') {
		s.bad = true
	}
	return h
}

package subjects

import (
	"bytes"
	"fmt"
)

// A header block is how NATS frames headers on the wire, and how batch
// messages frame them for each of their transactions:
//
//	NATS/1.0\r\n
//	Key: value\r\n      (any number, keys may repeat, order is kept)
//	\r\n
const blockStart = "NATS/1.0"

// ScanBlock calls field for each line of a header block, in order, and stops at
// the first error, which it returns. Key and value alias block; white space
// around the value is cut off. An empty block has no fields. The error for a
// malformed block says where it is malformed; nothing is skipped.
func ScanBlock(block []byte, field func(key, value []byte) error) error {
	if len(block) == 0 {
		return nil
	}
	line, rest, ok := cutLine(block)
	if !ok || !bytes.HasPrefix(line, []byte(blockStart)) {
		return badf("the header block does not begin with %q and a line end", blockStart)
	}
	if len(line) > len(blockStart) {
		return badf("the header block carries a status (%q), which requests do not have", clip(line))
	}
	for n := 1; ; n++ {
		line, rest, ok = cutLine(rest)
		if !ok {
			return badf("the header block ends within line %d, without CR LF", n)
		}
		if len(line) == 0 {
			if len(rest) > 0 {
				return badf("the header block has %d bytes after its empty line", len(rest))
			}
			return nil
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 || !isKey(line[:colon]) {
			return badf("header line %d is not \"Key: value\": %q", n, clip(line))
		}
		value := trim(line[colon+1:])
		if bytes.IndexByte(value, '\r') >= 0 || bytes.IndexByte(value, 0) >= 0 {
			return badf("header %q has a control character in its value", clip(line[:colon]))
		}
		if err := field(line[:colon], value); err != nil {
			return err
		}
	}
}

// AppendBlockStart appends the first line of a header block to dst.
func AppendBlockStart(dst []byte) []byte { return append(dst, blockStart+"\r\n"...) }

// AppendField appends one line of a header block to dst. The caller ensures
// that key and value hold no CR or LF.
func AppendField[S ~string | ~[]byte](dst []byte, key string, value S) []byte {
	dst = append(dst, key...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// AppendBlockEnd appends the empty line that ends a header block to dst.
func AppendBlockEnd(dst []byte) []byte { return append(dst, "\r\n"...) }

// trim is a faster bytes.Trim for blanks.
func trim[S ~string | ~[]byte](b S) S {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

// isKey reports whether b can be a header's name: visible ASCII.
func isKey(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}

// clip shortens what a client sent, for an error message.
func clip[S ~string | ~[]byte](s S) string {
	const most = 80
	if len(s) <= most {
		return string(s)
	}
	return fmt.Sprintf("%s… (%d bytes)", string(s[:most]), len(s))
}

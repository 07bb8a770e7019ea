package natslink

import (
	"bytes"
	"fmt"
	"strconv"
	"unsafe"
)

// controlLine is the parsed first line of a message. Its slices alias the line.
type controlLine struct {
	subject, reply []byte
	id             int
	header, total  int
}

func parseControl(line []byte, headers bool) (c controlLine, ok bool) {
	var fields [5][]byte
	n := 0
	for rest := bytes.TrimRight(line, "\r\n"); len(rest) > 0; n++ {
		if n == len(fields) {
			return c, false
		}
		fields[n], rest, _ = bytes.Cut(rest, []byte{' '})
	}
	sizes := 1
	if headers {
		sizes = 2
	}
	if n < 2+sizes || n > 3+sizes {
		return c, false
	}
	c.subject = fields[0]
	if n == 3+sizes {
		c.reply = fields[2]
	}
	var ok1, ok2, ok3 bool
	c.id, ok1 = parseSize(fields[1])
	c.total, ok2 = parseSize(fields[n-1])
	ok3 = true
	if headers {
		c.header, ok3 = parseSize(fields[n-2])
	}
	return c, ok1 && ok2 && ok3 && c.header <= c.total
}

// parseSize parses a number of at most 9 digits. The server never sends a
// larger one.
func parseSize(digits []byte) (n int, ok bool) {
	if len(digits) == 0 || len(digits) > 9 {
		return 0, false
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int(d-'0')
	}
	return n, true
}

func appendSub(dst []byte, subject, queue string, id int) []byte {
	if queue != "" {
		return fmt.Appendf(dst, "SUB %s %s %d\r\n", subject, queue, id)
	}
	return fmt.Appendf(dst, "SUB %s %d\r\n", subject, id)
}

// AppendPub appends a PUB command: a message without headers.
func AppendPub[S ~string | ~[]byte](dst []byte, subject string, payload S) []byte {
	dst = append(dst, "PUB "...)
	dst = append(dst, subject...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(payload)), 10)
	dst = append(dst, "\r\n"...)
	dst = append(dst, payload...)
	return append(dst, "\r\n"...)
}

// AppendHPub appends an HPUB command: a message with a header block.
func AppendHPub(dst []byte, subject string, header, payload []byte) []byte {
	dst = append(dst, "HPUB "...)
	dst = append(dst, subject...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(header)), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(header)+len(payload)), 10)
	dst = append(dst, "\r\n"...)
	dst = append(dst, header...)
	dst = append(dst, payload...)
	return append(dst, "\r\n"...)
}

// AppendForward appends a received message unchanged, with its subject and
// reply subject, so that another node answers it.
func AppendForward(dst []byte, m *Message) []byte {
	to := m.Subject
	if m.Reply != "" {
		to += " " + m.Reply
	}
	if m.Header == nil {
		return AppendPub(dst, to, m.Payload)
	}
	return AppendHPub(dst, to, m.Header, m.Payload)
}

// unsafeString returns a string that shares b's memory. b must not change
// afterwards.
func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// abbreviate returns the first 64 bytes of b as a string, for a log.
func abbreviate(b []byte) string {
	if len(b) > 64 {
		return string(b[:64]) + "…"
	}
	return string(b)
}

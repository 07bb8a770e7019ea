package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/cantuslog/cantus/subjects"
)

// header is one line of an application's headers.
type header struct{ key, value string }

// headers are an application's headers, in their order. In JSON they are an
// object, in which each name has a list of its values.
type headers []header

// MarshalJSONTo implements [json.MarshalerTo].
func (h headers) MarshalJSONTo(e *jsontext.Encoder) error {
	write := func(tokens ...jsontext.Token) (err error) {
		for _, t := range tokens {
			err = errors.Join(err, e.WriteToken(t))
		}
		return err
	}
	err := write(jsontext.BeginObject)
	for _, name := range h.names() {
		err = errors.Join(err, write(jsontext.String(name), jsontext.BeginArray))
		for _, other := range h {
			if other.key == name {
				err = errors.Join(err, write(jsontext.String(other.value)))
			}
		}
		err = errors.Join(err, write(jsontext.EndArray))
	}
	return errors.Join(err, write(jsontext.EndObject))
}

// UnmarshalJSONFrom implements [json.UnmarshalerFrom].
func (h *headers) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	if t, err := d.ReadToken(); err != nil {
		return err
	} else if t.Kind() != '{' {
		return errors.New("headers are an object: each name has a list of values")
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return err
		}
		key := name.String()
		var values []string
		if err := json.UnmarshalDecode(d, &values); err != nil {
			return err
		}
		for _, v := range values {
			*h = append(*h, header{key, v})
		}
	}
	_, err := d.ReadToken()
	return err
}

// names returns the names in the order in which they first occur.
func (h headers) names() (names []string) {
	for _, line := range h {
		if !slices.Contains(names, line.key) {
			names = append(names, line.key)
		}
	}
	return names
}

// survive reports whether JSON keeps the headers as they are: the values are
// UTF-8, and those of one name follow each other.
func (h headers) survive() bool {
	for i, line := range h {
		if !utf8.ValidString(line.value) {
			return false
		}
		if i > 0 && h[i-1].key != line.key && slices.ContainsFunc(h[:i], func(o header) bool { return o.key == line.key }) {
			return false
		}
	}
	return true
}

// lines returns the headers as a transaction stores them.
func (h headers) lines() (b []byte) {
	for _, line := range h {
		b = subjects.AppendField(b, line.key, line.value)
	}
	return b
}

// headersOf decodes the lines of stored headers.
func headersOf(lines []byte) (h headers) {
	for line := range strings.SplitSeq(string(lines), "\r\n") {
		if key, value, ok := strings.Cut(line, ":"); ok {
			h = append(h, header{key, strings.Trim(value, " \t")})
		}
	}
	return h
}

// setHeaders sets the application's headers.
func (t *transaction) setHeaders(h headers) {
	if t.Headers = h; !h.survive() {
		t.HeadersBase64 = h.lines()
	}
}

// setMsgID sets the message id, which may be any bytes.
func (t *transaction) setMsgID(id string) {
	if t.MsgID = id; !utf8.ValidString(id) {
		t.MsgIDBase64 = []byte(id)
	}
}

// printTransaction writes a transaction as one line of JSON.
func printTransaction(w io.Writer, t *transaction) error {
	if err := json.MarshalWrite(w, t, jsontext.AllowInvalidUTF8(true)); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// decodeTransaction decodes a line of JSON. It refuses what it would not
// understand, and what would get lost: unknown fields, a name that is there
// twice, text that is not Unicode.
func decodeTransaction(line []byte) (*transaction, error) {
	t := new(transaction)
	if err := json.Unmarshal(line, t, json.RejectUnknownMembers(true)); err != nil {
		s, ok := errors.AsType[*json.SemanticError](err)
		switch {
		case ok && s.JSONPointer == "/time":
			return nil, errors.New(`its time is not one: write date, time and zone, such as "time":"2026-11-01T08:30:00.123456789Z"`)
		case ok && s.JSONPointer != "" && s.Err != nil:
			err = fmt.Errorf("%s: %w", strings.TrimPrefix(string(s.JSONPointer), "/"), s.Err)
		}
		return nil, fmt.Errorf("not a transaction in JSON: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	switch {
	case t.Payload != nil && t.PayloadBase64 != nil:
		return nil, errors.New("it has both payload and payload_base64")
	case t.Payload == nil && t.PayloadBase64 == nil:
		return nil, errors.New("it has no payload, not even an empty one: was it read with --headers-only?")
	}
	if err := cmp.Or(t.checkAtomic(), t.checkSession()); err != nil {
		return nil, err
	}
	if t.HeadersBase64 != nil {
		if !bytes.HasSuffix(t.HeadersBase64, []byte("\r\n")) {
			return nil, errors.New("headers_base64 are not header lines")
		}
		t.Headers = headersOf(t.HeadersBase64)
	}
	if t.MsgIDBase64 != nil {
		t.MsgID = string(t.MsgIDBase64)
	}
	return t, nil
}

// size returns the bytes of the payload of a decoded line.
func (t *transaction) size() int {
	if t.Payload != nil {
		return len(*t.Payload)
	}
	return len(t.PayloadBase64)
}

// appendPayload appends the payload of a decoded line.
func (t *transaction) appendPayload(dst []byte) []byte {
	if t.Payload != nil {
		return append(dst, *t.Payload...)
	}
	return append(dst, t.PayloadBase64...)
}

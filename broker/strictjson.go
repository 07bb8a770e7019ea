package broker

import (
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/cantuslog/cantus/subjects"
)

// strictJSON decodes a request's body, a JSON object; an empty body sets
// nothing. It refuses unknown fields, anything after the object, and text that
// is not Unicode.
func strictJSON(body []byte, v any) error {
	trimmed := strings.TrimSpace(text(body))
	if trimmed == "" {
		return nil
	}
	if err := checkUnicode(text(body)); err != nil {
		return err
	}
	if trimmed[0] != '{' {
		return subjects.Errorf(subjects.BadRequest, "body: it begins with %q: send a JSON object, or nothing at all", clip([]byte(trimmed[:min(len(trimmed), 16)])))
	}
	if err := checkFields(text(body)); err != nil {
		return err
	}
	d := json.NewDecoder(strings.NewReader(text(body)))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("there is something after the JSON object")
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return subjects.Errorf(subjects.BadRequest, "body: field %q is %s: it takes %s", wrong.Field, given(wrong.Value), kindOf(wrong.Type))
	}
	return subjects.Errorf(subjects.BadRequest, "body: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// given names what encoding/json met.
func given(value string) string {
	switch {
	case value == "array" || value == "object":
		return "an " + value
	case strings.HasPrefix(value, "number "):
		return "the " + value
	default:
		return "a " + strings.Replace(value, "bool", "truth value", 1)
	}
}

// kindOf names what JSON holds for a type.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return kindOf(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list, each element " + kindOf(t.Elem())
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		return "a whole number from 0 on"
	default:
		return "a whole number"
	}
}

// checkUnicode refuses text that encoding/json silently replaces by U+FFFD:
// bytes that are not UTF-8, and half a surrogate pair. The name would be
// another than the client's.
func checkUnicode(body string) error {
	if !utf8.ValidString(body) {
		return subjects.Errorf(subjects.BadRequest, "body: it is not valid UTF-8, which JSON is written in")
	}
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		r, isUnicode := unicodeEscape(body[i:])
		if !isUnicode {
			i++ // the escaped character may be another backslash
			continue
		}
		if utf16.IsSurrogate(r) {
			low, _ := unicodeEscape(body[i+6:])
			if utf16.DecodeRune(r, low) == utf8.RuneError {
				return subjects.Errorf(subjects.BadRequest, "body: %s is half of a surrogate pair: give both halves, or the character itself", body[i:i+6])
			}
			i += 6
		}
		i += 5
	}
	return nil
}

// unicodeEscape returns the code unit of the escape \uXXXX that s begins with.
func unicodeEscape(s string) (r rune, ok bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(s[2:6], 16, 16)
	return rune(n), err == nil
}

// checkFields refuses what encoding/json accepts: a field given twice, a field
// in another letter case than ours, which is lower throughout, and null, which
// encoding/json treats like a missing field.
func checkFields(body string) error {
	d := json.NewDecoder(strings.NewReader(body))
	var open []jsonValue // innermost last
	last := ""
	for {
		t, err := d.Token()
		if err != nil {
			return nil //nolint:nilerr // decoding returns this error again
		}
		if v, ok := t.(json.Delim); ok && (v == '}' || v == ']') {
			if open = open[:len(open)-1]; len(open) == 0 {
				return nil
			}
			continue
		}
		if len(open) > 0 {
			in := &open[len(open)-1]
			if in.key = in.fields != nil && !in.key; in.key {
				last = t.(string)
				if err := in.check(last); err != nil {
					return err
				}
				continue
			}
		}
		switch v := t.(type) {
		case json.Delim:
			open = append(open, jsonValue{})
			if v == '{' {
				open[len(open)-1].fields = map[string]bool{}
			}
		case nil:
			return subjects.Errorf(subjects.BadRequest, "body: null in field %q: give a value, or leave the field out", last)
		}
	}
}

// jsonValue is an object or an array that is being read.
type jsonValue struct {
	fields map[string]bool // those seen so far, nil for an array
	key    bool            // the last token was a field's name
}

func (v *jsonValue) check(field string) error {
	if v.fields[field] {
		return subjects.Errorf(subjects.BadRequest, "body: field %q is given twice", field)
	}
	if small := strings.ToLower(field); small != field {
		return subjects.Errorf(subjects.BadRequest, "body: unknown field %q: fields are in small letters", field)
	}
	v.fields[field] = true
	return nil
}

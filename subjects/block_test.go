package subjects_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

// field is one line of a header block.
type field struct{ key, value string }

// scan returns the fields of a block.
func scan(block []byte) (fields []field, err error) {
	err = subjects.ScanBlock(block, func(key, value []byte) error {
		fields = append(fields, field{string(key), string(value)})
		return nil
	})
	return fields, err
}

// appendBlock puts fields together.
func appendBlock(dst []byte, fields []field) []byte {
	dst = subjects.AppendBlockStart(dst)
	for _, f := range fields {
		dst = subjects.AppendField(dst, f.key, f.value)
	}
	return subjects.AppendBlockEnd(dst)
}

func TestScanBlock(t *testing.T) {
	for name, c := range map[string]struct {
		block string
		want  []field
	}{
		"nothing":             {"", nil},
		"no fields":           {"NATS/1.0\r\n\r\n", nil},
		"one":                 {"NATS/1.0\r\nKey: value\r\n\r\n", []field{{"Key", "value"}}},
		"no space":            {"NATS/1.0\r\nKey:value\r\n\r\n", []field{{"Key", "value"}}},
		"space around":        {"NATS/1.0\r\nKey: \t value \t\r\n\r\n", []field{{"Key", "value"}}},
		"space within":        {"NATS/1.0\r\nKey: a  b\r\n\r\n", []field{{"Key", "a  b"}}},
		"no value":            {"NATS/1.0\r\nKey:\r\n\r\n", []field{{"Key", ""}}},
		"colons in the value": {"NATS/1.0\r\nKey: a:b: c\r\n\r\n", []field{{"Key", "a:b: c"}}},
		"any bytes":           {"NATS/1.0\r\nKey: \x01\xff\xc3\r\n\r\n", []field{{"Key", "\x01\xff\xc3"}}},
		"repeated, in order": {"NATS/1.0\r\nB: 1\r\nA: 2\r\nB: 3\r\nb: 4\r\n\r\n",
			[]field{{"B", "1"}, {"A", "2"}, {"B", "3"}, {"b", "4"}}},
		"odd names": {"NATS/1.0\r\n!\"#~: x\r\n\r\n", []field{{"!\"#~", "x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := scan([]byte(c.block))
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got %q and %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestScanBlockRefuses(t *testing.T) {
	for name, c := range map[string]struct{ block, word string }{
		"no first line":           {"Key: value\r\n\r\n", "does not begin"},
		"another version":         {"NATS/2.0\r\n\r\n", "does not begin"},
		"the start cut short":     {"NATS/1.0", "does not begin"},
		"the start without CR":    {"NATS/1.0\n\r\n", "does not begin"},
		"a line end alone":        {"\r\n", "does not begin"},
		"LF alone":                {"\n", "does not begin"},
		"a status":                {"NATS/1.0 503\r\n\r\n", "status"},
		"a status without space":  {"NATS/1.0503\r\n\r\n", "status"},
		"no empty line":           {"NATS/1.0\r\n", "line 1"},
		"no empty line after one": {"NATS/1.0\r\nKey: value\r\n", "line 2"},
		"a line cut short":        {"NATS/1.0\r\nKey: val", "line 1"},
		"a line without CR":       {"NATS/1.0\r\nKey: value\n\r\n", "line 1"},
		"an end without CR":       {"NATS/1.0\r\nKey: value\r\n\n", "line 2"},
		"bytes behind the end":    {"NATS/1.0\r\n\r\nKey: value\r\n\r\n", "14 bytes after"},
		"no colon":                {"NATS/1.0\r\nKey value\r\n\r\n", "line 1"},
		"no name":                 {"NATS/1.0\r\n: value\r\n\r\n", "line 1"},
		"space before the colon":  {"NATS/1.0\r\nKey : value\r\n\r\n", "line 1"},
		"space before the name":   {"NATS/1.0\r\n Key: value\r\n\r\n", "line 1"},
		"a folded line":           {"NATS/1.0\r\nKey: a\r\n b: c\r\n\r\n", "line 2"},
		"a name not in ASCII":     {"NATS/1.0\r\nKéy: value\r\n\r\n", "line 1"},
		"a control in the name":   {"NATS/1.0\r\nK\x7fy: value\r\n\r\n", "line 1"},
		"CR in the value":         {"NATS/1.0\r\nKey: a\rb\r\n\r\n", "control character"},
		"CR twice at the end":     {"NATS/1.0\r\nKey: a\r\r\n\r\n", "control character"},
		"NUL in the value":        {"NATS/1.0\r\nKey: a\x00b\r\n\r\n", "control character"},
		"a very long line":        {"NATS/1.0\r\n" + strings.Repeat("x", 1<<20) + "\r\n\r\n", "1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := scan([]byte(c.block))
			checkRefused(t, err, subjects.BadRequest, c.word)
			if n := len(err.Error()); n > 500 {
				t.Errorf("the message has %d bytes", n)
			}
		})
	}
}

// TestScanBlockStops checks that ScanBlock returns the first error.
func TestScanBlockStops(t *testing.T) {
	refusal, calls := errors.New("no"), 0
	err := subjects.ScanBlock([]byte("NATS/1.0\r\nA: 1\r\nB: 2\r\n\r\n"), func(_, _ []byte) error {
		calls++
		return refusal
	})
	if !errors.Is(err, refusal) || calls != 1 {
		t.Errorf("got %v after %d calls, want the first refusal", err, calls)
	}
}

func TestBlockRoundTrip(t *testing.T) {
	want := []field{{"A", "1"}, {"B", ""}, {"A", "x: y"}, {"C", "ключ"}}
	block := appendBlock([]byte("before"), want)
	if !bytes.HasPrefix(block, []byte("before")) {
		t.Fatalf("%q does not go on from what was there", block)
	}
	got, err := scan(block[len("before"):])
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q and %v, want %q", got, err, want)
	}
	if s := string(subjects.AppendField(nil, "K", []byte("v"))); s != "K: v\r\n" {
		t.Errorf("a field is %q", s)
	}
}

func FuzzScanBlock(f *testing.F) {
	for _, seed := range []string{
		"", "NATS/1.0\r\n\r\n", "NATS/1.0\r\nA: 1\r\nB:2\r\nA:\r\n\r\n", "NATS/1.0 204 End\r\n\r\n",
		"NATS/1.0\r\nA: 1\n\r\n", "NATS/1.0\r\nA : 1\r\n\r\n", "NATS/1.0\r\nA: \r\r\n\r\n", "NATS/1.0\r\n\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		fields, err := scan(block)
		if err != nil {
			checkRefused(t, err, subjects.BadRequest)
			return
		}
		for _, f := range fields {
			if f.key == "" || strings.ContainsAny(f.key, ": \r\n\x00") {
				t.Errorf("name %q", f.key)
			}
			if strings.ContainsAny(f.value, "\r\n\x00") || f.value != strings.Trim(f.value, " \t") {
				t.Errorf("value %q", f.value)
			}
		}
		again, err := scan(appendBlock(nil, fields))
		if err != nil || !slices.Equal(again, fields) {
			t.Errorf("put together again: %q and %v, was %q", again, err, fields)
		}
		// Every line is a field: nothing is skipped.
		if lines := bytes.Count(block, []byte("\r\n")); len(block) > 0 && lines != len(fields)+2 {
			t.Errorf("%d fields of %d lines", len(fields), lines)
		}
	})
}

package traces

import (
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// header is the name of the header that says which trace a transaction belongs
// to, by the W3C recommendation Trace Context. Libraries that write headers as
// HTTP does send it as "Traceparent": any letter case is meant.
const header = "traceparent"

// IsHeader reports whether key is the name of the header with a trace context.
func IsHeader(key []byte) bool {
	if len(key) != len(header) {
		return false
	}
	for i, c := range key {
		if c|0x20 != header[i] {
			return false
		}
	}
	return true
}

// Offsets of a traceparent: version, trace id, parent id and flags.
const (
	traceAt  = len("00-")
	parentAt = traceAt + 2*len(trace.TraceID{}) + 1
	flagsAt  = parentAt + 2*len(trace.SpanID{}) + 1
	length   = flagsAt + 2
)

// Parse returns the trace context of a traceparent. ok is false if it is
// malformed, which means that there is none. It allocates nothing.
//
// Later versions may have more behind the flags, after another dash.
func Parse(value []byte) (c trace.SpanContextConfig, ok bool) {
	if len(value) < length || value[traceAt-1] != '-' || value[parentAt-1] != '-' || value[flagsAt-1] != '-' {
		return c, false
	}
	var version, flags [1]byte
	if !decode(version[:], value[:traceAt-1]) || !decode(c.TraceID[:], value[traceAt:parentAt-1]) ||
		!decode(c.SpanID[:], value[parentAt:flagsAt-1]) || !decode(flags[:], value[flagsAt:length]) {
		return c, false
	}
	switch more := value[length:]; {
	case version[0] == 0xff, version[0] == 0 && len(more) > 0, len(more) > 0 && more[0] != '-':
		return c, false
	}
	c.TraceFlags, c.Remote = trace.TraceFlags(flags[0])&trace.FlagsSampled, true
	return c, c.TraceID.IsValid() && c.SpanID.IsValid()
}

// decode decodes lower-case hexadecimal digits.
func decode(dst, digits []byte) bool {
	for _, c := range digits {
		if c >= 'A' && c <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(dst, digits)
	return err == nil
}

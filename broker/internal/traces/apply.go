package traces

import (
	"bytes"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cantuslog/cantus/wal"
)

// applyAge is how old a transaction may be for its application to be traced. A
// replica that has just started, or is new, applies what is older: that says
// nothing about the transaction.
const applyAge = time.Minute

// applied is a transaction that a replica has applied and that is traced.
type applied struct {
	parent trace.SpanContext
	txid   uint64
}

// Applied makes the spans of the transactions of a batch that are traced. A
// replica that did not propose them has applied them since begun.
func (t *Tracer) Applied(partition int, b wal.Batch, begun time.Time) {
	done := time.Now()
	if done.Sub(time.Unix(0, b.Time)) > applyAge {
		return
	}
	var all []applied
	var tx wal.Transaction
	for records := b.Read(); records.Next(&tx); {
		if len(tx.Header) < length {
			continue
		}
		if c, ok := Parse(Find(tx.Header)); ok && c.TraceFlags.IsSampled() {
			all = append(all, applied{trace.NewSpanContext(c), tx.Txid})
		}
	}
	if len(all) == 0 {
		return
	}
	t.enqueue(len(all), func() {
		for _, a := range all {
			_, span := t.start("apply", a.parent, trace.SpanKindInternal, begun, partition)
			span.SetAttributes(txid(a.txid))
			span.End(trace.WithTimestamp(done))
		}
	})
}

// Find returns the traceparent in a transaction's stored headers, nil if there
// is none, or more than one: which of them counts can't be told.
func Find(headers []byte) (value []byte) {
	for len(headers) > 0 {
		var line []byte
		line, headers, _ = bytes.Cut(headers, crlf)
		key, v, ok := bytes.Cut(line, colon)
		if !ok || !IsHeader(key) {
			continue
		}
		if value != nil {
			return nil
		}
		value = bytes.TrimSpace(v)
	}
	return value
}

var crlf, colon = []byte("\r\n"), []byte(":")

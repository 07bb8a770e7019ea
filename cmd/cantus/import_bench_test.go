package main

import (
	"io"
	"testing"
)

var benchLine = []byte(`{"partition":0,"txid":123456,"time":"2026-11-22T09:00:00.000123456Z","kind":"order","write_locks":["account.3456"],"high_water_mark":123455,"msg_id":"id-123456","payload":"{\"account\":3456,\"text\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}"}`)

func BenchmarkDecodeLine(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeTransaction(benchLine); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeLine(b *testing.B) {
	b.ReportAllocs()
	e := lineEncoder{id: "0123456789abcdef", most: 1 << 20, largest: 1000000}
	dst := make([]byte, 0, 1<<20)
	for b.Loop() {
		t, err := decodeTransaction(benchLine)
		if err == nil {
			_, _, err = e.appendLine(dst[:0], appendLineID(nil, e.id, 7, chainTag{}), t)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrintLine(b *testing.B) {
	b.ReportAllocs()
	t, err := decodeTransaction(benchLine)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := printTransaction(io.Discard, t); err != nil {
			b.Fatal(err)
		}
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// BenchmarkReadFromTheArchive reads a half of a log that was trimmed, and the
// half that is left, in turns. It reports transactions a second for both, and
// what the archive's are of the log's.
func BenchmarkReadFromTheArchive(b *testing.B) {
	const half = 900_000 // more segments than the archive keeps in memory
	to := b.TempDir()
	a, err := openArchive(b.Context(), to, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	n, err := broker.Open(b.Context(), b.TempDir(), broker.Options{Archive: a, Partitions: 1, MaxMsgIDs: 1, ClientListen: "127.0.0.1:0", CacheBytes: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	run := func(in string, args ...string) {
		var out bytes.Buffer
		p := &program{in: bytes.NewReader([]byte(in)), out: &out, errOut: &out}
		if status := p.run(b.Context(), args); status != 0 {
			b.Fatalf("%v: status %d: %s", args, status, &out)
		}
	}
	var lines bytes.Buffer
	for i := range 2 * half {
		fmt.Fprintf(&lines, `{"payload":"{\"account\":%d,\"text\":\"%0200x\"}"}`+"\n", i*7919, i*104729)
	}
	run(lines.String(), "import", "0", "-", "--server", n.ClientURL())
	run("", "backup", "--to", to, "--server", n.ClientURL(), "--quiet")
	run("", "trim", "0", "--before", strconv.Itoa(half+1), "--server", n.ClientURL())
	nc, err := n.Conn()
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	kept := firstKept(b, nc)
	var archived, logged float64
	for b.Loop() {
		archived += readSpan(b, nc, 1, kept-1)
		logged += readSpan(b, nc, kept, 2*half)
	}
	rounds := float64(b.N)
	b.ReportMetric(archived/rounds, "archived/s")
	b.ReportMetric(logged/rounds, "logged/s")
	b.ReportMetric(archived/logged, "ratio")
}

func firstKept(b *testing.B, nc *nats.Conn) uint64 {
	m, err := nc.Request("cantus.info.0", nil, time.Minute)
	var info subjects.PartitionInfo
	if err != nil || json.Unmarshal(m.Data, &info) != nil || info.FirstTxid < 2 {
		b.Fatalf("%+v, %v", info, err)
	}
	return info.FirstTxid
}

// readSpan reads packed transactions up to a txid, and returns how many there
// are in a second.
func readSpan(b *testing.B, nc *nats.Conn, from, to uint64) float64 {
	began := time.Now()
	for next := from; next <= to; {
		body, err := json.Marshal(subjects.ReadRequest{From: next, Max: subjects.MaxReadCount, MaxBytes: subjects.MaxReadBytes, Packed: true})
		if err != nil {
			b.Fatal(err)
		}
		sub, err := nc.SubscribeSync(nc.NewInbox())
		if err != nil {
			b.Fatal(err)
		}
		if err := nc.PublishRequest("cantus.read.0", sub.Subject, body); err != nil {
			b.Fatal(err)
		}
		m := &nats.Msg{}
		for m.Header.Get("Status") != subjects.StatusEnd {
			if m, err = sub.NextMsg(time.Minute); err != nil {
				b.Fatal(err)
			}
			if e := refused(m); e != nil {
				b.Fatal(e)
			}
		}
		if next, err = strconv.ParseUint(m.Header.Get(subjects.HeaderNext), 10, 64); err != nil {
			b.Fatal(err)
		}
		if err := sub.Unsubscribe(); err != nil {
			b.Fatal(err)
		}
	}
	return float64(to-from+1) / time.Since(began).Seconds()
}

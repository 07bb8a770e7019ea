package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// An import that is interrupted ends with the same status whatever it waits
// for, and says whether anything was sent.
func TestAnInterruptedImportSaysWhatWasSent(t *testing.T) {
	const goesOn, nothing = "cantus: interrupted; the same command goes on with what is missing\n", "cantus: interrupted; nothing was sent\n"
	file := filepath.Join(t.TempDir(), "in.jsonl")
	if err := os.WriteFile(file, []byte(`{"time":"2026-11-22T09:00:00Z","payload":"a"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, at, flag, says string }{
		{"at once", "", "--plain", nothing},
		{"before the first line", "cantus.cursor.0.*", "--plain", nothing},
		{"at the first line", "cantus.batch.0", "--plain", goesOn},
		{"kept, at once", "", "--keep", nothing},
		{"kept, at the first step", "cantus.admin.restore.0", "--keep", goesOn},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(t)
			w.founded(1)
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			if c.at == "" {
				interrupt()
			}
			for subject, body := range map[string]any{
				"cantus.info.0": subjects.PartitionInfo{}, "cantus.cursor.0.*": subjects.CursorReply{}, "cantus.batch.0": nil, "cantus.admin.restore.0": nil,
			} {
				w.answer(subject, func(_ int, msg *nats.Msg) {
					if subject == c.at {
						interrupt()
						return
					}
					respond(msg, body)
				})
			}
			var out, said bytes.Buffer
			status := (&program{out: &out, errOut: &said}).run(ctx, []string{"import", "0", file, c.flag, "--server", w.url})
			w.expect(status, exitFailed, said.String(), c.says)
		})
	}
}

package sqlview_test

import (
	"testing"

	"github.com/cantuslog/cantus/client/sqlview"
)

// FuzzParked decodes a row of the table of parked transactions.
func FuzzParked(f *testing.F) {
	f.Add(`{"Partition":0,"Txid":7,"Payload":"cA=="}`, `"no such account"`, "2026-11-22T09:00:00.1Z")
	f.Add(`null`, `"\xff"`, "2026-11-22T09:00:00Z")
	f.Add(`{`, `x`, ``)
	f.Fuzz(func(t *testing.T, body, reason, since string) {
		p, err := sqlview.ReadParked(body, reason, since)
		if err == nil && (p.Transaction == nil || p.Since.IsZero() && since[:4] != "0001") {
			t.Fatalf("%q is %+v", body, p)
		}
	})
}

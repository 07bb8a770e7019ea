package main

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/client"
)

// checkBooks is the oracle: it computes the accounts from the log alone, checks
// that no balance is ever negative, that the sum is constant and that each
// request of the loads is executed once, and compares the database row by row.
func checkBooks(t *testing.T, txs []*client.Transaction, location string, accounts int, each int64, loads map[string]int) {
	t.Helper()
	balances, requests := map[string]int64{}, map[string]uint64{}
	for _, tx := range txs {
		switch tx.Kind {
		case kindOpen:
			var e opened
			decode(t, tx, &e)
			if _, known := balances[e.Account]; known {
				t.Fatalf("txid %d opens %s again", tx.Txid, e.Account)
			}
			balances[e.Account] = e.Balance
		case kindTransfer:
			var e transferred
			decode(t, tx, &e)
			if first, known := requests[e.Request]; known {
				t.Fatalf("request %s is done by txid %d and by %d", e.Request, first, tx.Txid)
			}
			requests[e.Request] = tx.Txid
			balances[e.From] -= e.Amount
			balances[e.To] += e.Amount
			if balances[e.From] < 0 {
				t.Fatalf("txid %d leaves %s with %d", tx.Txid, e.From, balances[e.From])
			}
		}
	}
	if len(balances) != accounts {
		t.Errorf("%d accounts, want %d", len(balances), accounts)
	}
	want := 0
	for name, n := range loads {
		want += n
		for i := range n {
			if requests[fmt.Sprintf("%s-%d", name, i)] == 0 {
				t.Errorf("request %s-%d was never done", name, i)
			}
		}
	}
	if len(requests) != want {
		t.Errorf("%d transfers, want %d", len(requests), want)
	}
	checkDatabase(t, location, balances, requests, int64(accounts)*each)
}

func decode(t *testing.T, tx *client.Transaction, e any) {
	t.Helper()
	if err := json.Unmarshal(tx.Payload, e); err != nil {
		t.Fatalf("txid %d: %v", tx.Txid, err)
	}
}

func checkDatabase(t *testing.T, location string, balances map[string]int64, requests map[string]uint64, total int64) {
	t.Helper()
	s, err := openStore(soon(t), location)
	if err != nil {
		t.Fatal(err)
	}
	defer s.db.Close()
	all, err := s.accounts(soon(t))
	if err != nil || len(all) != len(balances) {
		t.Fatalf("%d accounts in the database, want %d; %v", len(all), len(balances), err)
	}
	sum := int64(0)
	for _, a := range all {
		if sum += a.Balance; a.Balance != balances[a.Name] {
			t.Errorf("%s has %d in the database, and %d by the log", a.Name, a.Balance, balances[a.Name])
		}
	}
	if sum != total {
		t.Errorf("all have %d together, want %d", sum, total)
	}
	rows, err := s.db.QueryContext(soon(t), `SELECT request, txid FROM transfers`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var request string
		var txid uint64
		if err := rows.Scan(&request, &txid); err != nil {
			t.Fatal(err)
		}
		if requests[request] != txid {
			t.Errorf("request %s is of txid %d in the database, and of %d in the log", request, txid, requests[request])
		}
	}
	if err := rows.Err(); err != nil || n != len(requests) {
		t.Errorf("%d transfers in the database, want %d; %v", n, len(requests), err)
	}
}

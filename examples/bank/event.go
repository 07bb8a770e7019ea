package main

import (
	"encoding/json"

	"github.com/cantuslog/cantus/client"
)

// The kinds of transactions. Whatever else is in the partition is not the bank's.
const (
	kindOpen     = "bank-open"
	kindTransfer = "bank-transfer"
	kindClose    = "bank-close"
)

// opened is an account that begins.
type opened struct {
	Account string `json:"account"`
	Balance int64  `json:"balance"`
}

// transferred is money that moved. Request is the customer's word for it: one
// request moves money once, however often it is sent.
type transferred struct {
	Request string `json:"request"`
	From    string `json:"from"`
	To      string `json:"to"`
	Amount  int64  `json:"amount"`
}

// closed is an account that ends.
type closed struct {
	Account string `json:"account"`
}

// The locks. What may change by itself has a name of its own, so that what
// does not matter to each other does not conflict: two transfers to one account do
// not, nor does a transfer with the closing of a third account.
func status(account string) string  { return "account." + account + ".status" }
func balance(account string) string { return "account." + account + ".balance" }
func subtree(account string) string { return "account." + account + ".>" }
func request(id string) string      { return "request." + id }

// lock names what the event was decided by and what it changes.
func (e opened) lock(tx *client.Tx) { tx.WriteLock(status(e.Account), balance(e.Account)) }

// A transfer is decided by the sender's balance, that both accounts are open,
// and that the request is new. It adds to the receiver's balance whatever that
// is: recorded, not checked.
func (e transferred) lock(tx *client.Tx) {
	tx.WriteLock(request(e.Request), balance(e.From))
	tx.ReadLock(status(e.From), status(e.To))
	tx.AppendLock(balance(e.To))
}

// Closing is decided by all there is to the account.
func (e closed) lock(tx *client.Tx) { tx.WriteLock(subtree(e.Account)) }

// put makes the event the transaction's data.
func setEvent(tx *client.Tx, kind string, event interface{ lock(*client.Tx) }) error {
	data, err := json.Marshal(event)
	if err != nil {
		return err
	}
	event.lock(tx)
	tx.Set(kind, data)
	return nil
}

package main

import (
	"encoding/json"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// The kinds of the bank's transactions. The partition may contain other kinds.
const (
	kindOpen     = "bank-open"
	kindTransfer = "bank-transfer"
	kindClose    = "bank-close"
)

// opened is the event of a new account.
type opened struct {
	Account string `json:"account"`
	Balance int64  `json:"balance"`
}

// transferred is the event of a transfer. Request is chosen by the customer: a
// request moves money once, however often it is sent.
type transferred struct {
	Request string `json:"request"`
	From    string `json:"from"`
	To      string `json:"to"`
	Amount  int64  `json:"amount"`
}

// closed is the event of an account that was closed.
type closed struct {
	Account string `json:"account"`
}

// The names of locks. Whatever changes independently has a name of its own, so
// that independent transactions do not conflict: two transfers to one account
// do not, nor does a transfer with the closing of a third account.
func status(account string) string  { return "account." + subjects.Token(account) + ".status" }
func balance(account string) string { return "account." + subjects.Token(account) + ".balance" }
func subtree(account string) string { return "account." + subjects.Token(account) + ".>" }
func request(id string) string      { return "request." + subjects.Token(id) }

// lock names what the event depends on and what it changes.
func (e opened) lock(req *client.Request) { req.WriteLock(status(e.Account), balance(e.Account)) }

// A transfer depends on the sender's balance, on both accounts being open, and
// on the request being new. It adds to the receiver's balance whatever that is,
// so that lock is recorded and not checked.
func (e transferred) lock(req *client.Request) {
	req.WriteLock(request(e.Request), balance(e.From))
	req.ReadLock(status(e.From), status(e.To))
	req.AppendLock(balance(e.To))
}

// Closing depends on everything about the account.
func (e closed) lock(req *client.Request) { req.WriteLock(subtree(e.Account)) }

// setEvent sets the transaction's kind, payload and locks to those of the
// event.
func setEvent(req *client.Request, kind string, event interface{ lock(*client.Request) }) error {
	data, err := json.Marshal(event)
	if err != nil {
		return err
	}
	event.lock(req)
	req.Set(kind, data)
	return nil
}

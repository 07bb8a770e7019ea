package dcb_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

type invoice struct{ Number int }

// appendInvoice appends the invoice that follows the newest one, which is all
// that it reads. The condition is a kind alone: no lock is needed.
func appendInvoice(ctx context.Context, c *client.Client) error {
	items := []subjects.QueryItem{about([]string{"invoiced"})}
	for {
		newest, err := c.Query(ctx, 0, client.Query{Items: items, NewestFirst: true, Max: 1})
		if err != nil {
			return err
		}
		next := invoice{1}
		if len(newest.Transactions) > 0 {
			if err := json.Unmarshal(newest.Transactions[0].Payload, &next); err != nil {
				return err
			}
			next.Number++
		}
		req := &client.Request{HighWaterMark: newest.HighWaterMark, Unless: items}
		if err := set(req, "invoiced", next); err != nil {
			return err
		}
		if _, err := c.Append(ctx, req); !errors.Is(err, client.ErrConflict) {
			return err
		}
	}
}

// Invoices are numbered without gaps. What else is in the log is in nobody's
// way.
func TestInvoiceNumbers(t *testing.T) {
	const each = 10
	clients, ctx := newClients(t, 6), testkit.Soon(t)
	passed := race(t, clients, func(i int, c *client.Client) error {
		for range each {
			var err error
			if i == 0 {
				_, err = c.Append(ctx, &client.Request{Kind: "noted", Payload: []byte("{}")})
			} else {
				err = appendInvoice(ctx, c)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	last := 0
	replay(t, clients[0], func(kind string, i invoice) bool {
		if kind == "noted" {
			return true
		}
		last++
		return i.Number == last
	})
	if want := (len(clients) - 1) * each; passed != len(clients) || last != want {
		t.Errorf("the last of %d invoices has the number %d", want, last)
	}
}

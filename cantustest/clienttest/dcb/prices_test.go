package dcb_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// graceMinutes is for how long an old price still counts.
const graceMinutes = 10

type pricing struct {
	Product       string // of a new price
	Price, Minute int
	Cart          map[string]int // of an order: the price that was displayed, by product
}

// prices has the history of each product's price.
type prices map[string][]pricing

func (p prices) apply(kind string, e pricing) prices {
	if p == nil {
		p = prices{}
	}
	if kind == "priced" {
		p[e.Product] = append(p[e.Product], e)
	}
	return p
}

// counts reports whether a price counts at a time: the newest one, or one that
// was replaced a short time ago.
func (p prices) counts(product string, price, minute int) bool {
	history := p[product]
	for i, e := range history {
		if e.Price == price && (i == len(history)-1 || minute < history[i+1].Minute+graceMinutes) {
			return true
		}
	}
	return false
}

// allows is the rule.
func (p prices) allows(kind string, e pricing) bool {
	for product, price := range e.Cart {
		if !p.counts(product, price, e.Minute) {
			return false
		}
	}
	return kind == "priced" || len(e.Cart) > 0
}

// order orders what is in a cart, at the prices in it. Orders need not notice
// each other: nothing is recorded.
func (e pricing) order(ctx context.Context, c *client.Client) error {
	var items []subjects.QueryItem
	for product := range e.Cart {
		items = append(items, about([]string{"priced"}, "product."+product))
	}
	return decide(ctx, c, items, prices.apply, func(p prices, req *client.Request) error {
		if !p.allows("ordered", e) {
			return errRefused
		}
		return set(req, "ordered", e)
	})
}

// price sets a price, whatever it was.
func (e pricing) price(ctx context.Context, c *client.Client) error {
	req := &client.Request{}
	if err := set(req, "priced", e, "product."+e.Product); err != nil {
		return err
	}
	_, err := c.Append(ctx, req)
	return err
}

// An order has the prices that were displayed, each of which still counts.
func TestPrices(t *testing.T) {
	const changes = 20
	clients, ctx := newClients(t, 6), testkit.Soon(t)
	for _, product := range []string{"tea", "cup"} {
		if err := (pricing{Product: product, Price: 100}).price(ctx, clients[0]); err != nil {
			t.Fatal(err)
		}
	}
	var minute atomic.Int64
	orders := &outcomes{t: t}
	if passed := race(t, clients, func(i int, c *client.Client) error {
		if i == 0 {
			for n := range changes {
				e := pricing{Product: "tea", Price: 101 + n, Minute: 3 * (n + 1)}
				if err := e.price(ctx, c); err != nil {
					return err
				}
				minute.Store(int64(e.Minute))
			}
			return nil
		}
		for n := range changes {
			now := int(minute.Load())
			e := pricing{Cart: map[string]int{"tea": 100 + now/3 - n%6, "cup": 100}, Minute: now}
			if n%6 == 0 { // by a clock that is ahead: it must notice the next price
				e.Minute += 2 * graceMinutes
			}
			orders.count(e.order(ctx, c))
		}
		return nil
	}); passed != len(clients) {
		t.Fatal("not all ended")
	}
	if orders.passed == 0 || orders.refused == 0 {
		t.Errorf("%d orders passed, and %d were refused", orders.passed, orders.refused)
	}
	last := 3 * changes // the minute of the last price
	for want, e := range map[bool][]pricing{
		true: {
			{Cart: map[string]int{"tea": 100 + changes}, Minute: last + 1000},
			{Cart: map[string]int{"tea": 100 + changes - 1, "cup": 100}, Minute: last + graceMinutes - 1},
		},
		false: {
			{Cart: map[string]int{"tea": 100 + changes - 1}, Minute: last + graceMinutes},
			{Cart: map[string]int{"tea": 100 + changes, "cup": 99}, Minute: last},
			{Cart: map[string]int{"saucer": 1}, Minute: last},
		},
	} {
		for _, e := range e {
			n := race(t, clients, func(_ int, c *client.Client) error { return e.order(ctx, c) })
			if n != 0 && !want || n != len(clients) && want {
				t.Errorf("%s: %d of %d passed", fmt.Sprint(e), n, len(clients))
			}
		}
	}
	var all prices
	replay(t, clients[0], func(kind string, e pricing) bool {
		allowed := all.allows(kind, e)
		all = all.apply(kind, e)
		return allowed
	})
}

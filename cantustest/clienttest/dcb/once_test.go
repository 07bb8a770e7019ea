package dcb_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

type placed struct{ Order, Token string }

// place places an order unless one with its token was ever placed. It reads
// nothing: the mark 0 makes the condition mean "never".
func (p placed) place(ctx context.Context, c *client.Client) error {
	lock := "request." + subjects.Token(p.Token)
	req := &client.Request{Unless: []subjects.QueryItem{about([]string{"placed"}, lock)}}
	if err := set(req, "placed", p, lock, "order."+p.Order); err != nil {
		return err
	}
	_, err := c.Append(ctx, req)
	if errors.Is(err, client.ErrConflict) {
		return errRefused
	}
	return err
}

// A user sends a form twice, or thinks so: its token counts once, however old
// it is.
func TestNoRecordIsDuplicated(t *testing.T) {
	const tokens = 20
	clients, ctx := newClients(t, 6), testkit.Soon(t)
	for n := range tokens {
		// "a" and "A", then "a " and "A ", and so on.
		token := fmt.Sprintf("%c%*s", "aA"[n%2], n/2, "")
		if passed := race(t, clients, func(i int, c *client.Client) error {
			return placed{fmt.Sprint(n, "-", i), token}.place(ctx, c)
		}); passed != 1 {
			t.Errorf("token %q was used %d times", token, passed)
		}
		if err := (placed{"again", "a"}).place(ctx, clients[0]); !errors.Is(err, errRefused) {
			t.Errorf("after %d tokens the first one is accepted again: %v", n+1, err)
		}
	}
	seen := map[string]bool{}
	if n := replay(t, clients[0], func(_ string, p placed) bool {
		new := !seen[p.Token]
		seen[p.Token] = true
		return new
	}); n != tokens {
		t.Errorf("%d orders for %d tokens", n, tokens)
	}
}

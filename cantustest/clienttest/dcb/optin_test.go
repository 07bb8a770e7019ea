package dcb_test

import (
	"context"
	"testing"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// validMinutes is for how long a user can confirm an address.
const validMinutes = 60

type optIn struct {
	Address, Token string
	Minute         int
}

// locks returns what an event is found by. A token may be in use for another
// address too: a decision looks for both names together.
func (o optIn) locks() []string {
	return []string{"address." + subjects.Token(o.Address), "optin." + o.Token}
}

// sent says when tokens were sent that nobody has used yet.
type sent map[optIn]int

func (s sent) apply(kind string, o optIn) sent {
	if s == nil {
		s = sent{}
	}
	key := optIn{Address: o.Address, Token: o.Token}
	if delete(s, key); kind == "sent" {
		s[key] = o.Minute
	}
	return s
}

// allows is the rule.
func (s sent) allows(kind string, o optIn) bool {
	at, found := s[optIn{Address: o.Address, Token: o.Token}]
	return kind == "sent" || found && o.Minute < at+validMinutes
}

func (o optIn) attempt(ctx context.Context, c *client.Client, kind string) error {
	items := []subjects.QueryItem{about([]string{"sent", "confirmed"}, o.locks()...)}
	return decide(ctx, c, items, sent.apply, func(s sent, req *client.Request) error {
		if !s.allows(kind, o) {
			return errRefused
		}
		return set(req, kind, o, o.locks()...)
	})
}

// A token confirms one address, once, and within an hour.
func TestOptInTokens(t *testing.T) {
	clients, ctx := newClients(t, 6), testkit.Soon(t)
	const ann, bob = "ann+news@example.org", "bob@example.org"
	for _, o := range []optIn{{ann, "123", 0}, {bob, "123", 0}, {ann, "456", 10}} {
		if err := o.attempt(ctx, clients[0], "sent"); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		o    optIn
		want int
	}{
		{optIn{ann, "789", 1}, 0},
		{optIn{bob, "456", 11}, 0},
		{optIn{ann, "123", 59}, 1},
		{optIn{ann, "123", 59}, 0},
		{optIn{bob, "123", 60}, 0},
		{optIn{ann, "456", 69}, 1},
	} {
		if n := race(t, clients, func(_ int, c *client.Client) error { return test.o.attempt(ctx, c, "confirmed") }); n != test.want {
			t.Errorf("%+v was confirmed %d times; want %d", test.o, n, test.want)
		}
	}
	var all sent
	replay(t, clients[0], func(kind string, o optIn) bool {
		allowed := all.allows(kind, o)
		all = all.apply(kind, o)
		return allowed
	})
}

package dcb_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// retention is for how many days the name of a closed account stays taken.
const retention = 3

type naming struct {
	Account, Name string
	Old           string // of an account that is renamed
	Day           int
}

// lock is the name's lock: any text can be a user's name.
func (n naming) lock() string { return "username." + subjects.Token(n.Name) }

// locks returns what an event is found by.
func (n naming) locks() []string {
	locks := []string{n.lock(), "account." + n.Account}
	if n.Old != "" {
		locks = append(locks, naming{Name: n.Old}.lock())
	}
	return locks
}

var namingKinds = []string{"registered", "renamed", "closed"}

// users says who has which name.
type users struct {
	holder map[string]string // by name: the account
	closed map[string]int    // by name: the day on which its account was closed
}

func (u users) apply(kind string, n naming) users {
	if u.holder == nil {
		u = users{map[string]string{}, map[string]int{}}
	}
	switch kind {
	case "closed":
		u.closed[n.Name] = n.Day
		return u
	case "renamed":
		delete(u.holder, n.Old)
	}
	u.holder[n.Name] = n.Account
	delete(u.closed, n.Name)
	return u
}

// holds reports whether an account has a name.
func (u users) holds(account, name string) bool {
	_, closed := u.closed[name]
	return !closed && u.holder[name] == account
}

// free reports whether nobody has a name on a day.
func (u users) free(name string, day int) bool {
	closed, isClosed := u.closed[name]
	return u.holder[name] == "" || isClosed && day >= closed+retention
}

// allows is the rule.
func (u users) allows(kind string, n naming) bool {
	switch kind {
	case "registered":
		return u.free(n.Name, n.Day)
	case "renamed":
		return u.holds(n.Account, n.Old) && u.free(n.Name, n.Day)
	}
	return u.holds(n.Account, n.Name)
}

func (n naming) attempt(ctx context.Context, c *client.Client, kind string) error {
	items := []subjects.QueryItem{about(namingKinds, n.lock())}
	if n.Old != "" {
		items = append(items, about(namingKinds, naming{Name: n.Old}.lock()))
	}
	return decide(ctx, c, items, users.apply, func(u users, req *client.Request) error {
		if !u.allows(kind, n) {
			return errRefused
		}
		return set(req, kind, n, n.locks()...)
	})
}

// A name belongs to one account at a time. It is free again once its account
// has another one, or was closed some days ago.
func TestUsernames(t *testing.T) {
	const ann, bea = "Ann O'Neill, *1990.", "ベア"
	clients, ctx := newClients(t, 6), testkit.Soon(t)
	account := func(i, day int) string { return fmt.Sprint(i, "-", day) }
	register := func(name string, day int) int {
		return race(t, clients, func(i int, c *client.Client) error {
			return naming{Account: account(i, day), Name: name, Day: day}.attempt(ctx, c, "registered")
		})
	}
	if n := register(ann, 0); n != 1 {
		t.Fatalf("%d accounts have one name", n)
	}
	var all users
	state := func() {
		all = users{}
		replay(t, clients[0], func(kind string, n naming) bool {
			allowed := all.allows(kind, n)
			all = all.apply(kind, n)
			return allowed
		})
	}
	state()
	first := all.holder[ann]
	// The account takes another name, which others want too, as they want the
	// one that becomes free.
	passed := race(t, clients, func(i int, c *client.Client) error {
		switch {
		case i == 0:
			return naming{Account: first, Old: ann, Name: bea, Day: 1}.attempt(ctx, c, "renamed")
		case i%2 == 0:
			return naming{Account: account(i, 1), Name: bea, Day: 1}.attempt(ctx, c, "registered")
		}
		return naming{Account: account(i, 1), Name: ann, Day: 1}.attempt(ctx, c, "registered")
	})
	if state(); passed == 0 || all.holder[bea] == "" || all.holder[ann] == "" && !all.holds(first, bea) {
		t.Errorf("%d passed: %v", passed, all)
	}
	if err := (naming{Account: all.holder[bea], Name: bea, Day: 2}).attempt(ctx, clients[0], "closed"); err != nil {
		t.Fatal(err)
	}
	if n := register(bea, 2+retention-1); n != 0 {
		t.Errorf("%d accounts took a name that is not free yet", n)
	}
	if n := register(bea, 2+retention); n != 1 {
		t.Errorf("%d accounts took a name that is free", n)
	}
	state()
}

package natsserver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// usersByJWT reports whether accounts and users are defined by JWTs, and not in
// the configuration.
func usersByJWT(opts *server.Options) bool {
	return len(opts.TrustedOperators) > 0 || len(opts.TrustedKeys) > 0
}

// accountNames returns the names of the accounts of a configuration, without
// the system account and the global one.
func accountNames(opts *server.Options) (names []string) {
	for _, a := range opts.Accounts {
		if name := a.GetName(); name != opts.SystemAccount && name != server.DEFAULT_SYSTEM_ACCOUNT && name != server.DEFAULT_GLOBAL_ACCOUNT {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// checkAccount returns an error if the configuration lacks the node's account.
func checkAccount(opts *server.Options, o Options) error {
	names := accountNames(opts)
	switch {
	case o.Account == "" || usersByJWT(opts), slices.Contains(names, o.Account),
		slices.Contains([]string{opts.SystemAccount, server.DEFAULT_SYSTEM_ACCOUNT, server.DEFAULT_GLOBAL_ACCOUNT}, o.Account):
		return nil // if it is missing, the server reports it
	case len(names) == 0:
		return fmt.Errorf("NATS account %q: account missing: the configuration has none", o.Account)
	}
	return fmt.Errorf("NATS account %q: account missing: the configuration has %s", o.Account, strings.Join(names, ", "))
}

// otherAccounts returns the accounts of a configuration if the node's subjects
// are in the global account and no user is, which is most likely a mistake. It
// returns nil if anyone else can be in the global account: leaf nodes, users of
// the auth callout, or clients without a user name. It is called before the
// node's own users are added.
func (a *access) otherAccounts(opts *server.Options) []string {
	anonymous, err := admitsAnonymous(opts)
	if a.account != server.DEFAULT_GLOBAL_ACCOUNT || err != nil || anonymous || opts.Username != "" || opts.AuthCallout != nil ||
		opts.LeafNode.Port != 0 || len(opts.LeafNode.Remotes) > 0 {
		return nil
	}
	if slices.ContainsFunc(opts.Users, func(u *server.User) bool { return a.in(u.Account) }) ||
		slices.ContainsFunc(opts.Nkeys, func(u *server.NkeyUser) bool { return a.in(u.Account) }) {
		return nil
	}
	return accountNames(opts)
}

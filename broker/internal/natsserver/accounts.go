package natsserver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// usersByJWT reports whether accounts and users are not in the configuration.
func usersByJWT(opts *server.Options) bool {
	return len(opts.TrustedOperators) > 0 || len(opts.TrustedKeys) > 0
}

// accountNames returns the accounts of a configuration, but for the system's.
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
		return nil // or the server says so
	case len(names) == 0:
		return fmt.Errorf("NATS account %q: account missing: the configuration has none", o.Account)
	}
	return fmt.Errorf("NATS account %q: account missing: the configuration has %s", o.Account, strings.Join(names, ", "))
}

// otherAccounts returns the accounts that the node's users are in, if the node lives
// in the global account and they are all in others. It looks at a configuration
// before the node's own users are added, and not at one that lets anybody else into
// the global account: leaf nodes, those that the auth callout admits, or clients
// that give no name.
func (a *access) otherAccounts(opts *server.Options) []string {
	anonymous, err := admitsAnybody(opts)
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

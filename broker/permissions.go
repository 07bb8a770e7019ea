package broker

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/conf"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/bcrypt"

	"github.com/cantuslog/cantus/subjects"
)

// Some subjects are the nodes' own: only they publish the feed, and only they
// answer requests. NATS enforces it by permissions, so every user of the node's
// account gets them, whether the configuration says so or not: see
// docs/adr/0021. The node itself connects as a user of its own without them, and
// the application that embeds it as another user with them.

// nodePublishes are the subjects that only nodes publish.
func nodePublishes(names subjects.Names) []string {
	return []string{
		names.Prefix + ".feed.>", names.Prefix + ".packed.>", names.Prefix + ".advisory.>",
		names.Admin("hello"), names.Admin("join"),
	}
}

// nodeSubscribes are the subjects that only nodes subscribe to.
func nodeSubscribes(names subjects.Names) []string {
	return []string{
		names.Prefix + ".append.>", names.Prefix + ".batch.>", names.Prefix + ".read.>", names.Prefix + ".replica.>",
		names.Prefix + ".get.>", names.Prefix + ".info", names.Prefix + ".info.>", names.Prefix + ".cursor.>",
		names.Prefix + ".admin.>", "$SRV.*." + serviceName, "$SRV.*." + serviceName + ".>",
	}
}

// forbiddenReplies returns a function that reports whether a node must not answer
// to a subject. The node may publish anywhere, and answers hold what clients
// stored: whoever may ask could have it append, feed or administer in its own name.
func forbiddenReplies(names subjects.Names) func(reply string) bool {
	own := []string{
		names.Prefix + ".append.", names.Prefix + ".batch.", names.Prefix + ".read.", names.Prefix + ".replica.",
		names.Prefix + ".get.", names.Prefix + ".info", names.Prefix + ".cursor.", names.Prefix + ".feed.",
		names.Prefix + ".packed.", names.Prefix + ".advisory.", names.Prefix + ".admin.",
	}
	prefix := names.Prefix + "."
	return func(reply string) bool {
		if reply[0] == '$' {
			return !strings.HasPrefix(reply, "$JS.ACK.") // a stream that delivers requests
		}
		return strings.HasPrefix(reply, prefix) &&
			slices.ContainsFunc(own, func(s string) bool { return strings.HasPrefix(reply, s) })
	}
}

// access makes the node and its application users of the NATS server, and keeps
// every other user off the nodes' subjects.
type access struct {
	names   subjects.Names
	account string // Options.Account
	file    string // Options.Credentials

	// The same for every configuration, so that connections survive a reload.
	nodeKey, appKey nkeys.KeyPair
	tokens          *tokenAuth

	applied, byToken bool // which of the two is in use
}

func newAccess(o Options) (*access, error) {
	a := &access{names: subjects.Names{Prefix: o.Prefix}, account: o.Account, file: o.Credentials}
	a.tokens = &tokenAuth{node: rand.Text(), app: rand.Text(), restricted: a.restrict(nil, false)}
	var err1, err2 error
	a.nodeKey, err1 = nkeys.CreateUser()
	a.appKey, err2 = nkeys.CreateUser()
	return a, errors.Join(err1, err2)
}

// credentials returns those of the node, and those of the application that it is
// embedded in, once a configuration is applied.
func (a *access) credentials() (node, app credentials) {
	switch {
	case a.file != "":
		return credentials{file: a.file}, credentials{file: a.file}
	case a.byToken:
		return credentials{token: a.tokens.node}, credentials{token: a.tokens.app}
	}
	return credentials{key: a.nodeKey}, credentials{key: a.appKey}
}

// apply adds the node's users and the permissions to a configuration as it was
// read. It changes nothing else and may be called for each configuration that is
// loaded.
func (a *access) apply(opts *server.Options) error {
	operators := len(opts.TrustedOperators) > 0 || len(opts.TrustedKeys) > 0
	switch {
	case operators && a.file == "":
		return errors.New("the NATS configuration uses operators and JWTs: " +
			"give the node a user of its own with a credentials file")
	case a.file != "":
		return nil // users come from elsewhere, with the permissions that they have there
	case a.account != "" && len(opts.Users) == 0 && len(opts.Nkeys) == 0:
		return fmt.Errorf("the NATS configuration has no users, so that nobody could come to account %q", a.account)
	case a.applied && a.byToken != (opts.Authorization != ""):
		return errors.New("the NATS configuration changes between a token and users: that takes a restart")
	}
	a.applied, a.byToken = true, opts.Authorization != ""
	if a.byToken {
		a.tokens.configured.Store(&opts.Authorization)
		opts.CustomClientAuthentication = a.tokens
		return nil
	}
	return a.applyUsers(opts)
}

// applyUsers is apply for a configuration with users, or one that admits anybody.
func (a *access) applyUsers(opts *server.Options) error {
	anonymous, err := admitsAnybody(opts)
	if err != nil {
		return err
	}
	if opts.Username != "" { // as one of several users it can have permissions
		opts.Users = append(opts.Users, &server.User{Username: opts.Username, Password: opts.Password})
		opts.Username, opts.Password = "", ""
	}
	for _, u := range opts.Users {
		if a.in(u.Account) {
			u.Permissions = a.restrict(u.Permissions, leafOnly(u.AllowedConnectionTypes))
		}
	}
	for _, u := range opts.Nkeys {
		if a.in(u.Account) {
			u.Permissions = a.restrict(u.Permissions, leafOnly(u.AllowedConnectionTypes))
		}
	}
	node, app := a.users(opts)
	opts.Nkeys = append(opts.Nkeys, node, app)
	if anonymous {
		opts.NoAuthUser = app.Nkey
		if l := &opts.LeafNode; l.Port != 0 && l.Username == "" && l.Nkey == "" && len(l.Users) == 0 {
			l.Users = []*server.User{{}} // leaf nodes without a name, as before
		}
	}
	if opts.AuthCallout != nil {
		opts.AuthCallout.AuthUsers = append(opts.AuthCallout.AuthUsers, node.Nkey, app.Nkey)
	}
	return nil
}

// users returns the node's own user and the application's.
func (a *access) users(opts *server.Options) (node, app *server.NkeyUser) {
	node = &server.NkeyUser{
		Nkey:                   publicKey(a.nodeKey),
		AllowedConnectionTypes: map[string]struct{}{jwt.ConnectionTypeInProcess: {}},
	}
	app = &server.NkeyUser{Nkey: publicKey(a.appKey), Permissions: a.restrict(nil, false)}
	for _, account := range opts.Accounts {
		if account.GetName() == a.account {
			node.Account, app.Account = account, account
		}
	}
	return node, app
}

// in reports whether account is the node's. Users without one belong to the
// global account.
func (a *access) in(account *server.Account) bool {
	const global = "$G"
	own, name := a.account, global
	if own == "" {
		own = global
	}
	if account != nil {
		name = account.GetName()
	}
	return own == name
}

// leafOnly reports whether a user may only connect as a leaf node.
func leafOnly(types map[string]struct{}) bool {
	for t := range types {
		if !strings.HasPrefix(strings.ToUpper(t), jwt.ConnectionTypeLeafnode) {
			return false
		}
	}
	return len(types) > 0
}

// restrict returns permissions that keep to what p allows, and off the nodes'
// subjects. It does not change p, which users may share. A leaf node may
// subscribe to what nodes do: where it is denied that, NATS does not let it
// publish there either.
func (a *access) restrict(p *server.Permissions, leaf bool) *server.Permissions {
	restricted := &server.Permissions{}
	if p != nil {
		*restricted = *p
	}
	restricted.Publish = deny(restricted.Publish, nodePublishes(a.names))
	if !leaf {
		restricted.Subscribe = deny(restricted.Subscribe, nodeSubscribes(a.names))
	}
	return restricted
}

func deny(p *server.SubjectPermission, also []string) *server.SubjectPermission {
	denied := &server.SubjectPermission{}
	if p != nil {
		*denied = *p
	}
	denied.Deny = slices.Clone(denied.Deny)
	for _, subject := range also {
		if !slices.Contains(denied.Deny, subject) {
			denied.Deny = append(denied.Deny, subject)
		}
	}
	return denied
}

// admitsAnybody reports whether a configuration lets clients in that give no
// name: it has no users at all, or only those of the system account.
func admitsAnybody(opts *server.Options) (bool, error) {
	if opts.NoAuthUser != "" || opts.Username != "" || opts.AuthCallout != nil {
		return false, nil
	}
	if len(opts.Users) == 0 && len(opts.Nkeys) == 0 {
		return true, nil
	}
	if opts.SystemAccount == "" || opts.SystemAccount == server.DEFAULT_SYSTEM_ACCOUNT && len(opts.Accounts) == 0 {
		return false, nil
	}
	for _, account := range opts.Accounts {
		if name := account.GetName(); name != opts.SystemAccount && name != "$G" {
			return false, nil
		}
	}
	file, err := conf.ParseFile(opts.ConfigFile)
	if err != nil {
		return false, fmt.Errorf("NATS configuration %s: %w", opts.ConfigFile, err)
	}
	for key := range file {
		if strings.EqualFold(key, "authorization") {
			return false, nil
		}
	}
	return true, nil
}

// tokenAuth admits clients by a token. The server's own check of one knows no
// users, and so no permissions.
type tokenAuth struct {
	node, app  string // the node's own tokens
	restricted *server.Permissions
	configured atomic.Pointer[string] // may be a bcrypt hash
}

// Check implements server.Authentication.
func (t *tokenAuth) Check(c server.ClientAuthentication) bool {
	given := c.GetOpts().Token
	if sameSecret(t.node, given) {
		return true
	}
	if !sameSecret(t.app, given) && !sameSecret(*t.configured.Load(), given) {
		return false
	}
	c.RegisterUser(&server.User{Permissions: t.restricted})
	return true
}

// sameSecret compares a secret of a configuration with the one that a client gave.
func sameSecret(configured, given string) bool {
	if hashed(configured) {
		return bcrypt.CompareHashAndPassword([]byte(configured), []byte(given)) == nil
	}
	return subtle.ConstantTimeCompare([]byte(configured), []byte(given)) == 1
}

// hashed reports whether the configuration gives a bcrypt hash of a secret.
func hashed(secret string) bool { return strings.HasPrefix(secret, "$2") && len(secret) == 60 }

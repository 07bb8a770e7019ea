package natsserver

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/conf"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/bcrypt"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// Some subjects are reserved for nodes: only nodes publish the feed, and only
// nodes answer requests. NATS permissions enforce that, so the node adds them
// to every user of its account: see docs/adr/0021. The node itself connects as
// a user without these permissions, and the application that embeds it as
// another user with them.

// ServiceName is the name of the nodes' NATS service.
const ServiceName = "cantus"

// nodePublishes returns the subjects on which only nodes may publish.
func nodePublishes(names subjects.Names) []string {
	inNamespace := names.Namespace("*").Prefix
	return []string{
		names.Prefix + ".feed.>", names.Prefix + ".packed.>", names.Prefix + ".advisory.>",
		inNamespace + ".feed.>", inNamespace + ".packed.>", inNamespace + ".advisory.>",
		names.Admin("hello"), names.Admin("join"), names.Admin("node", "*", "member"),
		names.Admin("pace"), names.Admin("pace", ">"),
		"$SYS.REQ.>", // the server replies to any subject, those of the nodes included
	}
}

// nodeSubscribes returns the subjects to which only nodes may subscribe.
func nodeSubscribes(names subjects.Names) []string {
	all := []string{names.Prefix + ".admin.>", "$SRV.*." + ServiceName, "$SRV.*." + ServiceName + ".>"}
	for _, prefix := range []string{names.Prefix, names.Namespace("*").Prefix} {
		all = append(all, prefix+".append.>", prefix+".batch.>", prefix+".read.>", prefix+".replica.>", prefix+".get.>", prefix+".info",
			prefix+".info.>", prefix+".cursor.>", prefix+".cursors.>")
	}
	return all
}

// ForbiddenReplies returns a function that reports whether a node must not
// reply to a subject. The node may publish on any subject, and its replies
// contain data of clients. Without this check, a client could choose a reply
// subject with which the node appends, publishes the feed or administers on its
// behalf. If acks is set, the reply subjects of JetStream messages are allowed:
// a reply to an append is never a valid acknowledgement.
func ForbiddenReplies(names subjects.Names, acks bool) func(reply string) bool {
	own := []string{
		names.Prefix + ".append.", names.Prefix + ".batch.", names.Prefix + ".read.", names.Prefix + ".replica.",
		names.Prefix + ".get.", names.Prefix + ".info", names.Prefix + ".cursor.", names.Prefix + ".cursors.", names.Prefix + ".feed.",
		names.Prefix + ".packed.", names.Prefix + ".advisory.", names.Prefix + ".admin.", names.Prefix + ".ns.",
	}
	prefix := names.Prefix + "."
	return func(reply string) bool {
		if reply[0] == '$' {
			return !acks || !strings.HasPrefix(reply, "$JS.ACK.")
		}
		return strings.HasPrefix(reply, prefix) &&
			slices.ContainsFunc(own, func(s string) bool { return strings.HasPrefix(reply, s) })
	}
}

// access adds users for the node and its application to a configuration of the
// NATS server, and denies the nodes' subjects to all other users.
type access struct {
	names   subjects.Names
	account string // of the nodes' subjects

	// The same for every configuration, so that the node's connections survive
	// a reload.
	nodeKey, appKey     nkeys.KeyPair
	nodeToken, appToken string
}

// rights are the result of access.apply for a configuration.
type rights struct {
	how           authMethod
	node, app     natslink.User // of the node, and of the application that embeds it
	token         string        // of clients; may be a bcrypt hash
	digest        string        // of the configuration and the files that it includes
	gaps          []string      // connections to which the node can't deny its subjects
	mutedLeaves   bool          // leaf nodes can connect, but none can send requests
	otherAccounts []string      // the accounts that have users, if only the node's, the global one, has none
}

// authMethod is how the server authenticates clients. It can't change while the
// server runs.
type authMethod string

const (
	byNothing authMethod = "no users"
	byToken   authMethod = "a token"
	byUsers   authMethod = "users"
	byJWT     authMethod = "operators and JWTs"
)

func newAccess(o Options) (*access, error) {
	a := &access{names: subjects.Names{Prefix: o.Prefix}, account: o.Account, nodeToken: rand.Text(), appToken: rand.Text()}
	if a.account == "" {
		a.account = server.DEFAULT_GLOBAL_ACCOUNT
	}
	var err1, err2 error
	a.nodeKey, err1 = nkeys.CreateUser()
	a.appKey, err2 = nkeys.CreateUser()
	return a, errors.Join(err1, err2)
}

// apply adds the node's users and the permissions to a configuration.
func (a *access) apply(opts *server.Options, o Options) (r rights, err error) {
	r = rights{how: authMethodOf(opts, o), node: natslink.User{Token: a.nodeToken}, app: natslink.User{Token: a.appToken}, token: opts.Authorization, digest: opts.ConfigDigest()}
	r.gaps = gapsOf(opts, r.how)
	switch {
	case r.how == byJWT && o.Credentials == "":
		return r, errors.New("the NATS configuration uses operators and JWTs: " +
			"give the node a user of its own with a credentials file")
	case r.how == byJWT:
		r.node, r.app = natslink.User{File: o.Credentials}, natslink.User{File: o.Credentials}
		return r, nil
	case o.Account != "" && len(opts.Users) == 0 && len(opts.Nkeys) == 0:
		return r, fmt.Errorf("the NATS configuration has no users, so nobody could connect to account %q", o.Account)
	case opts.Authorization != "" && r.how != byToken:
		return r, errors.New("the NATS configuration has a token beside proxies: give it users instead")
	case opts.Websocket.Username != "" || opts.Websocket.Token != "" || opts.MQTT.Username != "" || opts.MQTT.Token != "":
		return r, errors.New("the NATS configuration has an authorization for websockets or MQTT alone, which allows no permissions: " +
			"give it users (authorization { users: [...] }), with allowed_connection_types")
	case r.how == byUsers:
		r.node, r.app = natslink.User{Key: a.nodeKey}, natslink.User{Key: a.appKey}
		r.otherAccounts = a.otherAccounts(opts)
		err := a.applyUsers(opts)
		r.mutedLeaves = a.mutesLeaves(opts)
		return r, err
	case r.how == byNothing: // or the server's INFO would require authentication
		_, app := a.users(opts)
		opts.Nkeys, opts.NoAuthUser = []*server.NkeyUser{app}, app.Nkey
		opts.AuthTimeout = cmp.Or(opts.AuthTimeout, noAuthTimeout.Seconds())
	}
	return r, nil
}

// noAuthTimeout is how long a client may take to send CONNECT if it need not
// authenticate. It is long, because the machine may be busy.
const noAuthTimeout = time.Minute

func authMethodOf(opts *server.Options, o Options) authMethod {
	switch {
	case o.Credentials != "" || len(opts.TrustedOperators) > 0 || len(opts.TrustedKeys) > 0:
		return byJWT
	case len(opts.Users) > 0 || len(opts.Nkeys) > 0 || opts.Username != "" || opts.AuthCallout != nil,
		opts.ProxyRequired || opts.Proxies != nil:
		return byUsers
	case opts.Authorization != "":
		return byToken
	}
	return byNothing
}

// gapsOf returns the kinds of connections that can use the nodes' subjects
// although they belong to no node, because the node can't add permissions to
// them.
func gapsOf(opts *server.Options, how authMethod) (gaps []string) {
	if how == byJWT {
		gaps = append(gaps, "users of operators and JWTs")
	}
	if opts.AuthCallout != nil {
		gaps = append(gaps, "users of the auth callout")
	}
	if l := &opts.LeafNode; l.Port != 0 && (l.Username != "" || l.Nkey != "" || len(l.Users) > 0) {
		gaps = append(gaps, "leaf nodes that the leafnodes block authorizes")
	}
	if len(opts.LeafNode.Remotes) > 0 {
		gaps = append(gaps, "servers that this one is a leaf node of")
	}
	if opts.Gateway.Name != "" {
		gaps = append(gaps, "servers of other clusters")
	}
	return gaps
}

// applyUsers is apply for a configuration with users.
func (a *access) applyUsers(opts *server.Options) error {
	anonymous, err := admitsAnonymous(opts)
	if err != nil {
		return err
	}
	if opts.Username != "" { // only a user in the list can have permissions
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
			l.Users = []*server.User{{}} // leaf nodes without a user can still connect
		}
	}
	if opts.AuthCallout != nil {
		opts.AuthCallout.AuthUsers = append(opts.AuthCallout.AuthUsers, node.Nkey, app.Nkey)
	}
	return nil
}

// mutesLeaves reports whether leaf nodes can connect to the node's account, but
// only as users that can't send requests: see restrict.
func (a *access) mutesLeaves(opts *server.Options) bool {
	l := &opts.LeafNode
	if l.Port == 0 || l.Username != "" || l.Nkey != "" || len(l.Users) > 0 {
		return false
	}
	return !slices.ContainsFunc(opts.Users, func(u *server.User) bool { return a.in(u.Account) && leafOnly(u.AllowedConnectionTypes) }) &&
		!slices.ContainsFunc(opts.Nkeys, func(u *server.NkeyUser) bool { return a.in(u.Account) && leafOnly(u.AllowedConnectionTypes) })
}

// users returns the node's own user and the application's.
func (a *access) users(opts *server.Options) (node, app *server.NkeyUser) {
	node = &server.NkeyUser{
		Nkey:                   natslink.PublicKey(a.nodeKey),
		AllowedConnectionTypes: map[string]struct{}{jwt.ConnectionTypeInProcess: {}},
	}
	app = &server.NkeyUser{Nkey: natslink.PublicKey(a.appKey), Permissions: a.restrict(nil, false)}
	for _, account := range opts.Accounts {
		if a.in(account) {
			node.Account, app.Account = account, account
		}
	}
	return node, app
}

// in reports whether account is the node's. A nil account is the global one.
func (a *access) in(account *server.Account) bool {
	name := server.DEFAULT_GLOBAL_ACCOUNT
	if account != nil {
		name = account.GetName()
	}
	return a.account == name
}

// leafOnly reports whether a user with these connection types may only connect
// as a leaf node.
func leafOnly(types map[string]struct{}) bool {
	for t := range types {
		if !strings.HasPrefix(strings.ToUpper(t), jwt.ConnectionTypeLeafnode) {
			return false
		}
	}
	return len(types) > 0
}

// restrict returns p without permission to use the nodes' subjects. It does not
// change p, which users may share. It does not deny a leaf node subscriptions,
// because NATS does not let a leaf node publish on a subject to which it may
// not subscribe.
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

// admitsAnonymous reports whether a configuration admits clients without a user
// name: it has no users at all, or only those of the system account.
func admitsAnonymous(opts *server.Options) (bool, error) {
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

// authenticator authenticates clients if the configuration has no users. The
// server itself could not apply permissions to them.
type authenticator struct {
	nats         *Server
	client, leaf *server.Permissions
}

func newAuthenticator(s *Server, a *access) *authenticator {
	return &authenticator{nats: s, client: a.restrict(nil, false), leaf: a.restrict(nil, true)}
}

// Check implements server.Authentication.
func (d *authenticator) Check(c server.ClientAuthentication) bool {
	given, rights := c.GetOpts().Token, d.nats.rights.Load()
	switch {
	case sameSecret(rights.node.Token, given):
		return true
	case rights.how == byToken && !sameSecret(rights.app.Token, given) && !sameSecret(rights.token, given):
		return false
	case c.Kind() == server.LEAF:
		c.RegisterUser(&server.User{Permissions: d.leaf, Account: d.nats.leafAccount.Load()})
	default:
		c.RegisterUser(&server.User{Permissions: d.client})
	}
	return true
}

// sameSecret reports whether a client's secret is that of a configuration.
func sameSecret(configured, given string) bool {
	if hashed(configured) {
		return bcrypt.CompareHashAndPassword([]byte(configured), []byte(given)) == nil
	}
	return subtle.ConstantTimeCompare([]byte(configured), []byte(given)) == 1
}

// hashed reports whether a secret in a configuration is a bcrypt hash.
func hashed(secret string) bool { return strings.HasPrefix(secret, "$2") && len(secret) == 60 }

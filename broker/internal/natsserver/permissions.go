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

// Some subjects are the nodes' own: only they publish the feed, and only they
// answer requests. NATS enforces it by permissions, so every user of the node's
// account gets them, whether the configuration says so or not: see
// docs/adr/0021. The node itself connects as a user of its own without them, and
// the application that embeds it as another user with them.

// ServiceName is the name of the nodes among NATS services.
const ServiceName = "cantus"

// nodePublishes are the subjects that only nodes publish.
func nodePublishes(names subjects.Names) []string {
	return []string{
		names.Prefix + ".feed.>", names.Prefix + ".packed.>", names.Prefix + ".advisory.>",
		names.Admin("hello"), names.Admin("join"), names.Admin("node", "*", "member"),
		names.Admin("pace"), names.Admin("pace", ">"),
		"$SYS.REQ.>", // the server answers wherever it is asked to, the nodes' subjects included
	}
}

// nodeSubscribes are the subjects that only nodes subscribe to.
func nodeSubscribes(names subjects.Names) []string {
	return []string{
		names.Prefix + ".append.>", names.Prefix + ".batch.>", names.Prefix + ".read.>", names.Prefix + ".replica.>",
		names.Prefix + ".get.>", names.Prefix + ".info", names.Prefix + ".info.>", names.Prefix + ".cursor.>",
		names.Prefix + ".admin.>", "$SRV.*." + ServiceName, "$SRV.*." + ServiceName + ".>",
	}
}

// ForbiddenReplies returns a function that reports whether a node must not answer
// to a subject. The node may publish anywhere, and answers hold what clients
// stored: whoever may ask could have it append, feed or administer in its own name.
// What a JetStream consumer delivers is to be acknowledged to the server, where
// acks are allowed: no answer to an append is one.
func ForbiddenReplies(names subjects.Names, acks bool) func(reply string) bool {
	own := []string{
		names.Prefix + ".append.", names.Prefix + ".batch.", names.Prefix + ".read.", names.Prefix + ".replica.",
		names.Prefix + ".get.", names.Prefix + ".info", names.Prefix + ".cursor.", names.Prefix + ".feed.",
		names.Prefix + ".packed.", names.Prefix + ".advisory.", names.Prefix + ".admin.",
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

// access makes the node and its application users of the NATS server, and keeps
// every other user off the nodes' subjects.
type access struct {
	names   subjects.Names
	account string // that the nodes' subjects live in

	// The same for every configuration, so that connections survive a reload.
	nodeKey, appKey     nkeys.KeyPair
	nodeToken, appToken string
}

// rights are what access has made of a configuration.
type rights struct {
	how       admission
	node, app natslink.User // of the node, and of the application that it is embedded in
	token     string        // that admits clients; may be a bcrypt hash
	digest    string        // of what the configuration says, with the files that it includes
	gaps      []string      // whom the node can't keep off its subjects
	mute      bool          // leaf nodes may come, and none can send requests
	others    []string      // the accounts that have users, where the node's, the global one, has none
}

// admission is how a configuration tells clients from others. A running server
// can't change it.
type admission string

const (
	anybody   admission = "no users"
	byToken   admission = "a token"
	byUsers   admission = "users"
	elsewhere admission = "operators and JWTs"
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

// apply adds the node's users and the permissions to a configuration as it was
// read.
func (a *access) apply(opts *server.Options, o Options) (r rights, err error) {
	r = rights{how: admissionOf(opts, o), node: natslink.User{Token: a.nodeToken}, app: natslink.User{Token: a.appToken}, token: opts.Authorization, digest: opts.ConfigDigest()}
	r.gaps = gapsOf(opts, r.how)
	switch {
	case r.how == elsewhere && o.Credentials == "":
		return r, errors.New("the NATS configuration uses operators and JWTs: " +
			"give the node a user of its own with a credentials file")
	case r.how == elsewhere:
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
		r.others = a.otherAccounts(opts)
		err := a.applyUsers(opts)
		r.mute = a.mutesLeaves(opts)
		return r, err
	case r.how == anybody: // so that the server doesn't tell clients that they need a name
		_, app := a.users(opts)
		opts.Nkeys, opts.NoAuthUser = []*server.NkeyUser{app}, app.Nkey
		opts.AuthTimeout = cmp.Or(opts.AuthTimeout, anybodyTimeout.Seconds())
	}
	return r, nil
}

// anybodyTimeout is how long a client may take to introduce itself where it needs
// no name: on a busy machine that may be long.
const anybodyTimeout = time.Minute

func admissionOf(opts *server.Options, o Options) admission {
	switch {
	case o.Credentials != "" || len(opts.TrustedOperators) > 0 || len(opts.TrustedKeys) > 0:
		return elsewhere
	case len(opts.Users) > 0 || len(opts.Nkeys) > 0 || opts.Username != "" || opts.AuthCallout != nil,
		opts.ProxyRequired || opts.Proxies != nil:
		return byUsers
	case opts.Authorization != "":
		return byToken
	}
	return anybody
}

// gapsOf names the connections that can use the nodes' own subjects although they
// belong to no node, because the server applies no user's permissions to them.
func gapsOf(opts *server.Options, how admission) (gaps []string) {
	if how == elsewhere {
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

// mutesLeaves reports whether leaf nodes can connect to the node's account, but only
// as a user that cannot send requests: see restrict.
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

// in reports whether account is the node's. Users without one belong to the
// global account.
func (a *access) in(account *server.Account) bool {
	name := server.DEFAULT_GLOBAL_ACCOUNT
	if account != nil {
		name = account.GetName()
	}
	return a.account == name
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

// door admits clients where there are no users: the server itself knows no
// permissions then.
type door struct {
	nats         *Server
	client, leaf *server.Permissions
}

func newDoor(s *Server, a *access) *door {
	return &door{nats: s, client: a.restrict(nil, false), leaf: a.restrict(nil, true)}
}

// Check implements server.Authentication.
func (d *door) Check(c server.ClientAuthentication) bool {
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

// sameSecret compares a secret of a configuration with the one that a client gave.
func sameSecret(configured, given string) bool {
	if hashed(configured) {
		return bcrypt.CompareHashAndPassword([]byte(configured), []byte(given)) == nil
	}
	return subtle.ConstantTimeCompare([]byte(configured), []byte(given)) == 1
}

// hashed reports whether the configuration gives a bcrypt hash of a secret.
func hashed(secret string) bool { return strings.HasPrefix(secret, "$2") && len(secret) == 60 }

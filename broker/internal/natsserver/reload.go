package natsserver

import (
	"crypto/tls"
	"fmt"
	"slices"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Reload loads a new configuration. It passes the TLS configuration of the
// routes to setTLS. Existing connections continue, except those that the
// configuration does not allow. After an error, nothing has changed.
func (s *Server) Reload(o Options, partitions int, setTLS func(*tls.Config) (restore func(), err error)) (err error) {
	before, shown := s.open.Load(), s.certificates.Load()
	defer func() {
		if err != nil {
			s.open.Store(before)
			s.certificates.Store(shown)
		}
	}()
	opts, rights, err := s.prepare(o, s.Name())
	if err != nil {
		return err
	}
	if how := s.rights.Load().how; rights.how != how && (how != byNothing || rights.how != byToken) {
		return fmt.Errorf("the NATS configuration %s changes from %s to %s: that takes a restart", o.ConfigFile, how, rights.how)
	}
	keyed := s.keyed.all()
	keyed[s.names] = partitions
	if err := prepareAccount(opts, o, keyed); err != nil {
		return err
	}
	restore, err := setTLS(opts.Cluster.TLSConfig)
	if err != nil {
		return err
	}
	// ReloadOptions authenticates the existing connections again, so it needs
	// the new rights.
	old := s.rights.Swap(&rights)
	if err := s.ReloadOptions(opts); err != nil {
		s.rights.Store(old)
		restore()
		return fmt.Errorf("NATS configuration %s: %w", o.ConfigFile, err)
	}
	if err := s.removeMappings(opts); err != nil {
		return err
	}
	s.setLimits(opts)
	s.logGaps()
	s.configured.Store(o.ConfigFile != "")
	if !slices.EqualFunc(*shown, *s.certificates.Load(), Certificate.same) {
		s.certificateChanges.Add(1)
	}
	select {
	case s.reloaded <- struct{}{}:
	default: // the receiver has not handled an earlier reload yet
	}
	return nil
}

// prepareAccount returns an error if the configuration lacks the node's
// account. Otherwise it maps appends by key in that account.
func prepareAccount(opts *server.Options, o Options, keyed map[subjects.Names]int) error {
	name := o.Account
	if name == "" {
		name = server.DEFAULT_GLOBAL_ACCOUNT
	}
	for _, a := range opts.Accounts {
		if a.GetName() == name {
			for names, partitions := range keyed {
				if err := mapKeys(a, names, partitions); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if o.Account != "" && len(opts.TrustedOperators) == 0 && len(opts.TrustedKeys) == 0 {
		return fmt.Errorf("the NATS configuration %s no longer has the account %q, which the node's subjects are in", o.ConfigFile, o.Account)
	}
	return nil
}

// removeMappings removes the subject mappings of the global account, unless the
// options define that account: a reload keeps the old mappings of an account
// that the options do not mention.
func (s *Server) removeMappings(opts *server.Options) error {
	named := func(a *server.Account) bool { return a.GetName() == server.DEFAULT_GLOBAL_ACCOUNT }
	if slices.ContainsFunc(opts.Accounts, named) {
		return nil
	}
	account, err := s.LookupAccount(server.DEFAULT_GLOBAL_ACCOUNT)
	if err != nil {
		return fmt.Errorf("account %s: %w", server.DEFAULT_GLOBAL_ACCOUNT, err)
	}
	z, err := s.Accountz(&server.AccountzOptions{Account: server.DEFAULT_GLOBAL_ACCOUNT})
	if err != nil || z.Account == nil {
		return fmt.Errorf("account %s: %w", server.DEFAULT_GLOBAL_ACCOUNT, err)
	}
	for source := range z.Account.Mappings {
		if !s.keyed.has(source) {
			account.RemoveMapping(source)
		}
	}
	return nil
}

// CurrentUser is an option of nats.go. It makes a connection use the node's
// credentials at the time when it connects.
func (s *Server) CurrentUser() nats.Option {
	return func(o *nats.Options) error {
		for _, option := range s.rights.Load().node.Options() {
			if err := option(o); err != nil {
				return err
			}
		}
		return nil
	}
}

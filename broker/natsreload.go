package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// Reload takes from opts what may change while the node runs: NATSConfig, with the
// certificates that it names, Credentials, QueueBytes, MinFreeBytes and CatchUpRate. It
// does not look at the rest. Connections survive, except those that the new NATS
// configuration does not allow. Certificates are used for connections made from
// then on: those of clients, of routes and of replication.
//
// An error says what can't be reloaded; nothing has changed then.
func (n *Node) Reload(opts Options) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	next := n.opts
	next.NATSConfig, next.Credentials = opts.NATSConfig, opts.Credentials
	next.QueueBytes, next.MinFreeBytes, next.CatchUpRate = opts.QueueBytes, opts.MinFreeBytes, opts.CatchUpRate
	next, err := next.withDefaults()
	if err != nil {
		return err
	}
	if n.unready() == "stopping" || n.Err() != nil {
		return errors.New("broker: the node is stopping")
	}
	if err := n.reloadNATS(next); err != nil {
		return err
	}
	n.limits.reserve.Store(next.MinFreeBytes)
	n.limits.queueBytes.Store(int64(next.QueueBytes))
	if n.network != nil {
		n.network.SetCatchUpRate(next.CatchUpRate)
	}
	n.mu.Lock()
	slots := n.slots
	n.mu.Unlock()
	for _, s := range slots {
		if p := s.current(); p != nil { // one that is opened now takes it from limits
			p.queue.resize(next.QueueBytes)
			p.cursors.resize(next.QueueBytes)
		}
	}
	n.checkSpace()
	return nil
}

// NATSConfigDigest returns a digest of what the NATS configuration says, with the
// files that it includes, and without those that it only names, such as
// certificates; "" without a configuration.
func (n *Node) NATSConfigDigest() string { return n.nats.rights.Load().digest }

// reloadNATS gives the server its new configuration, and replication its TLS.
func (n *Node) reloadNATS(o Options) (err error) {
	s := n.nats
	was := s.doors.Load()
	defer func() {
		if err != nil {
			s.doors.Store(was)
		}
	}()
	opts, rights, err := s.prepare(o, s.Name())
	if err != nil {
		return err
	}
	if was := s.rights.Load().how; rights.how != was && (was != anybody || rights.how != byToken) {
		return fmt.Errorf("the NATS configuration %s changes from %s to %s: that takes a restart", o.NATSConfig, was, rights.how)
	}
	if err := prepareAccount(opts, o, n.names, len(n.slots)); err != nil {
		return err
	}
	restore := func() {}
	if n.network != nil {
		if restore, err = n.network.SetTLS(opts.Cluster.TLSConfig); err != nil {
			return err
		}
	}
	// The server asks again for everybody that is connected.
	old := s.rights.Swap(&rights)
	if err := s.ReloadOptions(opts); err != nil {
		s.rights.Store(old)
		restore()
		return fmt.Errorf("NATS configuration %s: %w", o.NATSConfig, err)
	}
	if err := s.removeMappings(opts, n.names); err != nil {
		return err
	}
	before := s.maxTransaction()
	s.setLimits(opts)
	if now := s.maxTransaction(); now < before {
		n.log.Warn("max_payload was lowered: stored transactions that are larger can't be read, and the node is not ready if there are any",
			"largest_transaction", now, "before", before)
	}
	s.sayGaps(n.log)
	s.configured.Store(o.NATSConfig != "")
	select {
	case s.reloaded <- struct{}{}:
	default: // the watch is about to look
	}
	return nil
}

// prepareAccount sees to it that the account is still there, and maps appends by
// key in it.
func prepareAccount(opts *server.Options, o Options, names subjects.Names, partitions int) error {
	name := o.Account
	if name == "" {
		name = server.DEFAULT_GLOBAL_ACCOUNT
	}
	for _, a := range opts.Accounts {
		if a.GetName() == name {
			return mapKeys(a, names, partitions)
		}
	}
	if o.Account != "" && len(opts.TrustedOperators) == 0 && len(opts.TrustedKeys) == 0 {
		return fmt.Errorf("the NATS configuration %s has no account %q any more, which the node's subjects live in", o.NATSConfig, o.Account)
	}
	return nil
}

// removeMappings removes from the global account the subject mappings that the options
// have no more. A server that is reloaded keeps them if the options do not name that
// account at all.
func (s *natsServer) removeMappings(opts *server.Options, names subjects.Names) error {
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
		if source != names.AppendKey("*") {
			account.RemoveMapping(source)
		}
	}
	return nil
}

// openControl makes the connection over which the node asks, and hears whether it
// is heard itself.
func (n *Node) openControl() error {
	nc, err := nats.Connect("", nats.InProcessServer(n.nats), nats.Name("cantus control"), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.IgnoreAuthErrorAbort(), n.nats.currentUser())
	if err != nil {
		return fmt.Errorf("connect to the node's own NATS server: %w", err)
	}
	n.mu.Lock()
	n.control = nc
	n.mu.Unlock()
	return nil
}

// currentUser has a connection use the credentials that the node has when it
// connects.
func (s *natsServer) currentUser() nats.Option {
	return func(o *nats.Options) error {
		for _, option := range s.rights.Load().node.Options() {
			if err := option(o); err != nil {
				return err
			}
		}
		return nil
	}
}

// natsWatch is how often the node looks whether its NATS server lets it serve:
// accounts may change from outside. Without a configuration file there is no way to
// change them, and natsRest is enough.
const (
	natsWatch = time.Second
	natsRest  = 10 * time.Second
)

// watchNATS keeps checked up to date.
func (n *Node) watchNATS(ctx context.Context) {
	for {
		err := n.checkNATS(ctx)
		if ctx.Err() != nil {
			return
		}
		last, now := n.natsCheck(), natsCheck{err}
		n.checked.Store(&now)
		switch {
		case err == nil && last.err != nil:
			n.log.Info("the NATS server lets the node serve again")
		case err != nil && last.String() != now.String():
			n.log.Error("the NATS server does not let the node serve", "err", err)
		}
		again := natsRest
		if err != nil || n.nats.configured.Load() {
			again = natsWatch
		}
		select {
		case <-ctx.Done():
			return
		case <-n.nats.reloaded:
		case <-time.After(again):
		}
	}
}

// natsCheck is what the newest look has shown.
type natsCheck struct{ err error }

func (c natsCheck) String() string { return fmt.Sprint(c.err) }

func (n *Node) natsCheck() natsCheck {
	if c := n.checked.Load(); c != nil {
		return *c
	}
	return natsCheck{}
}

// shadowedError says which subject mapping takes requests away from the node.
type shadowedError string

func (e shadowedError) Error() string { return string(e) }

// checkNATS returns what keeps requests from the node: mappings that lead them
// elsewhere, or anything that keeps it from hearing its own.
func (n *Node) checkNATS(ctx context.Context) error {
	if err := n.checkMappings(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, natslink.AuditTimeout)
	defer cancel()
	if err := n.reads.Flush(ctx); err != nil {
		return err
	}
	subject := fmt.Sprintf("%s.%s.%s.%s", micro.APIPrefix, micro.PingVerb, serviceName, n.serviceID)
	if _, err := n.control.RequestWithContext(ctx, subject, nil); err != nil {
		return fmt.Errorf("the node does not hear its own requests: %w", err)
	}
	return nil
}

// checkMappings sees to it that appends by key are mapped, and no other subject
// of the node's is: an account that is replaced loses the node's own mapping.
func (n *Node) checkMappings() error {
	partitions := n.store.Identity().Partitions
	what, keys, err := n.nats.shadowed(n.names, partitions)
	if err != nil {
		return err
	}
	if !keys {
		n.log.Warn("appends by key are mapped again")
		if err := mapKeys(n.nats.account, n.names, partitions); err != nil {
			return err
		}
	}
	if what != "" {
		return shadowedError(what)
	}
	return nil
}

// natsTrouble says what keeps the node from serving over its NATS server, "" if
// nothing does.
func (n *Node) natsTrouble() string {
	for _, l := range []*natslink.Link{n.appends, n.reads, n.feeds} {
		if why := l.Trouble(); why != "" {
			return why
		}
	}
	if err := n.natsCheck().err; err != nil {
		return err.Error()
	}
	return ""
}

// refusal is what an operator has to change before the node can serve.
func (n *Node) refusal() error {
	for _, l := range []*natslink.Link{n.appends, n.reads} {
		if err := l.Refusal(); err != nil {
			return err
		}
	}
	for _, s := range n.slots {
		if p := s.current(); p != nil {
			if refused := p.refused.Load(); refused != nil {
				return *refused
			}
		}
	}
	return nil
}

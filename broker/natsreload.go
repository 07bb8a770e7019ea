package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
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
func (n *Node) NATSConfigDigest() string { return n.nats.ConfigDigest() }

// reloadNATS passes the server its new configuration, and replication its TLS.
func (n *Node) reloadNATS(o Options) error {
	before := maxTransaction(n.nats.MaxPayload())
	setTLS := func(*tls.Config) (restore func(), err error) { return func() {}, nil }
	if n.network != nil {
		setTLS = n.network.SetTLS
	}
	if err := n.nats.Reload(o.natsServer(), len(n.slots), setTLS); err != nil {
		return err
	}
	if now := maxTransaction(n.nats.MaxPayload()); now < before {
		n.log.Warn("max_payload was lowered: stored transactions that are larger can't be read, and the node is not ready if there are any",
			"largest_transaction", now, "before", before)
	}
	return nil
}

// openControl makes the connection over which the node asks, and hears whether it
// is heard itself.
func (n *Node) openControl() error {
	nc, err := nats.Connect("", nats.InProcessServer(n.nats), nats.Name("cantus control"), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.IgnoreAuthErrorAbort(), n.nats.CurrentUser())
	if err != nil {
		return fmt.Errorf("connect to the node's own NATS server: %w", err)
	}
	n.mu.Lock()
	n.control = nc
	n.mu.Unlock()
	return nil
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
		if err != nil || n.nats.Configured() {
			again = natsWatch
		}
		select {
		case <-ctx.Done():
			return
		case <-n.nats.Reloaded():
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
	subject := fmt.Sprintf("%s.%s.%s.%s", micro.APIPrefix, micro.PingVerb, natsserver.ServiceName, n.serviceID)
	if _, err := n.control.RequestWithContext(ctx, subject, nil); err != nil {
		return fmt.Errorf("the node does not hear its own requests: %w", err)
	}
	return nil
}

// checkMappings sees to it that appends by key are mapped, and no other subject
// of the node's is: an account that is replaced loses the node's own mapping.
func (n *Node) checkMappings() error {
	partitions := n.store.Identity().Partitions
	what, keys, err := n.nats.Shadowed(partitions)
	if err != nil {
		return err
	}
	if !keys {
		n.log.Warn("appends by key are mapped again")
		if err := n.nats.MapKeys(partitions); err != nil {
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

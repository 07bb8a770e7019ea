package broker

import (
	"crypto/tls"
	"errors"
	"time"
)

// Reload takes from opts what may change while the node runs: NATSConfig, with
// the certificates that it names, Credentials, QueueBytes, MinFreeBytes and
// CatchUpRate. It does not look at the rest. Connections survive, except those
// that the new NATS configuration does not allow. Certificates are used for
// connections made from then on: those of clients, of routes and of
// replication.
//
// An error says what can't be reloaded; nothing has changed then.
func (n *Node) Reload(opts Options) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	next := n.identity.opts
	next.NATSConfig, next.Credentials = opts.NATSConfig, opts.Credentials
	next.QueueBytes, next.MinFreeBytes, next.CatchUpRate = opts.QueueBytes, opts.MinFreeBytes, opts.CatchUpRate
	next, err := next.withDefaults()
	if err != nil {
		return err
	}
	if n.identity.stopping.Load() || n.Err() != nil {
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
	for r := range n.replicas.open() { // one that is opened now takes it from limits
		r.queue.resize(next.QueueBytes)
		r.logChecker.queue.resize(next.QueueBytes)
		r.cursors.queue.resize(next.QueueBytes)
	}
	n.space.check()
	return nil
}

// NATSConfigDigest returns a digest of what the NATS configuration says, with
// the files that it includes, and without those that it only names, such as
// certificates; "" without a configuration.
func (n *Node) NATSConfigDigest() string { return n.nats.ConfigDigest() }

// CertificateChanges returns how many calls of [Node.Reload] have brought other
// certificates to a port, or other authorities that it trusts.
func (n *Node) CertificateChanges() int { return n.nats.CertificateChanges() }

// reloadNATS passes the server its new configuration, and replication its TLS.
func (n *Node) reloadNATS(o Options) error {
	before := maxTransaction(n.nats.MaxPayload())
	setTLS := func(*tls.Config) (restore func(), err error) { return func() {}, nil }
	if n.network != nil {
		setTLS = n.network.SetTLS
	}
	if err := n.nats.Reload(o.natsServer(), n.Partitions(), setTLS); err != nil {
		return err
	}
	n.warnOfExpired(time.Now())
	if now := maxTransaction(n.nats.MaxPayload()); now < before {
		n.identity.log.Warn("max_payload was lowered: stored transactions that are larger can't be read, and the node is not ready if there are any",
			"largest_transaction", now, "before", before)
	}
	return nil
}

// warnOfExpired logs which ports show a certificate that has expired: the
// server serves it, and clients and other nodes refuse it.
func (n *Node) warnOfExpired(now time.Time) {
	for _, c := range n.nats.Certificates() {
		if !c.Expires.After(now) {
			n.identity.log.Warn("a certificate has expired: others refuse connections to the port; put a new one in its files, and send SIGHUP",
				"port", c.Port, "expired", c.Expires.UTC().Format(time.RFC3339))
		}
	}
}

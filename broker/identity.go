package broker

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// identity is what this node is to the other nodes: its name, its data
// directory, and the cluster's secret, with which it signs its messages.
type identity struct {
	opts     Options
	names    subjects.Names
	log      *slog.Logger
	instance string // new at each start
	started  time.Time
	raftAddr string // address that other nodes dial, "" on a standalone node
	stopping atomic.Bool
	number   atomic.Uint64 // of the newest envelope

	rejected     loglimit.Interval
	rejectedSeen *prometheus.CounterVec // messages that were rejected

	// mu guards the fields below. Messages of other nodes are handled before
	// the data directory is open.
	mu      sync.Mutex
	nodeID  string            // of the data directory
	planned wal.Identity      // what the directory is to belong to
	founded *wal.Identity     // what the directory belongs to, nil until it is open
	private *ecdh.PrivateKey  // of a node that belongs to no cluster yet: the secret is wrapped for it
	secret  wal.Secret        // the cluster's, zero until the node has it
	wrapped map[string][]byte // by founder: the secret, wrapped
}

func newIdentity(o Options, rejected *prometheus.CounterVec) *identity {
	return &identity{
		opts: o, names: subjects.Names{Prefix: o.Prefix}, log: o.Logger, instance: newInstance(), started: time.Now().UTC(), rejectedSeen: rejected,
	}
}

// setFounded sets what the open data directory belongs to.
func (i *identity) setFounded(id wal.Identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.founded, i.nodeID = &id, id.NodeID
}

// clusterID returns the id of the cluster that this node belongs to, "" if it
// belongs to none yet.
func (i *identity) clusterID() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.founded == nil {
		return ""
	}
	return i.founded.ID
}

// joinedAt returns a version of the facts that lists this node, 0 for a
// founder.
func (i *identity) joinedAt() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.founded == nil {
		return 0
	}
	return i.founded.JoinedAt
}

// directory returns the id of the data directory.
func (i *identity) directory() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.nodeID
}

// currentSecret returns the cluster's secret, zero if the node has none.
func (i *identity) currentSecret() wal.Secret {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.secret
}

// envelope returns a message to other nodes in its envelope. It is signed if
// the node has the cluster's secret.
func (i *identity) envelope(subject string, body any) []byte {
	i.mu.Lock()
	secret := i.secret
	e := envelope{protocol: i.opts.protocol, name: i.opts.Name, id: i.nodeID, instance: i.instance, body: mustJSON(body)}
	if i.founded != nil {
		e.cluster = i.founded.ID
	}
	i.mu.Unlock()
	e.number = i.number.Add(1)
	if secret.Key == nil {
		return e.encode(nil, subject)
	}
	return e.encode(messageKey(secret.Key, e.cluster), subject)
}

// proved reports whether an envelope is signed with the cluster's secret.
func (i *identity) proved(e envelope, subject string) bool {
	key := i.currentSecret().Key
	return key != nil && e.mac != "-" && e.proves(messageKey(key, e.cluster), subject)
}

// announcement returns the node's announcement without its replicas.
func (i *identity) announcement() announcement {
	a := announcement{
		Name: i.opts.Name, Instance: i.instance, Started: i.started, Version: i.opts.Version, Protocol: i.opts.protocol, Records: i.opts.records,
		Cluster: i.opts.Cluster, Raft: i.raftAddr, Standby: i.opts.Standby, Leaving: i.stopping.Load(), Clock: time.Now(),
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	a.NodeID = i.nodeID
	if i.founded == nil {
		a.Partitions, a.Replicas, a.Bootstrap = i.planned.Partitions, i.planned.Replicas, i.opts.Bootstrap
		a.Keys = i.wrapped
		if i.private != nil {
			a.Key = i.private.PublicKey().Bytes()
		}
		return a
	}
	a.ClusterID, a.Partitions, a.Replicas, a.Founders = i.founded.ID, i.founded.Partitions, i.founded.Replicas, i.founded.Founders
	return a
}

// checkPeer returns an error if another node can't belong to this node's
// cluster.
func (i *identity) checkPeer(a announcement) error {
	self := i.announcement()
	switch {
	case a.Protocol != self.Protocol:
		return fmt.Errorf("%w: node %q (version %s) speaks protocol %d of nodes, this one (version %s) %d", ErrProtocol, a.Name, a.Version, a.Protocol, self.Version, self.Protocol)
	case a.Cluster != self.Cluster:
		return fmt.Errorf("%w: node %q is of cluster %q, this one of %q", ErrIdentity, a.Name, a.Cluster, self.Cluster)
	case a.ClusterID != "" && self.ClusterID != "" && a.ClusterID != self.ClusterID:
		return fmt.Errorf("%w: node %q is of the cluster %q with id %s, this one's data directory belongs to one of that name with id %s", ErrIdentity, a.Name, a.Cluster, a.ClusterID, self.ClusterID)
	case a.Name == self.Name && a.Started.Before(self.Started):
		return fmt.Errorf("%w: another node named %q is running, since %s", ErrNameTaken, a.Name, a.Started.Format(time.RFC3339))
	}
	return nil
}

// noteRejected counts a message between nodes that is rejected, and logs some
// of them. name is the sender's name, according to the message.
func (i *identity) noteRejected(what, name string, err error) {
	i.rejectedSeen.WithLabelValues(what).Inc()
	ok, withheld := i.rejected.Allow(time.Now())
	if !ok {
		return
	}
	args := []any{"what", what, "not_logged_before", withheld}
	if name != "" {
		args = append(args, "says_it_is", fmt.Sprintf("%.64q", name))
	}
	if err != nil {
		args = append(args, "err", err)
	}
	i.log.Warn("a message between nodes is rejected: its sender is not a node, or has no cluster secret, or another one", args...)
}

// setPlanned sets what the data directory is to belong to.
func (i *identity) setPlanned(id wal.Identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.planned = id
}

// derive returns a key of 32 bytes for a purpose, which only the members of
// this cluster can derive. The data directory must be open.
func (i *identity) derive(purpose string) []byte {
	return deriveKey(i.currentSecret().Key, i.clusterID(), purpose)
}

// queueGroup returns the queue group of the nodes that answer requests. No
// client knows its name, so that none can join it and take requests: see
// docs/adr/0021.
func (i *identity) queueGroup() string {
	return "cantus-" + hex.EncodeToString(i.derive("queue group")[:16])
}

// feedKey returns the key that signs the packed feed. It is the same on each of
// the cluster's nodes: see docs/adr/0022.
func (i *identity) feedKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(i.derive("packed feed"))
}

// setSecret sets the cluster's secret.
func (i *identity) setSecret(s wal.Secret) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.secret = s
}

// openSecret reads the secret of an open data directory. If it has none,
// openSecret writes one: that of the token, or a new one if there are no other
// founders.
func (i *identity) openSecret(dir string) error {
	have, err := wal.ReadSecret(dir)
	if err == nil {
		i.setSecret(have)
		return i.checkToken(dir)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	founders := i.founded.Founders
	_, founded := founders[i.opts.Name]
	switch {
	case i.opts.ClusterSecret != "":
		have = tokenSecret(i.opts.ClusterSecret)
	case len(founders) == 0 || len(founders) == 1 && founded:
		have = newSecret()
	default:
		return fmt.Errorf("%w: %s belongs to a cluster and holds no cluster secret (cluster.key): "+
			"give the same token to every node, with --cluster-secret-file", ErrIdentity, dir)
	}
	return i.keepSecret(dir, have)
}

// keepSecret writes a secret to the data directory and sets it.
func (i *identity) keepSecret(dir string, s wal.Secret) error {
	if err := wal.WriteSecret(dir, s); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	i.setSecret(s)
	return nil
}

// checkToken returns an error if there is a token for another secret than the
// directory's.
func (i *identity) checkToken(dir string) error {
	if i.opts.ClusterSecret == "" || bytes.Equal(tokenSecret(i.opts.ClusterSecret).Key, i.secret.Key) {
		return nil
	}
	return fmt.Errorf("%w: %s holds another cluster secret than the token that was given: give the cluster's own token; "+
		"to change it, stop every node, remove cluster.key from each data directory, and start all with the new one", ErrIdentity, dir)
}

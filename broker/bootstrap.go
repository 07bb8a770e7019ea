package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// bootstrap brings a new data directory into a cluster. If the options name the
// founders, its node founds the cluster with them; otherwise it waits until an
// operator adds it to one. It runs on the goroutine that opens the node, before
// there is a store.
type bootstrap struct {
	*identity
	peers    *peers
	request  func(ctx context.Context, subject string, body any) ([]byte, error) // to other nodes
	announce func()                                                              // has the announcement sent now
	stopped  <-chan struct{}
	failed   func() error

	fresh      bool              // the data directory belonged to nothing when the node started
	dir        string            // the data directory
	wrappedFor map[string]string // founders that the secret was wrapped for, and their keys
}

// identify returns what dir belongs to; known is false if other nodes have to
// agree on that first.
func (b *bootstrap) identify(dir string) (id wal.Identity, known bool, err error) {
	id = wal.Identity{Cluster: b.opts.Cluster, Node: b.opts.Name, Partitions: b.opts.Partitions}
	have, err := wal.ReadIdentity(dir)
	switch {
	case err == nil:
		id.Partitions = have.Partitions
		if b.opts.Partitions != 0 {
			id.Partitions = b.opts.Partitions // for the store to compare
		}
		return id, true, b.checkBootstrap(dir, have)
	}
	if id.Partitions == 0 {
		id.Partitions = defaultPartitions
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return id, true, nil // opening the store returns a better error
	}
	b.fresh = true
	id.Replicas = b.opts.Replicas
	if !b.opts.clustered() || len(b.opts.Bootstrap) == 1 {
		return id, true, nil
	}
	nodeID, err := wal.Nominate(dir)
	if err != nil {
		return id, false, err
	}
	b.mu.Lock()
	b.nodeID = nodeID
	b.mu.Unlock()
	return id, false, b.nominate(dir)
}

// checkBootstrap returns an error if the options name other founders than the
// directory.
func (b *bootstrap) checkBootstrap(dir string, have wal.Identity) error {
	was := slices.Sorted(maps.Keys(have.Founders))
	now := slices.Sorted(slices.Values(b.opts.Bootstrap))
	if len(now) > 0 && !slices.Equal(was, now) {
		return fmt.Errorf("%w: %s belongs to a cluster that was founded by %s, not by %s: start it without bootstrap",
			ErrIdentity, dir, strings.Join(was, ","), strings.Join(now, ","))
	}
	return nil
}

// run waits until the founders agree, or until this node is added to a cluster.
// It returns the identity for the data directory.
func (b *bootstrap) run(ctx context.Context) (wal.Identity, error) {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	for logged := ""; ; {
		heard := b.peers.next()
		id, waiting, err := b.try(ctx)
		if err != nil || waiting == "" {
			return id, err
		}
		if waiting != logged {
			b.log.Info("waiting", "for", waiting)
			logged = waiting
		}
		select {
		case <-heard:
		case <-tick.C:
		case <-b.stopped:
			return id, b.failed()
		case <-ctx.Done():
			return id, fmt.Errorf("waiting for %s: %w", waiting, ctx.Err())
		}
	}
}

// try makes one attempt. It returns an identity, or what it waits for.
func (b *bootstrap) try(ctx context.Context) (id wal.Identity, waiting string, err error) {
	if len(b.opts.Bootstrap) == 0 {
		return b.askToJoin(ctx)
	}
	founders, waiting, err := b.founders(time.Now())
	if err != nil || waiting != "" {
		return id, waiting, err
	}
	if err := b.exchangeSecret(founders); err != nil {
		return id, "", err
	}
	others := map[string]announcement{}
	for name, q := range founders {
		others[name] = q.announcement
	}
	id, waiting, err = newCluster(b.identity.announcement(), b.planned, others)
	if err != nil || waiting != "" {
		return id, waiting, err
	}
	return id, unproved(id.ID, founders), nil
}

// founders returns the other founders that were heard lately, by name.
func (b *bootstrap) founders(now time.Time) (all map[string]candidate, waiting string, err error) {
	all = map[string]candidate{}
	for _, q := range b.peers.candidates.alive(now) {
		other, twice := all[q.Name]
		switch {
		case q.Name == b.opts.Name: // another node with this node's name does not count
		case !slices.Contains(b.opts.Bootstrap, q.Name):
			if q.ClusterID != "" && q.Ready {
				return nil, "", fmt.Errorf("%w: cluster %q exists already, founded by %s: start this node without bootstrap and add it",
					ErrIdentity, q.Cluster, strings.Join(slices.Sorted(maps.Keys(q.Founders)), ","))
			}
		case !twice || q.proved && !other.proved:
			all[q.Name] = q
		case q.proved == other.proved:
			waiting = fmt.Sprintf("one of the two nodes that call themselves %s to be stopped", q.Name)
		}
	}
	return all, waiting, nil
}

// unproved returns which founders have not proved yet that they have the
// secret, "" if all have. One that has founded the cluster is enough.
func unproved(cluster string, founders map[string]candidate) (waiting string) {
	var without []string
	for _, name := range slices.Sorted(maps.Keys(founders)) {
		switch q := founders[name]; {
		case q.ClusterID == cluster && q.proved:
			return ""
		case !q.proved:
			without = append(without, name)
		}
	}
	if len(without) == 0 {
		return ""
	}
	return "founders " + strings.Join(without, ",") + " to have the cluster's secret"
}

// newCluster returns the identity of the cluster that this node and the other
// founders found. All must be there and be configured alike; or one of them has
// founded the cluster already, with this very node as a founder. Only when all
// are heard does a node know whether it is itself configured wrongly. If it
// failed at the first one that differs, it would do so even if all the others
// agree with it.
func newCluster(self announcement, id wal.Identity, others map[string]announcement) (_ wal.Identity, waiting string, err error) {
	var missing, differ []string
	agree := 1
	for _, name := range self.Bootstrap {
		a, heard := others[name]
		switch {
		case name == self.Name:
		case !heard:
			missing = append(missing, name)
		case a.ClusterID != "" && a.Founders[self.Name] == self.NodeID:
			id.ID, id.Founders, id.Partitions, id.Replicas = a.ClusterID, a.Founders, a.Partitions, a.Replicas
			return id, "", nil
		case a.ClusterID != "" && a.Founders[self.Name] != "":
			return id, "", fmt.Errorf("%w: this node can't found the cluster: %s", ErrIdentity, difference(self, a))
		default:
			if d := difference(self, a); d != "" {
				differ = append(differ, d)
			} else {
				agree++
			}
		}
	}
	switch {
	case len(missing) == 0 && len(differ) >= agree:
		return id, "", fmt.Errorf("%w: this node can't found the cluster: %s", ErrIdentity, strings.Join(differ, "; "))
	case len(differ) > 0:
		return id, "founders that differ to be corrected: " + strings.Join(differ, "; "), nil
	case len(missing) > 0:
		return id, "founders " + strings.Join(missing, ","), nil
	}
	id.Founders = map[string]string{self.Name: self.NodeID}
	for name, a := range others {
		id.Founders[name] = a.NodeID
	}
	id.ID = clusterID(id.Founders)
	return id, "", nil
}

// difference returns how another founder's configuration differs from this
// node's, "" if it does not.
func difference(self, other announcement) string {
	sorted := func(names []string) string { return strings.Join(slices.Sorted(slices.Values(names)), ",") }
	switch {
	case other.ClusterID != "" && other.Founders[self.Name] != "":
		return fmt.Sprintf("%s has founded cluster %q with a node %s whose data directory was another: remove that node and add this one", other.Name, other.Cluster, self.Name)
	case other.ClusterID != "":
		return fmt.Sprintf("%s belongs to a cluster founded by %s", other.Name, strings.Join(slices.Sorted(maps.Keys(other.Founders)), ","))
	case sorted(other.Bootstrap) != sorted(self.Bootstrap):
		return fmt.Sprintf("%s has the founders %s, this node %s", other.Name, sorted(other.Bootstrap), sorted(self.Bootstrap))
	case other.Partitions != self.Partitions:
		return fmt.Sprintf("%s has %s, this node %d", other.Name, count(other.Partitions, "partition"), self.Partitions)
	case other.Replicas != self.Replicas:
		return fmt.Sprintf("%s has %s, this node %d", other.Name, count(other.Replicas, "replica"), self.Replicas)
	}
	return ""
}

// clusterID returns the id of the cluster that some nodes found.
func clusterID(founders map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(founders)) {
		fmt.Fprintf(h, "%s=%s\n", name, founders[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// joinReply is the reply to a node that asks to join.
type joinReply struct {
	Waiting string            `json:"waiting,omitempty"` // for what
	ID      string            `json:"id,omitempty"`
	Parts   int               `json:"partitions,omitempty"`
	Repl    int               `json:"replicas,omitempty"`
	Found   map[string]string `json:"founders,omitempty"`
	Facts   uint64            `json:"facts,omitempty"` // a version that lists the node
	// Wrapped is the cluster's secret, wrapped for a node that showed a key.
	Wrapped []byte          `json:"sealed,omitempty"`
	Error   *subjects.Error `json:"error,omitempty"`
}

// askToJoin asks the cluster whether this node has been added to it.
func (b *bootstrap) askToJoin(ctx context.Context) (id wal.Identity, waiting string, err error) {
	id = b.planned
	if !slices.ContainsFunc(b.peers.candidates.alive(time.Now()), func(q candidate) bool { return q.ClusterID != "" }) {
		return id, fmt.Sprintf("a node of cluster %q to be heard", b.opts.Cluster), nil
	}
	ctx, cancel := context.WithTimeout(ctx, announceInterval)
	defer cancel()
	subject := b.names.Admin("join")
	data, err := b.request(ctx, subject, b.identity.announcement())
	if err != nil {
		return id, fmt.Sprintf("a node of cluster %q to answer", b.opts.Cluster), nil
	}
	e, err := openEnvelope(data)
	if err != nil || b.opts.ClusterSecret != "" && !b.proved(e, answerTo(subject)) {
		return id, fmt.Sprintf("an answer of cluster %q that is signed with its secret", b.opts.Cluster), nil
	}
	if e.protocol != b.opts.protocol {
		return id, "", fmt.Errorf("%w: node %q speaks protocol %d of nodes, this one (version %s) %d", ErrProtocol, e.name, e.protocol, b.opts.Version, b.opts.protocol)
	}
	var r joinReply
	if err := json.Unmarshal(e.body, &r); err != nil {
		return id, fmt.Sprintf("an answer of cluster %q that can be read", b.opts.Cluster), nil
	}
	switch {
	case r.Error != nil:
		return id, "", fmt.Errorf("%w: %s", ErrIdentity, r.Error.Message)
	case r.Waiting != "":
		return id, r.Waiting, nil
	case b.opts.Partitions != 0 && b.opts.Partitions != r.Parts:
		return id, "", fmt.Errorf("%w: the cluster has %s, not %d", ErrIdentity, count(r.Parts, "partition"), b.opts.Partitions)
	}
	if waiting, err := b.openReply(e, r, subject); err != nil || waiting != "" {
		return id, waiting, err
	}
	id.ID, id.Partitions, id.Replicas, id.Founders, id.JoinedAt = r.ID, r.Parts, r.Repl, r.Found, r.Facts
	return id, "", nil
}

// waitingToBeAdded returns what a node that has not been added yet waits for.
func waitingToBeAdded(a announcement) string {
	with := ""
	if len(a.Key) > 0 {
		with = " --key " + fingerprint(a.Key)
	}
	return fmt.Sprintf("an operator to add it: cantus cluster add %s%s", a.Name, with)
}

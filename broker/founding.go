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

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// identify tells whom dir belongs to; known is false if that is yet to be
// agreed on with other nodes.
func (n *Node) identify(dir string) (id wal.Identity, known bool, err error) {
	id = wal.Identity{Cluster: n.opts.Cluster, Node: n.opts.Name, Partitions: n.opts.Partitions}
	have, err := wal.ReadIdentity(dir)
	switch {
	case err == nil:
		id.Partitions = have.Partitions
		if n.opts.Partitions != 0 {
			id.Partitions = n.opts.Partitions // for the store to compare
		}
		return id, true, n.checkBootstrap(dir, have)
	}
	if id.Partitions == 0 {
		id.Partitions = defaultPartitions
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return id, true, nil // the store says better why
	}
	n.fresh = true
	id.Replicas = n.opts.Replicas
	if !n.opts.clustered() || len(n.opts.Bootstrap) == 1 {
		return id, true, nil
	}
	if n.nodeID, err = wal.Nominate(dir); err != nil {
		return id, false, err
	}
	return id, false, n.nominate(dir)
}

// checkBootstrap refuses a founding that is not the one that was.
func (n *Node) checkBootstrap(dir string, have wal.Identity) error {
	was := slices.Sorted(maps.Keys(have.Founders))
	now := slices.Sorted(slices.Values(n.opts.Bootstrap))
	if len(now) > 0 && !slices.Equal(was, now) {
		return fmt.Errorf("%w: %s belongs to a cluster that was founded by %s, not by %s: start it without bootstrap",
			ErrIdentity, dir, strings.Join(was, ","), strings.Join(now, ","))
	}
	return nil
}

// identityHello is what the node says of itself at any time.
func (n *Node) identityHello() hello {
	h := hello{
		Name: n.opts.Name, Instance: n.instance, Started: n.started, Version: n.opts.Version, Protocol: n.opts.protocol,
		Cluster: n.opts.Cluster, NodeID: n.nodeID, Raft: n.raftAddr, Standby: n.opts.Standby, Leaving: n.leaving.Load(),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.store == nil {
		h.Partitions, h.Replicas, h.Bootstrap = n.founding.Partitions, n.founding.Replicas, n.opts.Bootstrap
		h.Keys = n.sealed
		if n.private != nil {
			h.Key = n.private.PublicKey().Bytes()
		}
		return h
	}
	id := n.store.Identity()
	h.NodeID, h.ClusterID, h.Partitions, h.Replicas, h.Founders = id.NodeID, id.ID, id.Partitions, id.Replicas, id.Founders
	return h
}

// agree waits until the founders agree, or until this node was added to a
// cluster, and gives the identity that its data directory will have.
func (n *Node) agree(ctx context.Context) (wal.Identity, error) {
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	for said := ""; ; {
		heard := n.peers.next()
		id, waiting, err := n.tryFounding(ctx)
		if err != nil || waiting == "" {
			return id, err
		}
		if waiting != said {
			n.log.Info("waiting", "for", waiting)
			said = waiting
		}
		select {
		case <-heard:
		case <-tick.C:
		case <-n.stopped:
			return id, n.Err()
		case <-ctx.Done():
			return id, fmt.Errorf("waiting for %s: %w", waiting, ctx.Err())
		}
	}
}

func (n *Node) tryFounding(ctx context.Context) (id wal.Identity, waiting string, err error) {
	if len(n.opts.Bootstrap) == 0 {
		return n.askToJoin(ctx)
	}
	founders, waiting, err := n.founders(time.Now())
	if err != nil || waiting != "" {
		return id, waiting, err
	}
	if err := n.exchangeSecret(founders); err != nil {
		return id, "", err
	}
	others := map[string]hello{}
	for name, q := range founders {
		others[name] = q.hello
	}
	id, waiting, err = found(n.identityHello(), n.founding, others)
	if err != nil || waiting != "" {
		return id, waiting, err
	}
	return id, unproved(id.ID, founders), nil
}

// founders are the other founders that are heard.
func (n *Node) founders(now time.Time) (all map[string]candidate, waiting string, err error) {
	all = map[string]candidate{}
	for _, q := range n.peers.candidates.alive(now) {
		other, twice := all[q.Name]
		switch {
		case q.Name == n.opts.Name: // it is not this node's affair who calls itself so too
		case !slices.Contains(n.opts.Bootstrap, q.Name):
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

// unproved says which founders have not proved yet that they have the secret; one
// that has founded the cluster is enough.
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

// found decides on a founding from what this node and the other founders say.
// All must be there and say the same; or one of them has founded the cluster
// with this very node among the founders. Only when all are heard is it known
// who is wrong: a node that gave up at the first one that differs would do so
// though all the others agree with it.
func found(self hello, id wal.Identity, others map[string]hello) (_ wal.Identity, waiting string, err error) {
	var missing, differ []string
	agree := 1
	for _, name := range self.Bootstrap {
		h, heard := others[name]
		switch {
		case name == self.Name:
		case !heard:
			missing = append(missing, name)
		case h.ClusterID != "" && h.Founders[self.Name] == self.NodeID:
			id.ID, id.Founders, id.Partitions, id.Replicas = h.ClusterID, h.Founders, h.Partitions, h.Replicas
			return id, "", nil
		case h.ClusterID != "" && h.Founders[self.Name] != "":
			return id, "", fmt.Errorf("%w: this node can't found the cluster: %s", ErrIdentity, difference(self, h))
		default:
			if d := difference(self, h); d != "" {
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
		return id, "founders that differ to be mended: " + strings.Join(differ, "; "), nil
	case len(missing) > 0:
		return id, "founders " + strings.Join(missing, ","), nil
	}
	id.Founders = map[string]string{self.Name: self.NodeID}
	for name, h := range others {
		id.Founders[name] = h.NodeID
	}
	id.ID = clusterID(id.Founders)
	return id, "", nil
}

// difference says what another founder says otherwise, "" if nothing.
func difference(self, other hello) string {
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

// clusterID is the same for whoever knows the founders.
func clusterID(founders map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(founders)) {
		fmt.Fprintf(h, "%s=%s\n", name, founders[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// joinReply is what the cluster says to a node that wants to be added.
type joinReply struct {
	Waiting string            `json:"waiting,omitempty"` // for what
	ID      string            `json:"id,omitempty"`
	Parts   int               `json:"partitions,omitempty"`
	Repl    int               `json:"replicas,omitempty"`
	Found   map[string]string `json:"founders,omitempty"`
	Facts   uint64            `json:"facts,omitempty"` // a version that has the node as a member
	// Sealed is the cluster's secret for a node that showed a key.
	Sealed []byte          `json:"sealed,omitempty"`
	Error  *subjects.Error `json:"error,omitempty"`
}

// askToJoin asks the cluster whether this node was added to it.
func (n *Node) askToJoin(ctx context.Context) (id wal.Identity, waiting string, err error) {
	id = n.founding
	if !slices.ContainsFunc(n.peers.candidates.alive(time.Now()), func(q candidate) bool { return q.ClusterID != "" }) {
		return id, fmt.Sprintf("a node of cluster %q to be heard", n.opts.Cluster), nil
	}
	ctx, cancel := context.WithTimeout(ctx, helloInterval)
	defer cancel()
	subject := n.names.Admin("join")
	b, err := n.request(ctx, subject, n.identityHello())
	if err != nil {
		return id, fmt.Sprintf("a node of cluster %q to answer", n.opts.Cluster), nil
	}
	e, err := openEnvelope(b)
	if err != nil || n.opts.ClusterSecret != "" && !n.proved(e, answerTo(subject)) {
		return id, fmt.Sprintf("an answer of cluster %q that is signed with its secret", n.opts.Cluster), nil
	}
	if e.protocol != n.opts.protocol {
		return id, "", fmt.Errorf("%w: node %q speaks protocol %d of nodes, this one (version %s) %d", ErrProtocol, e.name, e.protocol, n.opts.Version, n.opts.protocol)
	}
	var r joinReply
	if err := json.Unmarshal(e.body, &r); err != nil {
		return id, fmt.Sprintf("an answer of cluster %q that can be read", n.opts.Cluster), nil
	}
	switch {
	case r.Error != nil:
		return id, "", fmt.Errorf("%w: %s", ErrIdentity, r.Error.Message)
	case r.Waiting != "":
		return id, r.Waiting, nil
	case n.opts.Partitions != 0 && n.opts.Partitions != r.Parts:
		return id, "", fmt.Errorf("%w: the cluster has %s, not %d", ErrIdentity, count(r.Parts, "partition"), n.opts.Partitions)
	}
	if waiting, err := n.takeSecret(e, r, subject); err != nil || waiting != "" {
		return id, waiting, err
	}
	id.ID, id.Partitions, id.Replicas, id.Founders = r.ID, r.Parts, r.Repl, r.Found
	n.joinedAt = r.Facts
	return id, "", nil
}

// onJoin answers a node that wants to be added. The leader of the facts does.
func (n *Node) onJoin(_ context.Context, m *natslink.Message) (any, error) {
	r, err := n.join(m)
	if err != nil {
		r = joinReply{Error: operationError(err)}
	}
	return n.envelope(answerTo(m.Subject), r), nil
}

func (n *Node) join(m *natslink.Message) (r joinReply, err error) {
	e, err := openEnvelope(m.Payload)
	if err != nil {
		return r, errUnproved
	}
	if e.protocol != n.opts.protocol {
		return r, subjects.Errorf(subjects.BadRequest, "node %q speaks protocol %d of nodes, this cluster %d: use the same minor version", e.name, e.protocol, n.opts.protocol)
	}
	proved := n.proved(e, m.Subject)
	if !proved && len(e.body) > maxUnsigned {
		return r, errUnproved
	}
	h, err := decodeHello(e)
	if err != nil {
		return r, subjects.Errorf(subjects.BadRequest, "body: %s", err)
	}
	n.mu.Lock()
	secret := n.secret
	n.mu.Unlock()
	facts, _ := n.meta.current()
	have, known := facts.Nodes[h.Name]
	id := n.store.Identity()
	switch {
	case !proved && secret.Token:
		return r, subjects.Errorf(subjects.BadRequest, "the nodes of this cluster share a token: start the node with it, by --cluster-secret-file")
	case !known:
		return joinReply{Waiting: waitingToBeAdded(h)}, nil
	case have.ID != h.NodeID:
		return r, subjects.Errorf(subjects.BadRequest,
			"a node %q with another data directory is a member of the cluster: remove it first, or choose another name", h.Name)
	case !proved && (have.Key == "" || have.Key != fingerprint(h.Key)):
		return r, subjects.Errorf(subjects.BadRequest, "node %q was added with another key: remove it first, and add this one", h.Name)
	}
	r = joinReply{ID: id.ID, Parts: id.Partitions, Repl: id.Replicas, Found: id.Founders, Facts: facts.Version}
	if !proved {
		r.Sealed, err = wrapSecret(secret, h.Key, sealContext(id.Cluster, h.Name, h.NodeID))
	}
	return r, err
}

// waitingToBeAdded says what a node waits for that was not added yet.
func waitingToBeAdded(h hello) string {
	with := ""
	if len(h.Key) > 0 {
		with = " --key " + fingerprint(h.Key)
	}
	return fmt.Sprintf("an operator to add it: cantus cluster add %s%s", h.Name, with)
}

// checkPeer tells whether a node that is heard can be one of ours.
func (n *Node) checkPeer(h hello) error {
	self := n.identityHello()
	switch {
	case h.Protocol != self.Protocol:
		return fmt.Errorf("%w: node %q (version %s) speaks protocol %d of nodes, this one (version %s) %d", ErrProtocol, h.Name, h.Version, h.Protocol, self.Version, self.Protocol)
	case h.Cluster != self.Cluster:
		return fmt.Errorf("%w: node %q is of cluster %q, this one of %q", ErrIdentity, h.Name, h.Cluster, self.Cluster)
	case h.ClusterID != "" && self.ClusterID != "" && h.ClusterID != self.ClusterID:
		return fmt.Errorf("%w: node %q is of the cluster %q with id %s, this one's data directory belongs to one of that name with id %s", ErrIdentity, h.Name, h.Cluster, h.ClusterID, self.ClusterID)
	case h.Name == self.Name && h.Started.Before(self.Started):
		return fmt.Errorf("%w: another node named %q is running, since %s", ErrNameTaken, h.Name, h.Started.Format(time.RFC3339))
	}
	return nil
}

// meet deals with a node that can't be one of ours: who is starting gives
// way to who serves.
func (n *Node) meet(h hello, err error) {
	n.mu.Lock()
	serving := n.served
	n.mu.Unlock()
	if !serving && (h.Ready || errors.Is(err, ErrNameTaken)) {
		n.fail(err)
		return
	}
	n.complainOf(h, err)
}

// complainOf says once of a node why it is ignored.
func (n *Node) complainOf(h hello, err error) {
	if n.strangers.First(h.Instance) {
		n.log.Warn("a node that does not belong here is ignored", "node", h.Name, "err", err)
	}
}

package broker

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// gossip exchanges statuses with the other nodes: a goroutine, run, announces
// this node's every announceInterval, and the reading goroutine of the link
// handles theirs.
type gossip struct {
	*identity
	peers      *peers
	send       outbox
	node       gossipNode
	now        chan struct{} // capacity 1: announce at once
	stop       chan struct{} // closed when nothing is announced any more
	warned     loglimit.Once // by instance: nodes that a warning was logged for
	foreigners atomic.Int64  // statuses of another cluster's nodes, counted while starting
}

// gossipNode is what gossip needs of the node.
type gossipNode struct {
	describe    func(*announcement) // adds the node's replicas and whether it is ready
	measure     func(*announcement) // sets how far another node's replicas are behind
	heard       func(announcement)  // handles a member's status
	checkMember func(name, id string) error
	nameTaken   func(announcement) bool // a member with another directory has the name
	isMember    func(name, id string) bool
	routed      func(name, id string) bool // the node's NATS server is connected as a route
	served      func() bool                // this node was ready once

	allowLeading func()
	fail         func(error)
	failed       func() error
}

func newGossip(i *identity, p *peers, node gossipNode) *gossip {
	return &gossip{identity: i, peers: p, node: node, now: make(chan struct{}, 1), stop: make(chan struct{})}
}

// onAnnouncement handles another node's status. A status that is not signed
// with the cluster's secret is used to found and join clusters only.
func (g *gossip) onAnnouncement(m *natslink.Message) {
	e, err := openEnvelope(m.Payload)
	switch {
	case err != nil:
		g.noteRejected("malformed", "", err)
	case e.instance == g.instance:
	case g.proved(e, m.Subject):
		g.onSigned(e)
	default:
		g.onUnsigned(e)
	}
}

// onSigned handles the status of a node that has the cluster's secret.
func (g *gossip) onSigned(e envelope) {
	a, err := decodeAnnouncement(e)
	if err != nil {
		g.noteRejected("malformed", e.name, err)
		return
	}
	own := g.clusterID()
	if e.cluster == "" || own == "" { // one of the two belongs to no cluster yet
		g.onCandidate(a, true)
		return
	}
	fresh, unheard := g.peers.fresh(a, e.number, time.Now())
	if unheard {
		g.announce() // so that the node can list it as heard, which proves that it is not a replay
	}
	if !fresh {
		return
	}
	if err := g.checkPeer(a); err != nil {
		g.reject(a, err)
		return
	}
	if a.Name == g.opts.Name {
		return
	}
	if err := g.node.checkMember(a.Name, a.NodeID); err != nil {
		g.warnOf(a, err)
		return
	}
	g.accept(a, e.number)
	g.node.allowLeading()
}

// accept handles the status of a member.
func (g *gossip) accept(a announcement, number uint64) {
	g.node.measure(&a)
	if g.peers.accept(a, number, time.Now()) {
		g.announce() // it has not heard this node yet
	}
	g.node.heard(a)
}

// onUnsigned handles a status without a valid signature. A node that founds a
// cluster, or waits to be added to one, has no secret to sign with yet.
func (g *gossip) onUnsigned(e envelope) {
	own := g.clusterID()
	secret := g.currentSecret()
	switch {
	case own != "" && e.cluster != "":
		g.noteRejected("signature", e.name, nil)
		if e.cluster != own {
			g.foreign(e)
		}
		return
	case secret.Token || g.opts.ClusterSecret != "" || len(e.body) > maxUnsigned:
		g.noteRejected("signature", e.name, nil)
		return
	}
	a, err := decodeAnnouncement(e)
	if err != nil {
		g.noteRejected("malformed", e.name, err)
		return
	}
	g.onCandidate(a, false)
}

// onCandidate handles the status of a node that belongs to no cluster yet, or
// that this one receives while it belongs to none.
func (g *gossip) onCandidate(a announcement, proved bool) {
	joins := g.clusterID() == "" && len(g.opts.Bootstrap) == 0 // the cluster's reply says what is wrong
	if err := g.checkPeer(a); err != nil && !joins {
		g.warnOf(a, err)
		return
	}
	if g.node.nameTaken(a) {
		g.warnOf(a, fmt.Errorf("%w: it has the name of a member and another data directory", ErrNameTaken))
		return
	}
	if g.peers.candidates.hear(a, proved, time.Now()) {
		g.announce()
	}
	g.peers.wake()
}

// reject ignores a node that can't belong to this cluster. If this node is
// starting and the other one serves, it is this node that does not belong
// there, and it stops.
func (g *gossip) reject(a announcement, err error) {
	serving := g.node.served()
	if !serving && (a.Ready || errors.Is(err, ErrNameTaken)) {
		g.node.fail(err)
		return
	}
	g.warnOf(a, err)
}

// warnOf logs why a node is ignored, once for each of its instances.
func (g *gossip) warnOf(a announcement, err error) {
	if g.warned.First(a.Instance) {
		g.log.Warn("a node that does not belong here is ignored", "node", a.Name, "err", err)
	}
}

// foreign handles a status from another cluster. A node that was started with
// the routes of another cluster must notice that before it answers requests
// there. Anyone can send such a status. So it counts only if the NATS server of
// its node is connected as a route, and the node is not a member here; and
// several are needed.
func (g *gossip) foreign(e envelope) {
	serving := g.node.served()
	if serving || e.id == "" || g.node.isMember(e.name, e.id) || !g.node.routed(e.name, e.id) {
		return
	}
	if g.foreigners.Add(1) < foreignAnnouncements {
		return
	}
	g.node.fail(fmt.Errorf("%w: node %q is of the cluster %q with id %s, this one's data directory belongs to one of that name with id %s",
		ErrIdentity, e.name, g.opts.Cluster, e.cluster, g.clusterID()))
}

// foreignAnnouncements is how many statuses of another cluster end a node that
// is starting.
const foreignAnnouncements = 3

// run announces this node's status every announceInterval, and at once when
// announce is called, until stop is closed.
func (g *gossip) run() {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	for {
		if g.node.failed() == nil { // the others should see a failed node as away
			subject := g.names.Admin("hello")
			g.send.Enqueue(natslink.AppendPub(nil, subject, g.envelope(subject, g.status())))
		}
		select {
		case <-g.stop:
			return
		case <-tick.C:
		case <-g.now:
		}
	}
}

// announce has the status sent at once.
func (g *gossip) announce() {
	select {
	case g.now <- struct{}{}:
	default: // it is about to be sent
	}
}

// status returns this node's status.
func (g *gossip) status() announcement {
	a := g.identity.announcement()
	a.Heard = g.peers.heardNow(time.Now())
	g.node.describe(&a)
	return a
}

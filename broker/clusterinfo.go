package broker

import (
	"crypto/ed25519"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// clusterInfo describes the cluster, as any node sees it.
type clusterInfo struct {
	self, cluster, version string
	id                     string // of the cluster
	namespace              string // that is described, "" for the cluster
	partitions             int
	feedKey                ed25519.PublicKey
	peers                  *peers
	facts                  func() (facts cluster.Facts, changed <-chan struct{})
	ready                  func() bool // this node
	stats                  *serviceStats
	answers                outbox
}

// serve answers a request for the description of the cluster.
func (c *clusterInfo) serve(m *natslink.Message) {
	if m.Reply == "" {
		return
	}
	began := time.Now()
	defer func() { c.stats.add("info", 1, time.Since(began)) }()
	if err := noBody(m.Payload); err != nil {
		e := wireError(err)
		c.stats.fail("info", string(e.Reason))
		c.answers.Enqueue(appendRefusal(nil, m.Reply, e, map[string]any{"error": e}))
		return
	}
	c.answers.Enqueue(natslink.AppendPub(nil, m.Reply, mustJSON(c.info())))
}

func (c *clusterInfo) info() subjects.ClusterInfo {
	facts, _ := c.facts()
	info := subjects.ClusterInfo{Cluster: c.cluster, ID: c.id, Version: c.version, Partitions: c.partitions, Namespace: c.namespace}
	info.FeedKey = subjects.FeedKey(c.feedKey)
	for _, name := range facts.Names() {
		ready := false
		if name == c.self {
			ready = c.ready()
		} else if q, ok := c.peers.get(name); ok {
			ready = q.Ready && c.peers.alive(name, time.Now())
		}
		info.Nodes = append(info.Nodes, subjects.NodeInfo{Name: name, Ready: ready})
	}
	return info
}

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
)

// cluster is the servers of a system: one, or several that replicate.
type cluster struct {
	name  string
	nodes []*server
	dir   string // the servers' data directory; "" if unknown
	// leader returns the node that leads the first partition or stream. It is
	// nil if there is only one node, or if that is unknown.
	leader func(ctx context.Context) (string, error)
	first  int // the leader's index in nodes when lead was last called
}

// nodeName returns the name of node i.
func nodeName(i int) string { return fmt.Sprint("n", i+1) }

// url returns the address for a connection: the leader's for the first, the
// next node's for the next.
func (c *cluster) url(conn int) string { return c.nodes[(c.first+conn)%len(c.nodes)].url }

// urls returns all addresses, for a client that reconnects to other nodes.
func (c *cluster) urls() string {
	var all []string
	for _, n := range c.nodes {
		all = append(all, n.url)
	}
	return strings.Join(all, ",")
}

// lead finds the leader.
func (c *cluster) lead(ctx context.Context) error {
	if c.leader == nil || len(c.nodes) == 1 {
		return nil
	}
	name, err := c.leader(ctx)
	if err != nil {
		return fmt.Errorf("leader of %s: %w", c.name, err)
	}
	for i := range c.nodes {
		if nodeName(i) == name {
			c.first = i
			return nil
		}
	}
	return fmt.Errorf("leader of %s: %w: there is no node %q", c.name, ErrAnswer, name)
}

func (c *cluster) usage() []usage {
	var all []usage
	for _, n := range c.nodes {
		all = append(all, n.usage())
	}
	return all
}

// startCluster starts a process for each list of arguments and returns once
// all are ready: nodes that found a cluster wait for each other.
func (s *benchRun) startCluster(ctx context.Context, name, dir string, args [][]string) (*cluster, error) {
	c := &cluster{name: name, dir: dir}
	for i, a := range args {
		label := name
		if len(args) > 1 {
			label += " " + nodeName(i)
		}
		srv, err := launch(label, a...)
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, srv)
		c.nodes = append(c.nodes, srv)
	}
	for _, srv := range c.nodes {
		if err := srv.await(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// restart starts node i of a cluster, which has ended, again with the same
// arguments.
func (s *benchRun) restart(ctx context.Context, c *cluster, i int) error {
	old := c.nodes[i]
	srv, err := launch(old.name, old.args...)
	if err != nil {
		return err
	}
	s.servers = append(s.servers, srv)
	c.nodes[i] = srv
	return srv.await(ctx)
}

// nodeArgs returns the command lines of a Cantus cluster on dir.
func (s *benchRun) nodeArgs(dir string) ([][]string, error) {
	w := s.workload
	common := []string{
		"--http", "off", "--prefix", s.Prefix, "--partitions", fmt.Sprint(w.Partitions), "--log-level", "warn",
	}
	if s.Profile != "" {
		return [][]string{{
			"bench", "--serve-node", dir, "--profile", s.Profile, "--prefix", s.Prefix,
			"--partitions", fmt.Sprint(w.Partitions),
		}}, nil
	}
	addrs, err := freeAddrs(3 * w.Nodes)
	if err != nil {
		return nil, err
	}
	listen, cluster, raft := addrs[:w.Nodes], addrs[w.Nodes:2*w.Nodes], addrs[2*w.Nodes:]
	if w.Nodes == 1 {
		return [][]string{append([]string{"serve", "--data", dir, "--listen", listen[0]}, common...)}, nil
	}
	var names []string
	for i := range w.Nodes {
		names = append(names, nodeName(i))
	}
	var all [][]string
	for i, name := range names {
		all = append(all, append([]string{
			"serve", "--name", name, "--data", filepath.Join(dir, name), "--listen", listen[i],
			"--cluster", cluster[i], "--routes", strings.Join(others(cluster, i), ","), "--raft", raft[i],
			"--bootstrap", strings.Join(names, ","),
		}, common...))
	}
	return all, nil
}

// others returns all elements but the i-th.
func others(all []string, i int) []string {
	return append(append([]string(nil), all[:i]...), all[i+1:]...)
}

// freeAddrs returns n loopback addresses that were free a moment ago. Port 0 is
// not enough for a node that restarts at the same address, nor for routes.
func freeAddrs(n int) (addrs []string, err error) {
	for range n {
		l, err1 := net.Listen("tcp", "127.0.0.1:0")
		if err1 != nil {
			return nil, fmt.Errorf("find a free port: %w", err1)
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

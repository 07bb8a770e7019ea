package raftstore_test

import (
	"crypto/tls"
	"testing"

	"github.com/cantuslog/cantus/internal/testcert"
)

// secureCluster returns a cluster of the nodes in configs, with these TLS
// configurations.
func secureCluster(t *testing.T, configs map[string]*tls.Config) *cluster {
	t.Helper()
	var names []string
	for _, name := range []string{"n1", "n2", "n3"} {
		if _, ok := configs[name]; ok {
			names = append(names, name)
		}
	}
	c := newCluster(t, names...)
	for name, n := range c.nodes {
		n.closeNetwork()
		n.opts.TLS = configs[name]
		n.openNetwork()
	}
	return c
}

func TestReplicationOverTLS(t *testing.T) {
	t.Parallel()
	a := testcert.NewAuthority(t)
	c := secureCluster(t, map[string]*tls.Config{"n1": a.Config("n1"), "n2": a.Config("n2"), "n3": a.Config("n3")})
	for _, n := range c.nodes {
		n.open(c.names...)
	}
	want := c.putMany(0, 20, 300_000) // more than a frame
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
}

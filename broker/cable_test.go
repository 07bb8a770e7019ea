package broker_test

import (
	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/relay"
)

// cableTo sends the replication traffic between a node and each other node
// through relays, and returns a function that cuts and restores them. It is
// called before the nodes are started.
func (c *nodes) cableTo(name string) (cut func(bool)) {
	c.t.Helper()
	relays := map[string]*relay.Relay{} // by the node that is dialed
	for _, to := range c.names {
		relays[to] = relay.New(c.t, "")
		for _, from := range c.names {
			if from == to || from != name && to != name {
				continue
			}
			if _, err := relays[to].Entry(from); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	c.change = func(from string, o *broker.Options) {
		broker.Reroute(o, func(to, address string) string {
			if from != name && to != name {
				return address
			}
			relays[to].SetTarget(address)
			entry, err := relays[to].Entry(from)
			if err != nil {
				return address // the test is over
			}
			return entry
		})
	}
	return func(is bool) {
		for _, r := range relays {
			r.Refuse(func(string) bool { return is })
		}
	}
}

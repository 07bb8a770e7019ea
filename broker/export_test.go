package broker

import (
	"context"

	"github.com/nats-io/nats-server/v2/server"
)

// Fed is how many messages the node has published for the feed, -1 if it
// can't be told.
func Fed(n *Node) int64 {
	if n.feeds.flush(context.Background()) != nil {
		return -1
	}
	all, err := n.nats.Connz(&server.ConnzOptions{})
	if err != nil {
		return -1
	}
	for _, c := range all.Conns {
		if c.Name == "cantus feed" {
			return c.InMsgs
		}
	}
	return -1
}

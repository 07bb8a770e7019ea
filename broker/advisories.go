package broker

import (
	"strconv"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// advisory returns the commands that publish an event.
func (n *Node) advisory(kind string, fields map[string]any) []byte {
	fields["type"], fields["node"], fields["time"] = kind, n.opts.Name, time.Now().UTC()
	return natslink.AppendPub(nil, n.names.Advisory(kind), mustJSON(fields))
}

// advise publishes an event.
func (n *Node) advise(kind string, fields map[string]any) { n.sender.Send(n.advisory(kind, fields)) }

func label(partition int) string { return strconv.Itoa(partition) }

// adviseFailure publishes that the node has failed, if it can.
func (n *Node) adviseFailure(err error) {
	if n.sender != nil {
		n.advise("failed", map[string]any{"error": err.Error()})
	}
}

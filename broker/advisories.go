package broker

import (
	"strconv"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// advisories publishes events of the node. It publishes nothing before outbox
// is set.
type advisories struct {
	node   string
	names  subjects.Names
	outbox outbox
}

// encode returns the commands that publish an event under the cluster's names,
// or those of a namespace.
func (a *advisories) encode(names subjects.Names, event string, fields map[string]any) []byte {
	fields["type"], fields["node"], fields["time"] = event, a.node, time.Now().UTC()
	return natslink.AppendPub(nil, names.Advisory(event), mustJSON(fields))
}

// publish publishes an event.
func (a *advisories) publish(event string, fields map[string]any) {
	if a.outbox != nil {
		a.outbox.Enqueue(a.encode(a.names, event, fields))
	}
}

// publishFailure publishes that the node has failed.
func (a *advisories) publishFailure(err error) {
	a.publish("failed", map[string]any{"error": err.Error()})
}

func label(partition int) string { return strconv.Itoa(partition) }

package broker

import (
	"context"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// onJoin answers a node that asks to join. Only the leader of the facts does.
func (o *operations) onJoin(_ context.Context, m *natslink.Message) (any, error) {
	r, err := o.join(m)
	if err != nil {
		r = joinReply{Error: operationError(err)}
	}
	return o.envelope(answerTo(m.Subject), r), nil
}

func (o *operations) join(m *natslink.Message) (r joinReply, err error) {
	e, err := openEnvelope(m.Payload)
	if err != nil {
		return r, errUnproved
	}
	if e.protocol != o.opts.protocol {
		return r, subjects.Errorf(subjects.BadRequest, "node %q speaks protocol %d of nodes, this cluster %d: use the same minor version", e.name, e.protocol, o.opts.protocol)
	}
	proved := o.proved(e, m.Subject)
	if !proved && len(e.body) > maxUnsigned {
		return r, errUnproved
	}
	a, err := decodeAnnouncement(e)
	if err != nil {
		return r, subjects.Errorf(subjects.BadRequest, "body: %s", err)
	}
	secret := o.currentSecret()
	facts, _ := o.meta.current()
	have, known := facts.Nodes[a.Name]
	id := *o.founded
	switch {
	case !proved && secret.Token:
		return r, subjects.Errorf(subjects.BadRequest, "the nodes of this cluster share a token: start the node with it, by --cluster-secret-file")
	case !known:
		return joinReply{Waiting: waitingToBeAdded(a)}, nil
	case have.ID != a.NodeID:
		return r, subjects.Errorf(subjects.BadRequest,
			"a node %q with another data directory is a member of the cluster: remove it first, or choose another name", a.Name)
	case !proved && (have.Key == "" || have.Key != fingerprint(a.Key)):
		return r, subjects.Errorf(subjects.BadRequest, "node %q was added with another key: remove it first, and add this one", a.Name)
	}
	r = joinReply{ID: id.ID, Parts: id.Partitions, Repl: id.Replicas, Found: id.Founders, Facts: facts.Version}
	if !proved {
		r.Wrapped, err = wrapSecret(secret, a.Key, wrapContext(id.Cluster, a.Name, a.NodeID))
	}
	return r, err
}

package broker

import (
	"context"
	"errors"
	"log/slog"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// namespaces answers on each node what any node answers under the names of a
// namespace, and maps appends by key there. The partitions' leaders answer the
// rest.
type namespaces struct {
	log    *slog.Logger
	names  subjects.Names // of the cluster
	facts  func() (cluster.Facts, <-chan struct{})
	shared *sharedSubjects
	server interface {
		MapKeys(names subjects.Names, partitions int) error
		UnmapKeys(names subjects.Names)
	}
	info func(name string, partitions int) *clusterInfo

	served map[string]servedNamespace // by their names; owned by run
}

// servedNamespace is a namespace that is served, until end is called.
type servedNamespace struct {
	partitions int
	end        func()
}

// run serves the namespaces that the facts have until ctx ends.
func (s *namespaces) run(ctx context.Context) {
	s.served = map[string]servedNamespace{}
	for {
		facts, changed := s.facts()
		for name, was := range s.served {
			// It may have been removed and made again since the last facts.
			if n, has := facts.Namespaces[name]; !has || len(n.Partitions) != was.partitions {
				was.end()
				delete(s.served, name)
			}
		}
		for name, n := range facts.Namespaces {
			if _, is := s.served[name]; !is {
				s.begin(name, len(n.Partitions))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (s *namespaces) begin(name string, partitions int) {
	names := s.names.Namespace(name)
	end, err := s.shared.add(names.Info(), s.info(name, partitions).serve)
	if err = errors.Join(err, s.server.MapKeys(names, partitions)); err != nil {
		s.log.Warn("the namespace is not served as a whole", "namespace", name, "err", err)
	}
	s.served[name] = servedNamespace{partitions, func() {
		end()
		s.server.UnmapKeys(names)
	}}
}

// checkNamespace returns an error if a namespace can't have that name: clients
// use its subjects' prefix as that of a cluster.
func checkNamespace(names subjects.Names, name string) error {
	if err := subjects.CheckKind(name); err != nil {
		return subjects.Errorf(subjects.BadRequest, "name: %q is not a name: write 1 to %d bytes without white space, dots, * and >", clip([]byte(name)), subjects.MaxToken)
	}
	if err := subjects.CheckPrefix(names.Namespace(name).Prefix); err != nil {
		return subjects.Errorf(subjects.BadRequest, "name: clients could not use the namespace: %v", err)
	}
	return nil
}

// onNamespace makes, changes or removes a namespace.
func (o *operations) onNamespace(ctx context.Context, m *natslink.Message) (any, error) {
	var r subjects.NamespaceRequest
	if err := smallJSON(m.Payload, &r); err != nil {
		return nil, err
	}
	if err := checkNamespace(o.names, r.Name); err != nil {
		return nil, err
	}
	limits := cluster.Limits{Transactions: r.Limits.Transactions, Bytes: r.Limits.Bytes, Kept: r.Limits.Kept}
	if r.Remove {
		if len(r.Partitions) > 0 || limits != (cluster.Limits{}) {
			return nil, subjects.Errorf(subjects.BadRequest, "body: a namespace that is removed takes no partitions and no limits")
		}
		return o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.RemoveNamespace(r.Name) },
			"the namespace %s is removed", r.Name)
	}
	return o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.SetNamespace(r.Name, r.Partitions, limits) },
		"the namespace %s is set", r.Name)
}

package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// operations serves the requests of operators, and of other nodes to the leader
// of the facts.
type operations struct {
	*identity
	services
	peers      *peers
	meta       *meta
	replicas   *replicaSet
	membership *membership
	absences   *absences
	shared     *sharedSubjects
	reads      connection
	status     func() announcement // of this node
}

// operation serves one request. It returns a body to encode as JSON, or the
// bytes of the reply.
type operation func(context.Context, *natslink.Message) (any, error)

// handler returns a message handler that runs serve on a goroutine of its own.
func (o *operations) handler(ctx context.Context, serve operation) func(*natslink.Message) {
	return func(m *natslink.Message) {
		if m.Reply == "" {
			return
		}
		o.background(func() {
			body, err := serve(ctx, m)
			if err == nil {
				encoded, is := body.([]byte) // an envelope
				if !is {
					encoded = mustJSON(body)
				}
				o.answer(natslink.AppendPub(nil, m.Reply, encoded))
				return
			}
			e := operationError(err)
			if e.Reason == subjects.Internal {
				o.log.Error("operation failed", "subject", m.Subject, "err", err)
			}
			o.answer(appendRefusal(nil, m.Reply, e, subjects.AdminReply{Error: e}))
		})
	}
}

func (o *operations) answer(out []byte) {
	if err := o.reads.Send(out); err != nil {
		o.log.Debug("answer not sent", "err", err)
	}
}

func operationError(err error) *subjects.Error {
	switch {
	case errors.Is(err, cluster.ErrCommand):
		return subjects.Errorf(subjects.BadRequest, "%s", strings.TrimPrefix(err.Error(), cluster.ErrCommand.Error()+": "))
	case errors.Is(err, cluster.ErrStale):
		return subjects.Errorf(subjects.Unavailable, "others change the cluster at the same time: try again")
	}
	return wireError(err)
}

// subscribeLeader subscribes to the requests that the leader of the facts
// serves.
func (o *operations) subscribeLeader(ctx context.Context) ([]subscribed, error) {
	return o.subscribe(ctx, map[string]operation{
		o.names.Admin("join"):                o.onJoin,
		o.names.Admin("cluster", "add"):      o.onAdd,
		o.names.Admin("cluster", "remove"):   o.onRemove,
		o.names.Admin("cluster", "drain"):    o.onDrain,
		o.names.Admin("cluster", "undrain"):  o.nodeOperation("open to replicas again", cluster.Facts.Undrain),
		o.names.Admin("cluster", "promote"):  o.nodeOperation("no standby any more", cluster.Facts.Promote),
		o.names.Admin("cluster", "transfer"): o.onTransfer,
		o.names.Admin("cluster", "move"):     o.onMove,
		o.names.Admin("cluster", "balance"):  o.onBalance,

		o.names.Admin("cluster", "retention"): o.onRetention,
		o.names.Admin("cluster", "namespace"): o.onNamespace,
	})
}

// subscribeNode subscribes to the requests that any node serves, and to those
// for this node.
func (o *operations) subscribeNode(ctx context.Context) error {
	if _, err := o.shared.add(o.names.Admin("status"), o.handler(ctx, o.onStatus)); err != nil {
		return err
	}
	if _, err := o.reads.Subscribe(o.names.Admin("node", o.opts.Name, "read", "*"), o.queueGroup(), o.ownReads(ctx)); err != nil {
		return err
	}
	_, err := o.subscribe(ctx, map[string]operation{
		o.names.Admin("node", o.opts.Name, "member"):  o.membership.onMember,
		o.names.Admin("node", o.opts.Name, "rebuild"): o.onRebuild,
	})
	return err
}

func (o *operations) subscribe(ctx context.Context, all map[string]operation) (done []subscribed, err error) {
	for subject, serve := range all {
		id, err := o.reads.Subscribe(subject, o.queueGroup(), o.handler(ctx, serve))
		if err != nil {
			return done, err
		}
		done = append(done, subscribed{o.reads, id})
	}
	return done, nil
}

// ownReads returns a handler for reads of this node's own replicas, which are
// answered whether or not the node is in touch with its cluster.
func (o *operations) ownReads(ctx context.Context) func(*natslink.Message) {
	prefix := o.names.Admin("node", o.opts.Name, "read") + "."
	return func(m *natslink.Message) {
		if m.Reply == "" {
			return
		}
		number := strings.TrimPrefix(m.Subject, prefix)
		partition, err := strconv.Atoi(number)
		refuse := func(reason subjects.Reason, format string, args ...any) {
			e := subjects.Errorf(reason, format, args...)
			o.shared.refusals.Enqueue(appendRefusal(nil, m.Reply, e, map[string]any{"error": e}))
		}
		c := o.replicas.get(partition)
		if err != nil || c == nil || number != strconv.Itoa(partition) {
			refuse(subjects.BadRequest, "subject: there is no partition %q", clip([]byte(number)))
			return
		}
		r := c.current()
		if r == nil {
			refuse(subjects.Unavailable, "node %s has no replica of partition %d: ask another node", o.opts.Name, partition)
			return
		}
		if why := r.fencing.barred(); why != "" {
			refuse(subjects.Unavailable, "node %s must not be asked for partition %d: %s", o.opts.Name, partition, why)
			return
		}
		r.requests.handler(ctx, r.reader.serveReplicaRead)(m)
	}
}

func needNode(r subjects.AdminRequest) error {
	if r.Node == "" {
		return subjects.Errorf(subjects.BadRequest, `body: node is missing: name the node, such as {"node":"n4"}`)
	}
	return nil
}

func needPartition(r subjects.AdminRequest) (int, error) {
	if r.Partition == nil {
		return 0, subjects.Errorf(subjects.BadRequest, `body: partition is missing, such as {"partition":0}`)
	}
	return *r.Partition, nil
}

// decide changes the facts and returns a reply that says how.
func (o *operations) decide(ctx context.Context, compute func(cluster.Facts) (cluster.Command, error), done string, args ...any) (any, error) {
	if err := o.meta.change(ctx, compute); err != nil {
		return nil, err
	}
	return o.decided(ctx, fmt.Sprintf(done, args...)), nil
}

// decided returns the reply to an operation that has changed the facts, once
// the other members have applied them: the next request may be answered by any
// of them, from its own facts. It warns of those that have not.
func (o *operations) decided(ctx context.Context, done string) subjects.AdminReply {
	version := o.meta.now().Version
	r := subjects.AdminReply{Done: done, Facts: version}
	for _, name := range o.awaitApplied(ctx, version) {
		r.Warnings = append(r.Warnings, fmt.Sprintf("node %s has not applied this yet: until it has, what it answers is of the time before", name))
	}
	return r
}

// appliedTime is how long the reply to an operation waits for other members.
const appliedTime = 2 * time.Second

// awaitApplied waits until the members that this node hears have applied a
// version of the facts, for up to appliedTime, and not for those that no longer
// answer on the replication connection. It returns the members that are heard
// and have an earlier version.
func (o *operations) awaitApplied(ctx context.Context, version uint64) (behind []string) {
	ctx, cancel := context.WithTimeout(ctx, appliedTime)
	defer cancel()
	for {
		heard := o.peers.next()
		now, reachable := time.Now(), false
		behind = nil
		for name := range o.meta.now().Nodes {
			q, _ := o.peers.get(name)
			if name == o.opts.Name || q.Facts >= version || !o.peers.alive(name, now) {
				continue
			}
			behind = append(behind, name)
			reachable = reachable || o.meta.group.Reachable(name)
		}
		slices.Sort(behind)
		if !reachable {
			return behind
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return behind
		}
	}
}

func (o *operations) nodeOperation(became string, compute func(cluster.Facts, string) (cluster.Command, error)) operation {
	return func(ctx context.Context, m *natslink.Message) (any, error) {
		r, err := operationBody(m, "node")
		if err = errors.Join(err, needNode(r)); err != nil {
			return nil, err
		}
		return o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return compute(f, r.Node) }, "node %s is %s", r.Node, became)
	}
}

// onDrain drains a node. It replies when that is decided, and says how many
// replicas are to move.
func (o *operations) onDrain(ctx context.Context, m *natslink.Message) (any, error) {
	if _, err := o.nodeOperation("draining", cluster.Facts.Drain)(ctx, m); err != nil {
		return nil, err
	}
	r, err := operationBody(m, "node")
	if err != nil {
		return nil, err
	}
	move, stay := o.heldBy(o.meta.now(), r.Node, time.Now())
	return o.decided(ctx, drained(r.Node, move, stay)), nil
}

// drained describes what happens to the replicas of a node that is drained.
func drained(node string, move, stay int) string {
	moving, staying := count(move, "replica")+" to be moved to other nodes", count(stay, "replica")+" with nowhere else to go"
	switch {
	case move == 0 && stay == 0:
		return fmt.Sprintf("node %s is drained: it holds no voting replicas", node)
	case stay == 0:
		return fmt.Sprintf("node %s is draining: %s", node, moving)
	case move == 0:
		return fmt.Sprintf("node %s is draining: %s", node, staying)
	}
	return fmt.Sprintf("node %s is draining: %s, %s", node, moving, staying)
}

// heldBy returns how many voting replicas of a node are to move to others, and
// how many stay. It counts a partition without a leader as one that moves.
func (o *operations) heldBy(facts cluster.Facts, node string, now time.Time) (move, stay int) {
	for p, names := range facts.Placement {
		if slices.Contains(names, node) {
			stay++
			continue
		}
		if r, known := o.replicas.leaderReport(p, now); r.Voters[node] || !known {
			move++
		}
	}
	return move, stay
}

// onAdd makes a candidate a member.
func (o *operations) onAdd(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "node", "standby", "key")
	if err = errors.Join(err, needNode(r)); err != nil {
		return nil, err
	}
	facts, _ := o.meta.current()
	if _, member := facts.Nodes[r.Node]; member {
		return nil, subjects.Errorf(subjects.BadRequest, "node %q is a member already", r.Node)
	}
	q, err := o.awaitCandidate(ctx, r.Node, r.Key)
	if err != nil {
		return nil, err
	}
	member := cluster.Member{ID: q.NodeID, Standby: r.Standby || q.Standby, Key: fingerprint(q.Key)}
	reply, err := o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.Add(r.Node, member) }, "node %s is a member", r.Node)
	if err == nil {
		o.advise("member", map[string]any{"name": r.Node, "change": "added", "standby": member.Standby})
	}
	return reply, err
}

// awaitCandidate returns the candidate of a name, and of a key if there is one.
// It waits for it to be heard for up to aliveTime: other nodes may have heard
// it before this one.
func (o *operations) awaitCandidate(ctx context.Context, name, key string) (candidate, error) {
	ctx, cancel := context.WithTimeout(ctx, aliveTime)
	defer cancel()
	for {
		heard := o.peers.next()
		all := slices.DeleteFunc(o.peers.candidates.named(name, time.Now()), func(q candidate) bool {
			return q.ClusterID != "" || key != "" && fingerprint(q.Key) != key
		})
		switch {
		case len(all) == 1:
			return all[0], nil
		case len(all) > 1:
			var keys []string
			for _, q := range all {
				keys = append(keys, fingerprint(q.Key))
			}
			return candidate{}, subjects.Errorf(subjects.BadRequest,
				"%d nodes call themselves %q, with the keys %s: say which one is meant by its key", len(all), name, strings.Join(keys, ", "))
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return candidate{}, o.noCandidate(name, key)
		}
	}
}

// noCandidate returns an error that says why there is no candidate.
func (o *operations) noCandidate(name, key string) error {
	for _, q := range o.peers.candidates.named(name, time.Now()) {
		if q.ClusterID == "" && key != "" {
			return subjects.Errorf(subjects.BadRequest, "node %q has the key %s, not %s: compare the key with the one in the node's own log before you add the node",
				name, cmp.Or(fingerprint(q.Key), "(none)"), key)
		}
	}
	return subjects.Errorf(subjects.BadRequest, "no node %q has announced itself: start it with --name %s and the --routes of this cluster, then add it", name, name)
}

// onRemove moves everything from a node and then removes it from the cluster,
// unless that would leave a partition without a majority.
func (o *operations) onRemove(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "node")
	if err = errors.Join(err, needNode(r)); err != nil {
		return nil, err
	}
	var left, replicas int
	compute := func(f cluster.Facts) (cluster.Command, error) {
		if err := o.mayLeave(f, r.Node); err != nil {
			return cluster.Command{}, err
		}
		left = f.Hosting(r.Node)
		replicas = f.Replicas
		return f.Leave(r.Node)
	}
	if err := o.meta.change(ctx, compute); err != nil {
		return nil, err
	}
	done := fmt.Sprintf("node %s is leaving: it is removed when its replicas are elsewhere", r.Node)
	if left < replicas {
		done = fmt.Sprintf("node %s is leaving: %d of the %d replicas of a partition are left then, and %d of them may fail; "+
			"add a node to have %d again", r.Node, left, replicas, (left-1)/2, replicas)
	}
	return o.decided(ctx, done), nil
}

// mayLeave returns an error if a partition, or the facts, would have no
// majority without a node.
func (o *operations) mayLeave(f cluster.Facts, node string) error {
	now := time.Now()
	there := func(name string) bool { return name == o.opts.Name || o.peers.alive(name, now) }
	enough := func(what string, voters map[string]bool) error {
		if !voters[node] {
			return nil
		}
		rest, alive := 0, 0
		for name, vote := range voters {
			if vote && name != node {
				rest++
				if there(name) {
					alive++
				}
			}
		}
		if rest > 0 && alive <= rest/2 {
			return subjects.Errorf(subjects.Unavailable,
				"without %s, %s would have %d of %d voters and no majority: bring others back first", node, what, alive, rest)
		}
		return nil
	}
	for p := range f.Placement {
		r, ok := o.replicas.leaderReport(p, now)
		if !ok {
			return subjects.Errorf(subjects.Unavailable, "partition %d has no leader now: nothing can be moved from %s", p, node)
		}
		if err := enough(fmt.Sprintf("partition %d", p), r.Voters); err != nil {
			return err
		}
	}
	return enough("the cluster's facts", o.meta.report().Voters)
}

// onTransfer makes another of a partition's replicas its leader, now and
// whenever it can lead.
func (o *operations) onTransfer(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "partition", "to")
	p, pErr := needPartition(r)
	if err = errors.Join(err, pErr); err != nil {
		return nil, err
	}
	if r.To == "" {
		return nil, subjects.Errorf(subjects.BadRequest, `body: to is missing: name the node that is to lead, such as {"partition":0,"to":"n2"}`)
	}
	return o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.Lead(p, r.To) }, "partition %d is to be led by %s", p, r.To)
}

// onMove moves a replica to another node.
func (o *operations) onMove(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "partition", "node", "to")
	p, pErr := needPartition(r)
	if err = errors.Join(err, pErr, needNode(r)); err != nil {
		return nil, err
	}
	if r.To == "" {
		return nil, subjects.Errorf(subjects.BadRequest, `body: to is missing: name the node to move to, such as {"partition":0,"node":"n1","to":"n4"}`)
	}
	return o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.Move(p, r.Node, r.To) },
		"partition %d moves from %s to %s", p, r.Node, r.To)
}

// onBalance spreads replicas and leaders evenly.
func (o *operations) onBalance(ctx context.Context, m *natslink.Message) (any, error) {
	if err := noBody(m.Payload); err != nil {
		return nil, err
	}
	facts, _ := o.meta.current()
	c, uneven := facts.Balance()
	if !uneven {
		return subjects.AdminReply{Done: "replicas and leaders are even already"}, nil
	}
	return o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) {
		c, uneven := f.Balance()
		if !uneven {
			return c, cluster.ErrStale
		}
		return c, nil
	}, "replicas or leaders of %s move", count(len(c.Placement), "partition"))
}

// onRebuild deletes this node's replica of a partition and fetches it again
// from the others. The replica must have no vote then, so it is fenced first:
// the leader takes the vote of a fenced replica.
func (o *operations) onRebuild(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "partition")
	p, pErr := needPartition(r)
	if err = errors.Join(err, pErr); err != nil {
		return nil, err
	}
	c := o.replicas.get(p)
	var held *replica
	if c != nil {
		held = c.current()
	}
	if held == nil {
		return nil, subjects.Errorf(subjects.BadRequest, "node %s has no replica of partition %d", o.opts.Name, p)
	}
	rebuilds := c.rebuilt.Load() + 1
	leader, err := o.awaitSpared(ctx, p, held.group.Status)
	if err != nil {
		return nil, err
	}
	if err := held.fencing.orderRebuild(); err != nil {
		return nil, subjects.Errorf(subjects.Unavailable, "the rebuild is not begun, because node %s can't write down that it was asked for: %v", o.opts.Name, err)
	}
	o.background(func() { c.rebuildUnvoted(o.quit) })
	return subjects.AdminReply{Done: fmt.Sprintf("the replica of partition %d on %s is rebuilt from %s", p, o.opts.Name, leader), Rebuilds: rebuilds}, nil
}

// awaitSpared waits for up to appliedTime until this node's replica of a
// partition can be spared, and returns the leader to rebuild it from.
func (o *operations) awaitSpared(ctx context.Context, p int, status func() raftstore.Status) (leader string, err error) {
	ctx, cancel := context.WithTimeout(ctx, appliedTime)
	defer cancel()
	for {
		heard := o.peers.next()
		leader, err = o.spared(p, status())
		if refused := (*subjects.Error)(nil); !errors.As(err, &refused) || refused.Reason != subjects.Unavailable {
			return leader, err
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return leader, err
		}
	}
}

// spared returns the leader of a partition that can commit without this node's
// replica.
func (o *operations) spared(p int, status raftstore.Status) (leader string, err error) {
	leader, report, ok := o.peers.leader(p, time.Now())
	switch {
	case status.Leader == o.opts.Name && len(status.Replicas) == 1:
		return "", subjects.Errorf(subjects.BadRequest, "node %s has the only replica of partition %d: there is nothing to rebuild it from", o.opts.Name, p)
	case status.Leader == o.opts.Name:
		return "", subjects.Errorf(subjects.BadRequest,
			`node %s leads partition %d: transfer its leadership first, as "cantus cluster transfer %d --to NODE" does`, o.opts.Name, p, p)
	case !ok || leader == o.opts.Name:
		return "", subjects.Errorf(subjects.Unavailable, "partition %d has no leader at the moment to rebuild the replica from: try again", p)
	}
	if others, there := votersWithout(report, o.opts.Name); report.Voters[o.opts.Name] && len(there) <= len(others)/2 {
		return "", subjects.Errorf(subjects.Unavailable,
			"partition %d would have no majority while its replica on %s is rebuilt: of its other voters %s, its leader %s counts on %s only; start the others and let them catch up first",
			p, o.opts.Name, strings.Join(others, ", "), leader, cmp.Or(strings.Join(there, ", "), "none"))
	}
	return leader, nil
}

// votersWithout returns the voters that a leader's group has without one of
// them, and those of them that it can go on with.
func votersWithout(leader groupReport, without string) (others, there []string) {
	for _, name := range names(leader.Voters) {
		if name == without || !leader.Voters[name] {
			continue
		}
		others = append(others, name)
		if slices.Contains(leader.CaughtUp, name) {
			there = append(there, name)
		}
	}
	return others, there
}

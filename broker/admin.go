package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// request asks another node, or the leader of the facts, and returns its answer.
func (n *Node) request(ctx context.Context, subject string, body any) ([]byte, error) {
	n.mu.Lock()
	nc := n.control
	n.mu.Unlock()
	m, err := nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Data: n.envelope(subject, body)})
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

// operation serves one request of an operator, or of a node.
type operation func(context.Context, *natslink.Message) (any, error)

// onOperation makes a handler that serves each message on a goroutine of its
// own.
func (n *Node) onOperation(ctx context.Context, serve operation) func(*natslink.Message) {
	return func(m *natslink.Message) {
		n.intake.RLock()
		defer n.intake.RUnlock()
		if m.Reply == "" || n.deaf {
			return
		}
		n.readers.Go(func() {
			body, err := serve(ctx, m)
			if err == nil {
				encoded, is := body.([]byte) // of one that nodes ask for
				if !is {
					encoded = mustJSON(body)
				}
				n.answerRead(natslink.AppendPub(nil, m.Reply, encoded))
				return
			}
			e := operationError(err)
			if e.Reason == subjects.Internal {
				n.log.Error("operation failed", "subject", m.Subject, "err", err)
			}
			n.answerRead(appendRefusal(nil, m.Reply, e, subjects.AdminReply{Error: e}))
		})
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

// subscribeOperations subscribes to what the leader of the facts answers.
func (n *Node) subscribeOperations(ctx context.Context) ([]subscribed, error) {
	return n.subscribeAll(ctx, map[string]operation{
		n.names.Admin("join"):                n.onJoin,
		n.names.Admin("cluster", "add"):      n.onAdd,
		n.names.Admin("cluster", "remove"):   n.onRemove,
		n.names.Admin("cluster", "drain"):    n.onDrain,
		n.names.Admin("cluster", "undrain"):  n.nodeOperation("open to replicas again", cluster.Facts.Undrain),
		n.names.Admin("cluster", "promote"):  n.nodeOperation("no standby any more", cluster.Facts.Promote),
		n.names.Admin("cluster", "transfer"): n.onTransfer,
		n.names.Admin("cluster", "move"):     n.onMove,
		n.names.Admin("cluster", "balance"):  n.onBalance,
	})
}

// subscribeNode subscribes to what any node, or this very one, answers.
func (n *Node) subscribeNode(ctx context.Context) error {
	if _, err := n.answerInCommon(n.names.Admin("status"), n.onOperation(ctx, n.onStatus)); err != nil {
		return err
	}
	_, err := n.subscribeAll(ctx, map[string]operation{
		n.names.Admin("node", n.opts.Name, "member"):  n.onMember,
		n.names.Admin("node", n.opts.Name, "rebuild"): n.onRebuild,
	})
	return err
}

func (n *Node) subscribeAll(ctx context.Context, operations map[string]operation) (all []subscribed, err error) {
	for subject, serve := range operations {
		id, err := n.reads.Subscribe(subject, n.queueGroup(), n.onOperation(ctx, serve))
		if err != nil {
			return all, err
		}
		all = append(all, subscribed{n.reads, id})
	}
	return all, nil
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

// decide makes a change to the facts and says what was decided.
func (n *Node) decide(ctx context.Context, compute func(cluster.Facts) (cluster.Command, error), done string, args ...any) (any, error) {
	if err := n.meta.change(ctx, compute); err != nil {
		return nil, err
	}
	return subjects.AdminReply{Done: fmt.Sprintf(done, args...)}, nil
}

func (n *Node) nodeOperation(became string, compute func(cluster.Facts, string) (cluster.Command, error)) operation {
	return func(ctx context.Context, m *natslink.Message) (any, error) {
		r, err := operationBody(m, "node")
		if err = errors.Join(err, needNode(r)); err != nil {
			return nil, err
		}
		return n.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return compute(f, r.Node) }, "node %s is %s", r.Node, became)
	}
}

// onDrain takes off a node what others can hold. It answers when that is decided, and
// says how much there is.
func (n *Node) onDrain(ctx context.Context, m *natslink.Message) (any, error) {
	if _, err := n.nodeOperation("draining", cluster.Facts.Drain)(ctx, m); err != nil {
		return nil, err
	}
	r, err := operationBody(m, "node")
	if err != nil {
		return nil, err
	}
	move, stay := n.heldBy(n.facts(), r.Node, time.Now())
	return subjects.AdminReply{Done: drained(r.Node, move, stay)}, nil
}

// drained says what becomes of the replicas of a node that is drained.
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

// heldBy returns how many voting replicas a node has, or may have where a partition
// has no leader, that are to go elsewhere, and how many stay.
func (n *Node) heldBy(facts cluster.Facts, node string, now time.Time) (move, stay int) {
	for p, names := range facts.Placement {
		if slices.Contains(names, node) {
			stay++
			continue
		}
		if r, known := n.leaderReport(p, now); r.Voters[node] || !known {
			move++
		}
	}
	return move, stay
}

// onAdd makes a node that waits a member.
func (n *Node) onAdd(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "node", "standby", "key")
	if err = errors.Join(err, needNode(r)); err != nil {
		return nil, err
	}
	facts, _ := n.meta.current()
	if _, member := facts.Nodes[r.Node]; member {
		return nil, subjects.Errorf(subjects.BadRequest, "node %q is a member already", r.Node)
	}
	q, err := n.awaitCandidate(ctx, r.Node, r.Key)
	if err != nil {
		return nil, err
	}
	member := cluster.Member{ID: q.NodeID, Standby: r.Standby || q.Standby, Key: fingerprint(q.Key)}
	reply, err := n.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.Add(r.Node, member) }, "node %s is a member", r.Node)
	if err == nil {
		n.advise("member", map[string]any{"name": r.Node, "change": "added", "standby": member.Standby})
	}
	return reply, err
}

// awaitCandidate waits until a node is heard that wants to be added, for as long as
// one that is there can keep silent: others may have heard it already.
func (n *Node) awaitCandidate(ctx context.Context, name, key string) (candidate, error) {
	ctx, cancel := context.WithTimeout(ctx, aliveTime)
	defer cancel()
	for {
		heard := n.peers.next()
		all := slices.DeleteFunc(n.peers.candidates.named(name, time.Now()), func(q candidate) bool {
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
			return candidate{}, n.noCandidate(name, key)
		}
	}
}

// noCandidate says why there is no node to be added.
func (n *Node) noCandidate(name, key string) error {
	for _, q := range n.peers.candidates.named(name, time.Now()) {
		if q.ClusterID == "" && key != "" {
			return subjects.Errorf(subjects.BadRequest, "node %q is there with the key %s, and not with %s: compare it with the node's own log before you add it",
				name, cmp.Or(fingerprint(q.Key), "(none)"), key)
		}
	}
	return subjects.Errorf(subjects.BadRequest, "node %q is not there to be added: start it with --name %s and the --routes of this cluster first", name, name)
}

// onRemove takes everything off a node and then the node out of the cluster,
// unless a partition would be left without a majority.
func (n *Node) onRemove(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "node")
	if err = errors.Join(err, needNode(r)); err != nil {
		return nil, err
	}
	var left, replicas int
	compute := func(f cluster.Facts) (cluster.Command, error) {
		if err := n.mayLeave(f, r.Node); err != nil {
			return cluster.Command{}, err
		}
		left = f.Hosting(r.Node)
		replicas = f.Replicas
		return f.Leave(r.Node)
	}
	if err := n.meta.change(ctx, compute); err != nil {
		return nil, err
	}
	done := fmt.Sprintf("node %s is leaving: it is removed when its replicas are elsewhere", r.Node)
	if left < replicas {
		done = fmt.Sprintf("node %s is leaving: %d of the %d replicas of a partition are left then, and %d of them may fail; "+
			"add a node to have %d again", r.Node, left, replicas, (left-1)/2, replicas)
	}
	return subjects.AdminReply{Done: done}, nil
}

// mayLeave refuses what would cost a partition, or the facts, their majority.
func (n *Node) mayLeave(f cluster.Facts, node string) error {
	now := time.Now()
	there := func(name string) bool { return name == n.opts.Name || n.peers.alive(name, now) }
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
		r, ok := n.leaderReport(p, now)
		if !ok {
			return subjects.Errorf(subjects.Unavailable, "partition %d has no leader now: nothing can be taken off %s", p, node)
		}
		if err := enough(fmt.Sprintf("partition %d", p), r.Voters); err != nil {
			return err
		}
	}
	return enough("the cluster's facts", n.meta.report().Voters)
}

// onTransfer has a partition led by another of its replicas, now and later.
func (n *Node) onTransfer(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "partition", "to")
	p, pErr := needPartition(r)
	if err = errors.Join(err, pErr); err != nil {
		return nil, err
	}
	if r.To == "" {
		return nil, subjects.Errorf(subjects.BadRequest, `body: to is missing: name the node that is to lead, such as {"partition":0,"to":"n2"}`)
	}
	return n.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.Lead(p, r.To) }, "partition %d is to be led by %s", p, r.To)
}

// onMove moves a replica.
func (n *Node) onMove(ctx context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "partition", "node", "to")
	p, pErr := needPartition(r)
	if err = errors.Join(err, pErr, needNode(r)); err != nil {
		return nil, err
	}
	if r.To == "" {
		return nil, subjects.Errorf(subjects.BadRequest, `body: to is missing: name the node to move to, such as {"partition":0,"node":"n1","to":"n4"}`)
	}
	return n.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.Move(p, r.Node, r.To) },
		"partition %d moves from %s to %s", p, r.Node, r.To)
}

// onBalance spreads replicas and leaders evenly.
func (n *Node) onBalance(ctx context.Context, m *natslink.Message) (any, error) {
	if err := noBody(m.Payload); err != nil {
		return nil, err
	}
	facts, _ := n.meta.current()
	c, uneven := facts.Balance()
	if !uneven {
		return subjects.AdminReply{Done: "replicas and leaders are even already"}, nil
	}
	return n.decide(ctx, func(f cluster.Facts) (cluster.Command, error) {
		c, uneven := f.Balance()
		if !uneven {
			return c, cluster.ErrStale
		}
		return c, nil
	}, "to get other replicas or another leader: %s", count(len(c.Placement), "partition"))
}

// onRebuild throws this node's replica of a partition away and has it fetched
// from the others. It must not vote meanwhile: a fenced one has lost its vote.
func (n *Node) onRebuild(_ context.Context, m *natslink.Message) (any, error) {
	r, err := operationBody(m, "partition")
	p, pErr := needPartition(r)
	if err = errors.Join(err, pErr); err != nil {
		return nil, err
	}
	s := n.slot(p)
	if s == nil || s.current() == nil {
		return nil, subjects.Errorf(subjects.BadRequest, "node %s has no replica of partition %d", n.opts.Name, p)
	}
	leader, report, ok := n.peers.leader(p, time.Now())
	switch {
	case !ok || leader == n.opts.Name:
		return nil, subjects.Errorf(subjects.Unavailable, "no other node leads partition %d: there is nothing to rebuild it from", p)
	case s.current().fenced.Load() == nil:
		s.current().retire("an operator has it rebuilt")
		fallthrough
	case report.Voters[n.opts.Name]:
		n.begin(func() { n.rebuildUnvoted(s, p) })
	default:
		s.askRebuild()
	}
	return subjects.AdminReply{Done: fmt.Sprintf("the replica of partition %d on %s is rebuilt from %s", p, n.opts.Name, leader)}, nil
}

// rebuildUnvoted waits until the leader has taken the fenced replica's vote,
// and has it rebuilt.
func (n *Node) rebuildUnvoted(s *slot, partition int) {
	for {
		heard := n.peers.next()
		if _, r, ok := n.peers.leader(partition, time.Now()); ok && !r.Voters[n.opts.Name] {
			s.askRebuild()
			return
		}
		select {
		case <-n.quit:
			return
		case <-heard:
		}
	}
}

func (s *slot) askRebuild() {
	select {
	case s.rebuilds <- struct{}{}:
	default:
	}
}

// serveTrim trims the partition, by txid, age or size.
func (p *partition) serveTrim(_ context.Context, m *natslink.Message) error {
	keep, err := p.keepFrom(m.Payload)
	if err != nil {
		return err
	}
	reply := subjects.TrimReply{Partition: p.id}
	if keep > 0 {
		if err := p.awaitProposed(); err != nil {
			return err
		}
		w, id := p.trimBatch(keep)
		a, err := p.outcome(p.group.Propose(w))
		if err != nil {
			return err
		}
		if a.failed {
			return raftstore.ErrUnknown
		}
		first := p.replica.position().first
		switch {
		case id > 0:
			reply.Because = fmt.Sprintf("the message id of transaction %d still counts: ids are remembered for %v; trim again when they are not", id, p.replica.window)
		case first < keep:
			reply.Because = fmt.Sprintf("the log can be cut after %d transactions, 16 MiB or an hour, and there is no such place between transactions %d and %d", pointEvery, first, keep)
		}
	}
	reply.FirstTxid = p.replica.position().first
	p.answerRead(natslink.AppendPub(nil, m.Reply, mustJSON(reply)))
	return nil
}

// trimBatch returns the batch that trims what is older than txid keep, and than the
// oldest transaction whose message id still counts: no replica could remember the id
// after a restart. If it is that which decides, id is its txid.
//
// The batch's time is the partition's from then on, so that an id which does not
// count any more here does not count afterwards either.
func (p *partition) trimBatch(keep uint64) (batch []byte, id uint64) {
	keep, id, last, now := p.replica.certifier.trimFrom(keep)
	var w wal.BatchWriter
	w.Begin(wal.Trims, last, now, 0)
	w.AddRaw(trimRecord(keep))
	return w.Finish(), id
}

// keepFrom gives the oldest txid that a trim leaves wanted.
func (p *partition) keepFrom(body []byte) (uint64, error) {
	var r subjects.TrimRequest
	if err := smallJSON(body, &r); err != nil {
		return 0, err
	}
	given := 0
	for _, is := range []bool{r.Before > 0, r.Age != "", r.Bytes > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return 0, subjects.Errorf(subjects.BadRequest, `body: give exactly one of {"before":100000}, {"age":"720h"} and {"bytes":1000000000}`)
	}
	switch {
	case r.Before > p.replica.position().mark+1:
		return 0, subjects.Errorf(subjects.Ahead, "before is %d, the high-water mark %d", r.Before, p.replica.position().mark)
	case r.Before > 0:
		return r.Before, nil
	case r.Bytes > 0:
		return p.replica.keepFrom(0, r.Bytes), nil
	}
	age, err := subjects.ParseDuration(r.Age)
	if err != nil || age == 0 {
		return 0, subjects.Errorf(subjects.BadRequest, `body: age %q is not a time, such as "720h"`, r.Age)
	}
	return p.replica.keepFrom(time.Now().Add(-age).UnixNano(), 0), nil
}

// onStatus describes the cluster as this node sees it.
func (n *Node) onStatus(_ context.Context, m *natslink.Message) (any, error) {
	if err := noBody(m.Payload); err != nil {
		return nil, err
	}
	facts, _ := n.meta.current()
	now := time.Now()
	id := n.store.Identity()
	s := subjects.ClusterStatus{
		Cluster: id.Cluster, ID: id.ID, AnsweredBy: n.opts.Name, Facts: facts.Version,
		MetaLeader: n.meta.group.Status().Leader, Replicas: facts.Replicas,
	}
	said := map[string]hello{n.opts.Name: n.hello()}
	for _, q := range n.peers.all(now) {
		said[q.Name] = q.hello
	}
	for p := range facts.Placement {
		s.Partitions = append(s.Partitions, partitionStatus(p, facts, said))
	}
	for _, name := range facts.Names() {
		one := nodeStatus(name, facts, said)
		if !one.Alive {
			one.Away = n.awaySince(name)
		}
		s.Nodes = append(s.Nodes, one)
	}
	for _, q := range n.peers.candidates.alive(now) {
		if _, member := facts.Nodes[q.Name]; !member && q.ClusterID == "" {
			one := nodeStatus(q.Name, facts, map[string]hello{q.Name: q.hello})
			one.Key = fingerprint(q.Key)
			s.Nodes = append(s.Nodes, one)
		}
	}
	return s, nil
}

func namesOf(said map[string]hello) []string {
	var names []string
	for name := range said {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func nodeStatus(name string, facts cluster.Facts, said map[string]hello) subjects.NodeStatus {
	m, member := facts.Nodes[name]
	h, alive := said[name]
	s := subjects.NodeStatus{Name: name, State: "member", Alive: alive, Ready: h.Ready, Unready: h.Unready, Version: h.Version, Raft: h.Raft, Since: h.Started, StorageFull: h.Full}
	switch {
	case !member:
		s.State = "waiting"
	case m.Leaving:
		s.State = "leaving"
	case m.Draining:
		s.State = "draining"
	case m.Standby:
		s.State = "standby"
	}
	for _, names := range facts.Placement {
		if slices.Contains(names, name) {
			s.Replicas++
		}
		if names[0] == name {
			s.Leads++
		}
	}
	for _, r := range h.Groups {
		if r.leads() {
			s.Leading++
		}
	}
	return s
}

func partitionStatus(partition int, facts cluster.Facts, said map[string]hello) subjects.PartitionStatus {
	s := subjects.PartitionStatus{Partition: partition, Placement: facts.Placement[partition]}
	var leader groupReport
	reports := map[string]groupReport{}
	for _, name := range namesOf(said) {
		for _, r := range said[name].Groups {
			if r.Partition != partition {
				continue
			}
			reports[name] = r
			if r.leads() && r.Term >= s.Term {
				s.Leader, s.Term, leader = name, r.Term, r
			}
		}
	}
	s.StorageFull = leader.Full
	members := map[string]bool{}
	for name := range reports {
		members[name] = leader.Voters[name]
	}
	for name, voter := range leader.Voters {
		members[name] = voter
	}
	for _, name := range names(members) {
		r, has := reports[name]
		if !has {
			r.State = "away"
		}
		s.Replicas = append(s.Replicas, subjects.ReplicaStatus{
			Name: name, State: r.State, Voter: members[name], HighWaterMark: r.Txid, FirstTxid: r.First, Fenced: r.Fenced,
		})
	}
	return s
}

package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// Recovery is the data directory of a stopped node whose cluster has lost the
// majority of its nodes for good. [Recovery.Run] makes the node the only member
// of a new cluster, which has what the directory has. See docs/adr/0039.
//
// The directory leaves its cluster first, and then does the rest: each group's
// log gets an entry that makes the node its only voter, and each partition's
// log one that says what happened. Until all is done only a recovery opens the
// directory, and goes on where the last one ended. So a crash leaves it as it
// was, or with a recovery to be completed, and never a node that could take
// part in either cluster with half of its logs in the other.
type Recovery struct {
	// Identity is the directory's, Members are the nodes of its cluster by its
	// facts, and Partitions say what it has.
	Identity   wal.Identity
	Members    []string
	Partitions []Surviving

	store *wal.Store
	facts cluster.Facts
	// done is called after each durable step. An error ends the recovery there,
	// as a crash would. It is nil except in tests.
	done func(step string) error
}

// Surviving is what a directory has of a partition.
type Surviving struct {
	Partition int `json:"partition"`
	// Replica reports whether there is a replica, with all from the first
	// transaction kept to LastTxid.
	Replica bool `json:"replica"`
	// LastTxid is the last transaction, and Time and Digest are those there.
	// All up to Committed are known here to be committed; those after it may
	// have been.
	LastTxid  uint64    `json:"last_txid"`
	Committed uint64    `json:"known_committed"`
	Time      time.Time `json:"time,omitzero"`
	Digest    string    `json:"digest,omitempty"`
	// Nodes are to have a replica, by the directory's facts.
	Nodes []string `json:"nodes"`
	// Incomplete says that a replica is here that can't be used, and why: it
	// was being fetched.
	Incomplete string `json:"incomplete,omitempty"`
	// Fenced is why the replica was fenced, "" if it was not.
	Fenced string `json:"fenced,omitempty"`
	// Restoring reports whether the partition is being restored from a backup,
	// or is a mirror. MirrorOf is then the id of the source.
	Restoring bool   `json:"restoring,omitempty"`
	MirrorOf  string `json:"mirror_of,omitempty"`
	// Standby reports whether the node follows the partition without a vote: it
	// may lack any part of what was acknowledged.
	Standby bool `json:"standby,omitempty"`
}

// ErrNotLost is returned for a directory whose cluster can't have lost a
// majority of its nodes.
var ErrNotLost = errors.New("broker: nothing to recover from")

// OpenRecovery opens the data directory dir and reads what it has. As any start
// of a node does, it first completes what a crash interrupted; otherwise it
// changes nothing. The caller closes the result. The errors to test for are
// those of [wal.Open], fs.ErrNotExist and [ErrNotLost].
func OpenRecovery(dir string, logger *slog.Logger) (*Recovery, error) {
	if _, err := wal.ReadIdentity(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a data directory: %w", dir, err)
	}
	store, err := wal.Open(dir, wal.Options{Recovering: true, Logger: logger})
	if err != nil {
		return nil, err
	}
	r := &Recovery{Identity: store.Identity(), store: store}
	if err := r.read(); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return r, nil
}

// Close closes the directory.
func (r *Recovery) Close() error { return r.store.Close() }

func (r *Recovery) read() (err error) {
	meta := r.store.Log(metaGroup)
	if meta.LastIndex() == 0 || raftstore.Fetching(meta) {
		return fmt.Errorf("%w: the directory has no whole copy of the cluster's facts: its node had not joined completely", ErrNotLost)
	}
	if r.facts, err = storedFacts(meta, r.Identity); err != nil {
		return fmt.Errorf("facts of the cluster: %w", err)
	}
	r.Members = r.facts.Names()
	if !r.Unfinished() && len(r.Members) == 1 && r.Members[0] == r.Identity.Node {
		return fmt.Errorf("%w: node %s is the only member of cluster %s, and needs no other to serve: start it",
			ErrNotLost, r.Identity.Node, r.Identity.Cluster)
	}
	for p := range r.Identity.Partitions {
		s, err := survey(p, r.store.Log(uint32(p)))
		if err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
		s.Nodes = r.facts.Voters(p)
		s.Standby = s.Replica && slices.Contains(r.facts.Followers(p), r.Identity.Node)
		r.Partitions = append(r.Partitions, s)
	}
	return nil
}

// Unfinished reports whether a recovery was begun and not completed.
func (r *Recovery) Unfinished() bool { return r.Identity.Recovering != nil }

// Without returns the partitions of which the directory has no replica that can
// be used.
func (r *Recovery) Without(how wal.Recovering) (all []int) {
	for _, s := range r.Partitions {
		if !s.Replica || s.Fenced != "" && !how.Fenced {
			all = append(all, s.Partition)
		}
	}
	return all
}

// storedFacts returns the facts at the end of a log.
func storedFacts(log *wal.Log, id wal.Identity) (cluster.Facts, error) {
	facts := bootstrapFacts(id)
	index, state, err := raftstore.LastSnapshot(log)
	if err != nil {
		return facts, err
	}
	if state != nil {
		var s metaSnapshot
		if err := json.Unmarshal(state, &s); err != nil {
			return facts, fmt.Errorf("%w: snapshot of the facts: %w", wal.ErrDamaged, err)
		}
		facts = s.Facts
	}
	for e, err := range log.Entries(max(index+1, log.FirstIndex()), log.LastIndex()) {
		if err != nil {
			return facts, err
		}
		if e.Type != 0 {
			continue
		}
		c, err := decodeCommand(e.Data)
		if err != nil {
			return facts, err
		}
		if err := facts.Apply(c); err != nil && !errors.Is(err, cluster.ErrStale) && !errors.Is(err, cluster.ErrCommand) {
			return facts, err
		}
	}
	return facts, nil
}

// survey reads what a log has. Of the entries after the last snapshot it is not
// known whether they are committed.
func survey(partition int, log *wal.Log) (Surviving, error) {
	s := Surviving{Partition: partition, Fenced: string(log.Meta(metaFenced))}
	switch {
	case raftstore.Fetching(log):
		if last := log.LastIndex(); last > 0 {
			s.Incomplete = "it was being fetched from another node"
		}
		return s, nil
	case log.LastIndex() == 0 || beganEmpty(log):
		return s, nil
	}
	at, index, err := snapshotEnd(log)
	if err != nil {
		return s, err
	}
	for e, err := range log.Entries(max(index+1, log.FirstIndex()), log.LastIndex()) {
		if err == nil {
			err = at.follow(&e)
		}
		if err != nil {
			return s, err
		}
	}
	s.Replica, s.LastTxid, s.Committed = true, at.Txid, at.committed
	s.Restoring, s.MirrorOf, s.Digest = at.restoring, at.mirrorOf, fmt.Sprintf("%x", at.Digest[:])
	if at.time > 0 {
		s.Time = time.Unix(0, at.time).UTC()
	}
	return s, nil
}

// survivingEnd is where a log ends, and up to which transaction the log shows
// that it was committed. That goes beyond the last snapshot. A leader proposes
// its first batch when everything before it is committed, and each further one
// when at most maxInflight, itself included, are not. So if the log has a batch
// of a leader's term, what was there before the leader's first batch is
// committed, and so are its own batches but for the last maxInflight.
type survivingEnd struct {
	wal.Base
	time      int64
	restoring bool
	mirrorOf  string // the source, while a mirror is restored

	committed uint64
	term      uint64   // of the last batch
	recent    []uint64 // the last txids of its term's newest batches
}

// batch takes a batch that counts, of an entry in a term.
func (l *survivingEnd) batch(b *wal.Batch, term uint64) {
	switch {
	case b.Term != term: // restored, or of a version whose batches don't say in which term they were certified
		l.recent = nil
		return
	case l.term != term:
		l.committed = max(l.committed, b.First-1)
		l.term, l.recent = term, nil
	}
	if l.recent = append(l.recent, b.Last()); len(l.recent) > maxInflight {
		l.committed, l.recent = max(l.committed, l.recent[0]), l.recent[1:]
	}
}

// snapshotEnd returns where a log's last snapshot ends, and the index there.
func snapshotEnd(log *wal.Log) (at survivingEnd, index uint64, err error) {
	index, state, err := raftstore.LastSnapshot(log)
	if err != nil || state == nil {
		return at, index, err
	}
	var s snapshotState
	if err := json.Unmarshal(state, &s); err != nil {
		return at, index, fmt.Errorf("%w: snapshot state: %w", wal.ErrDamaged, err)
	}
	if len(s.Digest) != len(at.Digest) {
		return at, index, fmt.Errorf("%w: snapshot state: a digest of %d bytes", wal.ErrDamaged, len(s.Digest))
	}
	at = survivingEnd{
		Base: wal.Base{Txid: s.Txid, Digest: wal.Digest(s.Digest)}, time: s.LastTime, restoring: s.Restoring != nil, mirrorOf: s.Restoring.source(),
		committed: s.Txid,
	}
	return at, index, nil
}

// follow moves on by an entry, as a replica that applies it does.
func (l *survivingEnd) follow(e *wal.Entry) error {
	if e.Type != 0 {
		return nil
	}
	b, err := wal.ParseBatch(e.Data)
	if err != nil {
		return fmt.Errorf("%w: entry %d: %w", wal.ErrDamaged, e.Index, err)
	}
	switch b.Kind {
	case wal.Transactions:
		if b.First == l.Txid+1 && e.Restored() == l.restoring && (e.Restored() || !b.OutOfTerm(e.Term)) && b.Time >= l.time && b.Count > 0 {
			l.batch(&b, e.Term)
			l.Txid, l.Digest, l.time = b.Last(), l.Digest.Next(e.Data), b.Time+int64(b.Count)-1
		}
	case wal.Restores:
		var s wal.RestoreStep
		for records := b.Read(); records.NextRestore(&s); {
			switch {
			case s.Begin != nil && !l.restoring && l.Txid == 0:
				l.Base, l.time, l.restoring = s.Begin.Base, s.Begin.Time, true
				if s.Begin.Mirror {
					l.mirrorOf = s.Begin.Cluster
				}
			case s.End != nil && l.restoring && s.End.Base == l.Base:
				l.restoring, l.mirrorOf = false, ""
			}
		}
	}
	return nil
}

// beganEmpty reports whether a log has nothing but the entry with which a
// recovery has begun it.
func beganEmpty(log *wal.Log) bool {
	if log.LastIndex() != 1 || log.FirstIndex() != 1 {
		return false
	}
	e, err := log.Entry(1)
	return err == nil && e.Type != 0
}

// Check returns an error if the directory can't be recovered in this way. name
// is the new cluster's.
func (r *Recovery) Check(name string, how wal.Recovering) error {
	if r.Unfinished() {
		if name != "" && name != r.Identity.Cluster {
			return fmt.Errorf("a recovery to the cluster name %s was begun: complete it with that name", r.Identity.Cluster)
		}
		return nil
	}
	switch {
	case name == "":
		return errors.New("the new cluster needs a name")
	case r.HasBeen(name):
		return fmt.Errorf("%s is the name of the cluster, or was before it was recovered: choose another, "+
			"so that the nodes that are lost can't connect if they come back", name)
	}
	for _, s := range r.Partitions {
		switch without := r.Without(how); {
		case s.Fenced != "" && !how.Fenced:
			return fmt.Errorf("partition %d was fenced here, because %s: recover from another directory, or accept this log (--fenced)", s.Partition, s.Fenced)
		case len(without) > 0 && !how.Empty:
			return fmt.Errorf("the directory has no whole replica of partition %s: recover from a directory that has, or let what it lacks begin empty (--empty)", numbers(without))
		}
	}
	return nil
}

// HasBeen reports whether the directory's cluster has a name, or had it before
// any of its recoveries. The facts know the names from before the node joined.
func (r *Recovery) HasBeen(name string) bool {
	return r.Identity.HasBeen(name) || slices.Contains(r.facts.PastNames, name)
}

// pastNames returns the names that the cluster has had before the one that it
// gets.
func (r *Recovery) pastNames() []string {
	names := slices.Clone(r.facts.PastNames)
	for _, past := range r.Identity.Past {
		if !slices.Contains(names, past.Cluster) {
			names = append(names, past.Cluster)
		}
	}
	return names
}

func numbers(all []int) string {
	var words []string
	for _, n := range all {
		words = append(words, fmt.Sprint(n))
	}
	return strings.Join(words, ", ")
}

// Run makes the directory's node the only member of a new cluster, or completes
// that. When it returns nil the change survives power loss. After an error or a
// crash the directory is as it was, or Run completes it when it is opened
// again. The errors are those of Check, and of writing.
func (r *Recovery) Run(name string, how wal.Recovering) error {
	if err := r.Check(name, how); err != nil {
		return err
	}
	if !r.Unfinished() {
		if err := r.identify(r.Identity.Recover(name, r.facts.Version+1, how)); err != nil {
			return err
		}
		if err := r.after("identity"); err != nil {
			return err
		}
	}
	how = *r.Identity.Recovering
	for _, s := range r.Partitions {
		if err := r.partition(s, how); err != nil {
			return fmt.Errorf("partition %d: %w", s.Partition, err)
		}
		if err := r.after("partition"); err != nil {
			return err
		}
	}
	if err := r.members(); err != nil {
		return fmt.Errorf("facts of the cluster: %w", err)
	}
	if err := r.after("facts"); err != nil {
		return err
	}
	if err := r.secret(); err != nil {
		return err
	}
	if err := r.after("secret"); err != nil {
		return err
	}
	id := r.Identity
	id.Recovering = nil
	return r.identify(id)
}

func (r *Recovery) after(step string) error {
	if r.done == nil {
		return nil
	}
	return r.done(step)
}

func (r *Recovery) identify(id wal.Identity) error {
	if err := r.store.SetIdentity(id); err != nil {
		return err
	}
	r.Identity = id
	return nil
}

// left returns the cluster that the directory leaves.
func (r *Recovery) left() wal.PastMembership { return r.Identity.Past[len(r.Identity.Past)-1] }

// partition makes the node the only voter of a partition, and writes down in
// its log that it was recovered.
func (r *Recovery) partition(s Surviving, how wal.Recovering) error {
	log, left := r.store.Log(uint32(s.Partition)), r.left()
	if !s.Replica {
		if beganEmpty(log) && !raftstore.Fetching(log) {
			return nil
		}
		return raftstore.BeginEmpty(log, r.Identity.Node)
	}
	if e, err := log.Entry(log.LastIndex()); err != nil || recordsRecovery(&e, left.ID) {
		return err
	}
	unfence := []wal.Meta{{Name: metaOrdered}}
	if how.Fenced {
		unfence = append(unfence, wal.Meta{Name: metaFenced})
	}
	if err := log.SetMeta(unfence...); err != nil {
		return err
	}
	var w wal.BatchWriter
	w.Begin(wal.Restores, s.LastTxid, time.Now().UnixNano(), 0)
	w.AddRestore(wal.RestoreStep{Recovered: &wal.LogRecovered{
		Cluster: left.ID, Node: r.Identity.Node, Committed: s.Committed, Time: left.Left.UnixNano(),
	}})
	return raftstore.SoleVoter(log, r.Identity.Node, w.Finish())
}

// recordsRecovery reports whether an entry says that the log was recovered from
// a cluster.
func recordsRecovery(e *wal.Entry, cluster string) bool {
	if e.Type != 0 {
		return false
	}
	b, err := wal.ParseBatch(e.Data)
	if err != nil || b.Kind != wal.Restores {
		return false
	}
	var s wal.RestoreStep
	records := b.Read()
	return records.NextRestore(&s) && s.Recovered != nil && s.Recovered.Cluster == cluster
}

// members makes the node the only member by the facts, and their only voter.
func (r *Recovery) members() error {
	id := r.Identity
	if slices.Equal(r.facts.Names(), []string{id.Node}) && r.facts.Nodes[id.Node].ID == id.NodeID {
		return nil // an earlier attempt got so far
	}
	c := cluster.Command{Kind: cluster.Recover, Node: id.Node, Member: cluster.Member{ID: id.NodeID}, PastNames: r.pastNames()}
	return raftstore.SoleVoter(r.store.Log(metaGroup), id.Node, encodeCommand(c))
}

// secret makes a new secret, so that the lost nodes have none that counts. One
// that derives from a token stays: all that is derived from it also depends on
// the cluster's id.
func (r *Recovery) secret() error {
	have, err := wal.ReadSecret(r.store.Dir())
	switch {
	case err == nil && have.Token:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return wal.WriteSecret(r.store.Dir(), newSecret())
}

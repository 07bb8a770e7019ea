package broker

import (
	"context"
	"encoding/hex"
	"math"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// partitionInfo describes a partition to clients.
type partitionInfo struct {
	partition int // by the cluster's numbers
	number    int // as clients see it
	part      cluster.Part
	self      string // this node
	state     *partitionState
	group     *raftstore.Group
	peers     *peers
	term      func() uint64 // see replica.readTerm
	fullText  func() string // why transactions can't be stored, "" if they can
	requests  *requestServer
	times     timeSearch
	archived  *archiveReader
	retention func() *subjects.RetentionInfo
	limits    func() *subjects.LimitInfo
}

// serve describes the partition. The answer is linearizable: a majority
// has confirmed the leader since the question.
func (i *partitionInfo) serve(ctx context.Context, m *natslink.Message) error {
	at, err := infoBody(m.Payload)
	if err != nil {
		return err
	}
	if err := i.group.VerifyLeader(ctx, i.term()); err != nil {
		return err
	}
	var asOf *uint64
	if at != nil {
		txid, err := i.lastAt(ctx, at.UnixNano())
		if err != nil {
			return err
		}
		asOf = &txid
	}
	info := i.info()
	info.AsOf = asOf
	i.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(info)))
	return nil
}

// infoBody returns the time that the request names, nil if it names none.
func infoBody(body []byte) (*time.Time, error) {
	var r struct {
		At *string `json:"at"`
	}
	if err := smallJSON(body, &r); err != nil || r.At == nil {
		return nil, err
	}
	at, err := subjects.ParseTime(*r.At)
	if err != nil {
		return nil, subjects.Errorf(subjects.BadRequest, "at: %v", err)
	}
	return &at, nil
}

// lastAt returns the txid of the last transaction at or before a time, in Unix
// nanoseconds.
func (i *partitionInfo) lastAt(ctx context.Context, at int64) (txid uint64, err error) {
	if at == math.MaxInt64 {
		return i.state.mark.Load(), nil
	}
	next, err := i.times.find(ctx, at+1, 1)
	if err != nil {
		return 0, err
	}
	return next - 1, nil
}

func (i *partitionInfo) info() subjects.PartitionInfo {
	status, now, full, retention := i.group.Status(), time.Now(), i.fullText(), i.retention()
	limits := i.limits()
	s := i.state
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.certifier.stats()
	info := subjects.PartitionInfo{
		Partition: i.number, FirstTxid: s.first, HighWaterMark: s.mark.Load(), Digest: hex.EncodeToString(s.digest[:]),
		BaseDigest: hex.EncodeToString(s.base.Digest[:]),
		Leader:     status.Leader, Term: status.Term,
		Locks:       subjects.LockInfo{Tracked: stats.Locks, Capacity: stats.Capacity, Floor: stats.Floor},
		StorageFull: full, Restoring: s.restoring.hides(), MirrorOf: s.restoring.source(), Promoted: s.mirrored && !s.isRestoring(), History: pastClusters(s.history), Retention: retention,
		Namespace: i.part.Namespace, Number: i.part.Number, Limits: limits,
	}
	info.ArchivedFrom, info.NotArchived = i.archived.from(s.base)
	for _, rep := range status.Replicas {
		shown := subjects.ReplicaInfo{Name: rep.Name, Voter: rep.Voter, State: "follower"}
		if rep.Name == i.self {
			shown.State, shown.HighWaterMark = status.State, info.HighWaterMark
		} else if said, ok := i.peers.report(rep.Name, i.partition, now); ok {
			shown.State, shown.HighWaterMark = said.State, said.Txid
		} else {
			shown.State = "away"
		}
		info.Replicas = append(info.Replicas, shown)
	}
	return info
}

func pastClusters(history []wal.PastCluster) (all []subjects.PastCluster) {
	for _, p := range history {
		all = append(all, subjects.PastCluster{Cluster: p.ID, LastTxid: p.LastTxid})
	}
	return all
}

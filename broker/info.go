package broker

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// partitionInfo describes a partition to clients.
type partitionInfo struct {
	partition int
	self      string // this node
	replica   *replica
	group     *raftstore.Group
	peers     *peers
	term      func() uint64 // see partition.readTerm
	fullText  func() string // why transactions can't be stored, "" if they can
	requests  *requestServer
}

// serve describes the partition. The answer is linearizable: a majority
// has confirmed the leader since the question.
func (i *partitionInfo) serve(ctx context.Context, m *natslink.Message) error {
	if err := noBody(m.Payload); err != nil {
		return err
	}
	if err := i.group.VerifyLeader(ctx, i.term()); err != nil {
		return err
	}
	i.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(i.info())))
	return nil
}

func (i *partitionInfo) info() subjects.PartitionInfo {
	status, now, full := i.group.Status(), time.Now(), i.fullText()
	r := i.replica
	r.mu.Lock()
	defer r.mu.Unlock()
	stats := r.certifier.stats()
	info := subjects.PartitionInfo{
		Partition: i.partition, FirstTxid: r.first, HighWaterMark: r.mark.Load(), Digest: hex.EncodeToString(r.digest[:]),
		BaseDigest: hex.EncodeToString(r.base.Digest[:]),
		Leader:     status.Leader, Term: status.Term,
		Locks:       subjects.LockInfo{Tracked: stats.Locks, Capacity: stats.Capacity, Floor: stats.Floor},
		StorageFull: full,
	}
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

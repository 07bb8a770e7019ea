package broker

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// serveInfo describes the partition. The answer is linearizable: a majority
// has confirmed the leader since the question.
func (p *partition) serveInfo(ctx context.Context, m *natslink.Message) error {
	if err := noBody(m.Payload); err != nil {
		return err
	}
	if err := p.group.VerifyLeader(ctx, p.readTerm.Load()); err != nil {
		return err
	}
	p.answerRead(natslink.AppendPub(nil, m.Reply, mustJSON(p.info())))
	return nil
}

func (p *partition) info() subjects.PartitionInfo {
	status, now, full := p.group.Status(), time.Now(), p.gate.fullText()
	r := p.replica
	r.mu.Lock()
	defer r.mu.Unlock()
	stats := r.certifier.stats()
	info := subjects.PartitionInfo{
		Partition: p.id, FirstTxid: r.first, HighWaterMark: r.mark.Load(), Digest: hex.EncodeToString(r.digest[:]),
		Leader: status.Leader, Term: status.Term,
		Locks:       subjects.LockInfo{Tracked: stats.Locks, Capacity: stats.Capacity, Floor: stats.Floor},
		StorageFull: full,
	}
	for _, rep := range status.Replicas {
		i := subjects.ReplicaInfo{Name: rep.Name, Voter: rep.Voter, State: "follower"}
		if rep.Name == p.host.name {
			i.State, i.HighWaterMark = status.State, info.HighWaterMark
		} else if said, ok := p.host.peers.report(rep.Name, p.id, now); ok {
			i.State, i.HighWaterMark = said.State, said.Txid
		} else {
			i.State = "away"
		}
		info.Replicas = append(info.Replicas, i)
	}
	return info
}

package broker

import (
	"context"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// reader answers reads from the log of a partition's replica.
type reader struct {
	partition  int
	cluster    string // its id
	names      subjects.Names
	metrics    *partitionMetrics
	store      *wal.Log
	position   func() position
	history    func() []wal.PastCluster
	newest     func(lock string) (txid uint64, exact bool) // the newest transaction that recorded a lock
	unsendable *unsendable
	nats       natsInfo
	answers    transmitter
	pacer      *pacer
	scans      *semaphore.Weighted // reads that search a log
	times      timeSearch
	archived   *archiveReader
	indexer    *indexer
}

// serveRead answers a read on the leader.
func (r *reader) serveRead(ctx context.Context, m *natslink.Message) error {
	q, err := parseQuery(m.Payload)
	if err != nil {
		return err
	}
	at := r.position()
	if at.restoring {
		return errRestoring(r.partition)
	}
	if q.limit, err = r.checkHistory(q, at); err != nil {
		return err
	}
	most := at.mark + 1
	if q.newest {
		most = at.mark
	}
	// A mirror may be behind what its reader has from the source.
	if q.from > most && at.mirrorOf == "" {
		return aheadError("from", q.from, r.partition, at.mark)
	}
	return r.read(ctx, m.Reply, q)
}

// serveReplicaRead answers a read from this replica's log: it waits for
// transactions that the replica does not have yet.
func (r *reader) serveReplicaRead(ctx context.Context, m *natslink.Message) error {
	q, err := parseQuery(m.Payload)
	if err != nil {
		return err
	}
	if q.limit, err = r.checkHistory(q, r.position()); err != nil {
		if at := r.position(); at.mark == 0 { // it may not know yet what was restored
			return errBehind(r.partition)
		}
		return err
	}
	return r.read(ctx, m.Reply, q)
}

// errBehind refuses a read from a replica that has nothing yet.
func errBehind(partition int) error {
	return subjects.Errorf(subjects.Unavailable, "this replica of partition %d has no transaction yet: try again", partition)
}

// checkHistory refuses a read if the client's transactions before q.from are
// from another cluster and are not in this partition. If they are, and a past
// cluster committed them, limit is the last transaction from that cluster: the
// read ends there, so the client never takes a transaction from a cluster other
// than the one that it named.
//
// A mirror's transactions are those of its source, and have its id.
func (r *reader) checkHistory(q query, at position) (limit uint64, err error) {
	had := q.from - 1
	if q.cluster == "" || q.cluster == r.cluster || q.cluster == at.mirrorOf || had == 0 {
		return 0, nil
	}
	for _, p := range r.history() {
		if p.ID != q.cluster {
			continue
		}
		if had <= p.LastTxid {
			return p.LastTxid, nil
		}
		e := subjects.Errorf(subjects.Ahead,
			"transaction %d is from cluster %s, of which partition %d has the transactions up to %d: it was restored, promoted or recovered there, "+
				"and has another history since; go on from a state that is not later than transaction %d",
			had, q.cluster, r.partition, p.LastTxid, p.LastTxid)
		e.Txid, e.Cluster = p.LastTxid, r.answeringCluster(q, at)
		return 0, e
	}
	e := subjects.Errorf(subjects.Ahead,
		"transaction %d is from cluster %s, of which partition %d has nothing here, in cluster %s: this is another log; check the address, or begin anew",
		had, q.cluster, r.partition, r.answeringCluster(q, at))
	e.Cluster = r.answeringCluster(q, at)
	return 0, e
}

// answeringCluster returns the id of the cluster that an answer names: the
// source's on a mirror. A reader that already follows this cluster keeps its
// id: this replica may not have applied the promotion yet.
func (r *reader) answeringCluster(q query, at position) string {
	if at.mirrorOf == "" || q.cluster == r.cluster {
		return r.cluster
	}
	return at.mirrorOf
}

// serveGet answers with one transaction.
func (r *reader) serveGet(ctx context.Context, m *natslink.Message) error {
	var g struct {
		Txid  *uint64 `json:"txid"`
		Lock  *string `json:"lock"`
		MsgID *string `json:"msg_id"`

		Session    *string `json:"session"`
		SessionSeq *uint64 `json:"session_seq"`
	}
	if err := smallJSON(m.Payload, &g); err != nil {
		return err
	}
	given := 0
	for _, is := range []bool{g.Txid != nil, g.Lock != nil, g.MsgID != nil, g.Session != nil} {
		if is {
			given++
		}
	}
	switch {
	case given != 1 || (g.Session != nil) != (g.SessionSeq != nil):
		return subjects.Errorf(subjects.BadRequest, `body: give one of {"txid":812}, {"lock":"account.42"}, {"msg_id":"7f2c"} and {"session":"w7f2c","session_seq":3}`)
	case g.Session != nil:
		return r.getByNumber(ctx, m.Reply, *g.Session, *g.SessionSeq)
	case g.Lock != nil:
		return r.getByLock(ctx, m.Reply, *g.Lock)
	case g.MsgID != nil:
		return r.getByMsgID(ctx, m.Reply, *g.MsgID)
	case *g.Txid == 0:
		return subjects.Errorf(subjects.BadRequest, "txid is 0: txids begin at 1")
	}
	return r.get(ctx, m.Reply, *g.Txid)
}

func (r *reader) getByLock(ctx context.Context, reply, lock string) error {
	if err := subjects.CheckLock(lock); err != nil {
		return err
	}
	at := r.position()
	if at.restoring {
		return errRestoring(r.partition)
	}
	txid, exact := r.newest(lock)
	if exact {
		return r.get(ctx, reply, txid)
	}
	return r.getNewest(ctx, reply, at, min(txid, at.mark), query{lock: lock, fromTime: math.MinInt64},
		fmt.Sprintf("has recorded a lock that overlaps %q", lock))
}

func (r *reader) getByMsgID(ctx context.Context, reply, id string) error {
	if err := subjects.CheckMsgID(id); err != nil {
		return err
	}
	at := r.position()
	if at.restoring {
		return errRestoring(r.partition)
	}
	return r.getNewest(ctx, reply, at, at.mark, query{msgID: id, fromTime: math.MinInt64}, fmt.Sprintf("has the message id %q", id))
}

func (r *reader) getByNumber(ctx context.Context, reply, session string, seq uint64) error {
	if err := subjects.CheckSession(session); err != nil {
		return err
	}
	if seq == 0 {
		return subjects.Errorf(subjects.BadRequest, "session_seq is 0: the first transaction of a session has number 1")
	}
	at := r.position()
	if at.restoring {
		return errRestoring(r.partition)
	}
	return r.getNewest(ctx, reply, at, at.mark, query{session: session, seq: seq, fromTime: math.MinInt64}, fmt.Sprintf("is number %d of session %q", seq, session))
}

// getNewest answers with the newest transaction, up to one, that a query asks
// for. what describes these.
func (r *reader) getNewest(ctx context.Context, reply string, at position, from uint64, q query, what string) error {
	q.newest = true
	txid, next, err := r.findNewest(ctx, at, &q, from, at.first, new(scanned))
	switch {
	case err != nil:
		return err
	case txid > 0:
		return r.get(ctx, reply, txid)
	case next >= at.first:
		return subjects.Errorf(subjects.Busy, "no transaction after %d %s, and this node's index has none of the older ones at the moment: try again, or read with a filter", next, what)
	case at.first > 1:
		return subjects.Errorf(subjects.NotFound, "no transaction %s of those that are kept, from %d on", what, at.first)
	}
	return subjects.Errorf(subjects.NotFound, "no transaction %s", what)
}

// transactionIn sets t to a transaction of a batch.
func transactionIn(b wal.Batch, txid uint64, t *wal.Transaction) error {
	records := b.Read()
	records.Skip(int(txid - b.First))
	if !records.Next(t) {
		return errors.Join(wal.ErrDamaged, records.Err())
	}
	return nil
}

func (r *reader) get(ctx context.Context, reply string, txid uint64) error {
	at := r.position()
	switch {
	case at.restoring:
		return errRestoring(r.partition)
	case txid > at.mark && at.mirrorOf != "":
		return subjects.Errorf(subjects.Unavailable, "partition %d is a mirror of cluster %s, and has the transactions up to %d so far", r.partition, at.mirrorOf, at.mark)
	case txid > at.mark:
		return aheadError("txid", txid, r.partition, at.mark)
	}
	var t wal.Transaction
	if txid < at.first {
		batches, err := r.archived.get(ctx, txid, at)
		if err != nil {
			return err
		}
		if err := transactionIn(batches[0], txid, &t); err != nil {
			return err
		}
		r.metrics.readArchive(recordBytes(&t))
	} else {
		w := r.walker(at)
		defer w.close()
		if err := w.read(txid, &t); err != nil {
			return err
		}
	}
	enc := encoder{partition: r.partition, names: r.names}
	if err := r.unsendable.mustFit(&enc, &t, true, false, r.nats.MaxPayload()); err != nil {
		return err
	}
	return r.answers.Send(enc.append(nil, reply, &t, true))
}

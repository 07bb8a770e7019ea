package broker

import (
	"context"
	"errors"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// reader answers reads from the log of a partition's replica.
type reader struct {
	partition  int
	names      subjects.Names
	metrics    *partitionMetrics
	store      *wal.Log
	position   func() position
	newest     func(lock string) (txid uint64, exact bool) // the newest transaction that recorded a lock
	unsendable *unsendable
	nats       natsInfo
	answers    transmitter
	pacer      *pacer
	scans      *semaphore.Weighted // reads that search a log
	times      timeSearch
}

// serveRead answers a read on the leader.
func (r *reader) serveRead(ctx context.Context, m *natslink.Message) error {
	q, err := parseQuery(m.Payload)
	if err != nil {
		return err
	}
	at := r.position()
	if q.from > at.mark+1 {
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
	return r.read(ctx, m.Reply, q)
}

// serveGet answers with one transaction.
func (r *reader) serveGet(_ context.Context, m *natslink.Message) error {
	var g struct {
		Txid *uint64 `json:"txid"`
		Lock *string `json:"lock"`
	}
	if err := smallJSON(m.Payload, &g); err != nil {
		return err
	}
	switch {
	case (g.Txid == nil) == (g.Lock == nil):
		return subjects.Errorf(subjects.BadRequest, `body: give either {"txid":812} or {"lock":"account.42"}`)
	case g.Lock != nil:
		return r.getByLock(m.Reply, *g.Lock)
	case *g.Txid == 0:
		return subjects.Errorf(subjects.BadRequest, "txid is 0: txids begin at 1")
	}
	return r.get(m.Reply, *g.Txid)
}

func (r *reader) getByLock(reply, lock string) error {
	if err := subjects.CheckLock(lock); err != nil {
		return err
	}
	txid, exact := r.newest(lock)
	switch {
	case !exact && txid == 0:
		return subjects.Errorf(subjects.NotFound, "no transaction has recorded a lock that overlaps %q", lock)
	case !exact:
		return subjects.Errorf(subjects.NotFound, "no transaction after %d has recorded a lock that overlaps %q; older ones are forgotten", txid, lock)
	}
	return r.get(reply, txid)
}

func (r *reader) get(reply string, txid uint64) error {
	at := r.position()
	switch {
	case txid > at.mark:
		return aheadError("txid", txid, r.partition, at.mark)
	case txid < at.first:
		return wal.ErrTrimmed
	}
	var t wal.Transaction
	for _, b := range r.store.Batches(txid, at.index) {
		if b.Err != nil {
			return b.Err
		}
		records := b.Batch.Read()
		records.Skip(int(txid - b.Batch.First))
		if !records.Next(&t) {
			return errors.Join(wal.ErrDamaged, records.Err())
		}
		break
	}
	enc := encoder{partition: r.partition, names: r.names}
	if err := r.unsendable.mustFit(&enc, &t, true, false, r.nats.MaxPayload()); err != nil {
		return err
	}
	return r.answers.Send(enc.append(nil, reply, &t, true))
}

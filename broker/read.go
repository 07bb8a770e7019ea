package broker

import (
	"context"
	"errors"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// readsAtOnce bounds the reads that the node serves at a time, those that wait at
// the end of a log included.
const readsAtOnce = 4096

var errTooManyReads = errors.New("broker: too many reads")

// onRead returns a handler that serves each message on a goroutine of its own.
func (p *partition) onRead(ctx context.Context, serve func(context.Context, *natslink.Message) error) func(*natslink.Message) {
	return func(m *natslink.Message) {
		if m.Reply == "" {
			return // there is nowhere to send the answer
		}
		err := p.host.startRead(func() {
			began := time.Now()
			defer func() { p.metrics.answered(endpoint(p.host.names, m.Subject), 1, time.Since(began)) }()
			term := p.readTerm.Load()
			switch err := serve(ctx, m); {
			case errors.Is(err, errNoSubscriber): // nor is there one for a refusal
			case err != nil:
				p.answerRead(p.refuseRead(m, p.confirmRefusal(term, p.readError(err))))
			}
		})
		if err != nil {
			p.host.readSender.Send(p.refuseRead(m, p.readError(err)))
		}
	}
}

// confirmRefusal returns refused, but turns `ahead` into `unavailable` unless a
// majority confirms that this node still leads in term.
func (p *partition) confirmRefusal(term uint64, refused *subjects.Error) *subjects.Error {
	if refused.Reason == subjects.Ahead && !p.confirmLeader(term) {
		return notConfirmedError(p.id)
	}
	return refused
}

// readError returns an error of a read as clients see it.
func (p *partition) readError(err error) *subjects.Error {
	switch {
	case errors.Is(err, errNotTaken):
		return subjects.Errorf(subjects.Busy,
			"the connection that the answer goes to takes nothing: it is too far behind with what was sent to it before")
	case errors.Is(err, errTooManyReads):
		return subjects.Errorf(subjects.Busy, "the node serves %d reads already: back off and try again", readsAtOnce)
	case errors.Is(err, errScansBusy):
		return subjects.Errorf(subjects.Busy, "too many reads go through the node's logs: back off and try again")
	case errors.Is(err, context.Canceled):
		return subjects.Errorf(subjects.Unavailable, "this node does not serve partition %d any more: try again", p.id)
	case errors.Is(err, wal.ErrTrimmed):
		first := p.replica.position().first
		e := subjects.Errorf(subjects.Trimmed, "that transaction was trimmed: the oldest kept is %d", first)
		e.FirstTxid = first
		return e
	}
	e := wireError(err)
	if e.Reason == subjects.Internal {
		p.log.Error("read failed", "err", err)
	}
	return e
}

func (p *partition) refuseRead(m *natslink.Message, e *subjects.Error) []byte {
	p.metrics.refused(endpoint(p.host.names, m.Subject), e.Reason)
	return appendRefusal(nil, m.Reply, e, map[string]any{
		"partition": p.id, "error": e, "high_water_mark": p.replica.position().mark,
	})
}

func (p *partition) answerRead(out []byte) {
	if err := p.host.reads.Send(out); err != nil {
		p.log.Debug("answer not sent", "err", err)
	}
}

// serveRead answers a read on the leader.
func (p *partition) serveRead(ctx context.Context, m *natslink.Message) error {
	q, err := parseQuery(m.Payload)
	if err != nil {
		return err
	}
	at := p.replica.position()
	if q.from > at.mark+1 {
		return aheadError("from", q.from, p.id, at.mark)
	}
	return p.read(ctx, m.Reply, q)
}

// serveReplicaRead answers a read from this replica's log: it waits for transactions
// that the replica does not have yet.
func (p *partition) serveReplicaRead(ctx context.Context, m *natslink.Message) error {
	q, err := parseQuery(m.Payload)
	if err != nil {
		return err
	}
	return p.read(ctx, m.Reply, q)
}

// serveGet answers with one transaction.
func (p *partition) serveGet(_ context.Context, m *natslink.Message) error {
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
		return p.getByLock(m.Reply, *g.Lock)
	case *g.Txid == 0:
		return subjects.Errorf(subjects.BadRequest, "txid is 0: txids begin at 1")
	}
	return p.get(m.Reply, *g.Txid)
}

func (p *partition) getByLock(reply, lock string) error {
	if err := subjects.CheckLock(lock); err != nil {
		return err
	}
	txid, exact := p.replica.certifier.newest(lock)
	switch {
	case !exact && txid == 0:
		return subjects.Errorf(subjects.NotFound, "no transaction has recorded a lock that overlaps %q", lock)
	case !exact:
		return subjects.Errorf(subjects.NotFound, "no transaction after %d has recorded a lock that overlaps %q; older ones are forgotten", txid, lock)
	}
	return p.get(reply, txid)
}

func (p *partition) get(reply string, txid uint64) error {
	at := p.replica.position()
	switch {
	case txid > at.mark:
		return aheadError("txid", txid, p.id, at.mark)
	case txid < at.first:
		return wal.ErrTrimmed
	}
	var t wal.Transaction
	for _, b := range p.store.Batches(txid, at.index) {
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
	enc := encoder{partition: p.id, names: p.host.names}
	if err := p.unsendable.mustFit(&enc, &t, true, false, p.host.nats.MaxPayload()); err != nil {
		return err
	}
	return p.host.reads.Send(enc.append(nil, reply, &t, true))
}

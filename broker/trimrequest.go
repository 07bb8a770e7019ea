package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// serveTrim trims the partition, by txid, age or size.
func (p *partition) serveTrim(ctx context.Context, m *natslink.Message) error {
	keep, err := p.keepFrom(m.Payload)
	if err != nil {
		return err
	}
	reply := subjects.TrimReply{Partition: p.id}
	if keep > 0 {
		if err := p.gate.awaitProposed(ctx); err != nil {
			return err
		}
		w, id := p.trimBatch(keep)
		a, err := p.gate.outcome(p.group.Propose(w))
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
			reply.Because = fmt.Sprintf("the log can be trimmed every %d transactions, 16 MiB or hour, and there is no such point between transactions %d and %d", pointEvery, first, keep)
		}
	}
	reply.FirstTxid = p.replica.position().first
	p.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(reply)))
	return nil
}

// trimBatch returns the batch that trims the transactions before txid keep. It keeps those
// from the oldest transaction on whose message id still counts: no replica could remember
// that id after a restart. If that transaction is before keep, id is its txid.
//
// The batch's time becomes the partition's time, so that an id which no longer counts now
// does not count afterwards either.
func (p *partition) trimBatch(keep uint64) (batch []byte, id uint64) {
	keep, id, last, now := p.replica.certifier.trimFrom(keep)
	var w wal.BatchWriter
	w.Begin(wal.Trims, last, now, 0)
	w.AddRaw(trimRecord(keep))
	return w.Finish(), id
}

// keepFrom returns the oldest txid that a trim request wants to keep.
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

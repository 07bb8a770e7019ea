package broker

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// trimmer removes a partition's oldest transactions when an operator asks for
// it. A trim is an entry of the log; see trimPoint.
type trimmer struct {
	partition int
	log       *slog.Logger
	store     *wal.Log
	replica   *replica
	group     *raftstore.Group
	gate      *diskGate
	requests  *requestServer
	advise    func(event string, fields map[string]any)
	// step, if not nil, is called before each step of trimming the log. It is
	// for tests.
	step func(name string)
}

// run trims the log as trim records are applied, until stop is closed. A
// snapshot is taken before each trim, so that a restart needs nothing that was
// trimmed.
func (t *trimmer) run(stop <-chan struct{}) {
	for reported := uint64(0); ; {
		reported = t.trimLog(reported)
		select {
		case <-stop:
			return
		case <-t.replica.trimmed:
		}
	}
}

// trimLog trims the log if a trim record was applied. It returns the oldest
// transaction kept, and logs and publishes it unless it is reported.
func (t *trimmer) trimLog(reported uint64) uint64 {
	r := t.replica
	r.mu.Lock()
	through, txid := r.trimIndex, r.first
	r.mu.Unlock()
	if through == 0 || t.store.FirstIndex() > through {
		return reported
	}
	step := t.step
	if step == nil {
		step = func(string) {}
	}
	step("snapshot")
	err := t.group.Snapshot()
	if err == nil {
		step("trim")
		err = t.group.Trim(through)
	}
	if err != nil {
		t.log.Warn("trimmed transactions still use disk space", "err", err)
		return reported
	}
	if txid != reported {
		t.log.Info("trimmed", "first_txid", txid)
		t.advise("trim", map[string]any{"partition": t.partition, "first_txid": txid})
	}
	return txid
}

// serve trims the partition, by txid, age or size.
func (t *trimmer) serve(ctx context.Context, m *natslink.Message) error {
	keep, err := t.keepFrom(m.Payload)
	if err != nil {
		return err
	}
	if t.replica.position().restoring {
		return errRestoring(t.partition)
	}
	reply := subjects.TrimReply{Partition: t.partition}
	if keep > 0 {
		if err := t.gate.awaitProposed(ctx); err != nil {
			return err
		}
		w, id := t.batch(keep)
		a, err := t.gate.outcome(t.group.Propose(w))
		if err != nil {
			return err
		}
		switch {
		case a.failed:
			return raftstore.ErrUnknown
		case a.void:
			return errRestoring(t.partition)
		}
		first := t.replica.position().first
		switch {
		case id > 0:
			reply.Because = fmt.Sprintf("the message id of transaction %d still counts: ids are remembered for %v; trim again when they are not", id, t.replica.window)
		case first < keep:
			reply.Because = fmt.Sprintf("the log can be trimmed every %d transactions, 16 MiB or hour, and there is no such point between transactions %d and %d", pointEvery, first, keep)
		}
	}
	reply.FirstTxid = t.replica.position().first
	t.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(reply)))
	return nil
}

// batch returns the batch that trims the transactions before txid keep. It
// keeps those from the oldest transaction on whose message id still counts: no
// replica could remember that id after a restart. If that transaction is before
// keep, id is its txid.
//
// The batch's time becomes the partition's time, so that an id which no longer
// counts now does not count afterwards either.
func (t *trimmer) batch(keep uint64) (batch []byte, id uint64) {
	keep, id, last, now := t.replica.certifier.trimFrom(keep)
	var w wal.BatchWriter
	w.Begin(wal.Trims, last, now, 0)
	w.AddRaw(trimRecord(keep))
	return w.Finish(), id
}

// keepFrom returns the oldest txid that a trim request wants to keep.
func (t *trimmer) keepFrom(body []byte) (uint64, error) {
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
	case r.Before > t.replica.position().mark+1:
		return 0, subjects.Errorf(subjects.Ahead, "before is %d, the high-water mark %d", r.Before, t.replica.position().mark)
	case r.Before > 0:
		return r.Before, nil
	case r.Bytes > 0:
		return t.replica.keepFrom(0, r.Bytes), nil
	}
	age, err := subjects.ParseDuration(r.Age)
	if err != nil || age == 0 {
		return 0, subjects.Errorf(subjects.BadRequest, `body: age %q is not a time, such as "720h"`, r.Age)
	}
	return t.replica.keepFrom(time.Now().Add(-age).UnixNano(), 0), nil
}

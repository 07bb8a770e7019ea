package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// trimmer removes a partition's oldest transactions, at an operator's request
// or by its retention policy. A trim is an entry of the log; see trimPoint.
type trimmer struct {
	partition int
	log       *slog.Logger
	store     *wal.Log
	state     *partitionState
	group     *raftstore.Group
	gate      *diskGate
	requests  *requestServer
	advise    func(event string, fields map[string]any)
	// step, if not nil, is called before each step of trimming the log. It is
	// for tests.
	step func(name string)
	// contradicted is called if the log is not the one of a trim record.
	contradicted func(error)

	mu sync.Mutex // held while a trim is computed and proposed
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
		case <-t.state.trimmed:
		}
	}
}

// trimLog trims the log if a trim record was applied. It returns the oldest
// transaction kept, and logs and publishes it unless it is reported.
func (t *trimmer) trimLog(reported uint64) uint64 {
	s := t.state
	s.mu.Lock()
	through, txid, check, base := s.trimIndex, s.first, s.unchecked, s.basePoint()
	s.mu.Unlock()
	if through == 0 || t.store.FirstIndex() > through {
		return reported
	}
	step := t.step
	if step == nil {
		step = func(string) {}
	}
	if check != nil && !t.isOwn(check, base, through) {
		return reported
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

// isOwn reports whether a point at which the log is to begin is one of the log.
func (t *trimmer) isOwn(check *trimCheck, base trimPoint, through uint64) bool {
	switch err := check.compareBase(t.store, base.Base, through); {
	case errors.Is(err, errOtherTrim):
		t.contradicted(err)
		return false
	case errors.Is(err, wal.ErrDamaged):
		t.log.Warn("what a trim deletes was not compared: part of it can't be read", "err", err)
	case err != nil:
		t.log.Debug("what a trim deletes was not compared", "err", err)
		return false
	}
	t.state.checked(check, base)
	return true
}

// serve trims the partition, by txid, age or size.
func (t *trimmer) serve(ctx context.Context, m *natslink.Message) error {
	may, before, err := t.request(m.Payload)
	if err != nil {
		return err
	}
	if t.state.position().restoring {
		return errRestoring(t.partition)
	}
	done, err := t.trim(ctx, may)
	if err != nil {
		return err
	}
	reply := subjects.TrimReply{Partition: t.partition, FirstTxid: t.state.position().first}
	switch {
	case done.unreadable != nil:
		reply.Because = fmt.Sprintf("the transactions from %d on can't be read: the node's log says more", done.next)
	case done.held > 0:
		reply.Because = fmt.Sprintf("the message id of transaction %d is not old enough: ids are remembered for %v at least; trim again later", done.held, t.state.window)
	case reply.FirstTxid < before:
		reply.Because = fmt.Sprintf("transaction %d is in the batch that begins with %d: a trim removes whole batches", before, reply.FirstTxid)
	}
	t.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(reply)))
	return nil
}

// trimDone is how a trim ended.
type trimDone struct {
	next       uint64 // the first transaction that the trim did not remove
	held       uint64 // the transaction whose message id keeps it and what follows, 0 if none does
	unreadable error  // why the log could not be read from next on
}

// trim removes the oldest transactions up to the last point that may go. may
// must hold for all points up to some point, and for none after it.
func (t *trimmer) trim(ctx context.Context, may func(trimPoint) bool) (done trimDone, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.gate.awaitProposed(ctx); err != nil {
		return done, err
	}
	batch, done, err := t.batch(may)
	if batch == nil || err != nil {
		return done, err
	}
	a, err := t.gate.outcome(t.group.Propose(batch))
	switch {
	case err != nil:
		return done, err
	case a.failed:
		return done, raftstore.ErrUnknown
	case a.void:
		return done, errRestoring(t.partition)
	}
	return done, nil
}

// batch returns the batch that trims the log up to the last point that may go,
// nil if none may. It keeps the transactions from the oldest on whose message
// id still counts: no replica could remember that id after a restart.
//
// The batch's time becomes the partition's time, so that an id which no longer
// counts now does not count afterwards either.
func (t *trimmer) batch(may func(trimPoint) bool) (batch []byte, done trimDone, err error) {
	at, found, err := t.state.lastPointThat(may)
	_, held, last, now := t.state.certifier.trimFrom(at.Txid + 1)
	if held > 0 && err == nil {
		at, found, err = t.state.lastPointThat(func(p trimPoint) bool { return may(p) && p.Txid < held })
	}
	done = trimDone{next: at.Txid + 1, held: held}
	switch {
	case errors.Is(err, wal.ErrDamaged):
		t.log.Warn("the log can't be read to trim it", "from_txid", done.next, "err", err)
		done.unreadable = err
	case err != nil:
		return nil, done, err
	}
	if !found {
		return nil, done, nil
	}
	var w wal.BatchWriter
	w.Begin(wal.Trims, last, now, 0)
	w.AddRaw(trimRecord(at))
	return w.Finish(), done, nil
}

// request returns which points a trim request allows to go, and the oldest txid
// that it wants to keep, if it names one.
func (t *trimmer) request(body []byte) (may func(trimPoint) bool, before uint64, err error) {
	var r subjects.TrimRequest
	if err := smallJSON(body, &r); err != nil {
		return nil, 0, err
	}
	given := 0
	for _, is := range []bool{r.Before > 0, r.Age != "", r.Bytes > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, 0, subjects.Errorf(subjects.BadRequest, `body: give exactly one of {"before":100000}, {"age":"720h"} and {"bytes":1000000000}`)
	}
	switch mark := t.state.position().mark; {
	case r.Before > mark+1:
		return nil, 0, subjects.Errorf(subjects.Ahead, "before %d is past the last transaction, which is %d: give at most %d", r.Before, mark, mark+1)
	case r.Before > 0:
		return func(p trimPoint) bool { return p.Txid < r.Before }, r.Before, nil
	case r.Bytes > 0:
		size := t.state.size()
		return func(p trimPoint) bool { return p.bytes <= size && size-p.bytes >= r.Bytes }, 0, nil
	}
	age, err := subjects.ParseDuration(r.Age)
	if err != nil || age == 0 {
		return nil, 0, subjects.Errorf(subjects.BadRequest, `body: age %q is not a time, such as "720h"`, r.Age)
	}
	oldest := time.Now().Add(-age).UnixNano()
	return func(p trimPoint) bool { return p.time < oldest }, 0, nil
}

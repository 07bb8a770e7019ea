package broker

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

const (
	// readChunk is about how much of an answer is put together before it is
	// sent.
	readChunk = 128 << 10
	// scanBytes bounds the log that one filtered read goes through, and
	// answerBytes what it sends, headers included; the answer says from where to
	// go on.
	scanBytes   = 64 << 20
	answerBytes = 4 * subjects.MaxReadBytes
	// scanPart is about how much of the log a read goes through before it looks
	// again whether it is wanted.
	scanPart = 1 << 20
	// scanPatience is how long a read waits for its turn to go through the log.
	scanPatience = time.Second
	// wantedEvery is how often a read that waits at the log's end looks whether
	// it is wanted.
	wantedEvery = time.Second
)

// errScans refuses a read that has waited for its turn too long.
var errScans = errors.New("broker: too many reads go through the log")

// scansAtOnce is how many reads go through the log at a time. More would not be
// faster, and would leave no processor to anything else.
func scansAtOnce() int64 { return int64(max(2, runtime.GOMAXPROCS(0))) }

// errUnwanted ends a read whose reply subject has no subscriber any more.
var errUnwanted = errors.New("broker: nobody listens to the answer")

// reading is a read in progress: an answer of any number of messages, each of
// which names the transaction that was sent before it, so that a client notices
// when one is missing.
//
// A read is refused only as long as it has sent nothing. Whatever stops it later
// ends the answer early, with the message that says where to go on; the client
// reads on from there and then hears of it.
type reading struct {
	p     *partition
	q     query
	reply string
	enc   encoder
	paced paced
	most  int // bytes of a message

	next  uint64 // txid that is looked at next
	sent  int    // transactions, those in out and pack included
	last  uint64 // txid of the last of them, 0 for none
	bytes int    // of the transactions
	wrote int    // bytes of messages that were sent
	out   []byte // messages that are to be sent
	turn  bool   // it goes through the log
	pack  packer // a message that is not full

	done reached // what was sent
}

// reached is how far an answer is.
type reached struct {
	sent       int
	last, next uint64
}

// read answers a query: the transactions, then the end.
func (p *partition) read(ctx context.Context, reply string, q query) error {
	most := p.host.nats.maxPayload()
	r := reading{
		p: p, q: q, reply: reply, next: q.from, done: reached{next: q.from}, enc: encoder{partition: p.id, names: p.host.names},
		most:  most,
		pack:  packer{subject: reply, most: min(readChunk, most-chainRoom)},
		paced: paced{pacer: p.host.pacer, reply: reply},
	}
	timer := time.NewTimer(q.wait)
	defer timer.Stop()
	for {
		at := p.replica.position()
		if r.next < at.first {
			return r.stop(ctx, wal.ErrTrimmed, at.mark)
		}
		if err := r.scan(ctx, at); err != nil {
			return r.stop(ctx, err, at.mark)
		}
		if r.sent > 0 || r.next <= at.mark || q.wait == 0 {
			return r.finish(ctx, at.mark)
		}
		over, err := r.await(ctx, at, timer.C)
		switch {
		case err != nil:
			return err
		case over:
			return r.finish(ctx, p.replica.position().mark)
		}
	}
}

// await waits for the log to grow; over says that the client waits no longer.
func (r *reading) await(ctx context.Context, at position, timer <-chan time.Time) (over bool, err error) {
	look := time.NewTicker(wantedEvery)
	defer look.Stop()
	for {
		select {
		case <-at.changed:
			return false, nil
		case <-timer:
			return true, nil
		case <-ctx.Done():
			return false, ctx.Err()
		case <-look.C:
			if !r.p.host.nats.wanted(r.reply) {
				return false, errUnwanted
			}
		}
	}
}

// scan sends what the query asks for between next and the position, as far as
// its limits go.
func (r *reading) scan(ctx context.Context, at position) error {
	if r.next > at.mark {
		return nil
	}
	if err := r.takeTurn(ctx); err != nil {
		return err
	}
	defer r.endTurn()
	var t wal.Transaction
	scanned, looked := 0, 0
	for _, b := range r.p.store.Batches(r.next, at.index) {
		if b.Err != nil {
			return b.Err
		}
		records := b.Batch.Read()
		records.Skip(int(r.next - b.Batch.First))
		for records.Next(&t) {
			size := len(t.Payload) + len(t.Header)
			if r.q.matches(&t) {
				if r.sent > 0 && r.bytes+size > r.q.maxBytes {
					return nil
				}
				if err := r.add(ctx, &t, size); err != nil {
					return err
				}
			}
			r.next = t.Txid + 1
			scanned += recordBytes(&t)
			if r.sent == r.q.max || scanned > scanBytes || r.wrote > answerBytes {
				return nil
			}
			if scanned-looked > scanPart {
				looked = scanned
				if err := r.wanted(ctx); err != nil {
					return err
				}
			}
		}
		if err := records.Err(); err != nil || r.next > at.mark {
			return err
		}
	}
	return nil
}

// takeTurn waits until the read may go through the log. A read that waits for its
// client has no turn.
func (r *reading) takeTurn(ctx context.Context) error {
	scans := r.p.host.scans
	if !scans.TryAcquire(1) {
		patient, cancel := context.WithTimeout(ctx, scanPatience)
		defer cancel()
		if scans.Acquire(patient, 1) != nil {
			return cmp.Or(ctx.Err(), errScans)
		}
	}
	r.turn = true
	return nil
}

func (r *reading) endTurn() {
	if r.turn {
		r.turn = false
		r.p.host.scans.Release(1)
	}
}

// recordBytes is about what a transaction takes in the log.
func recordBytes(t *wal.Transaction) int {
	n := len(t.Payload) + len(t.Header) + len(t.MsgID) + 64
	for _, l := range t.Locks {
		n += len(l.Name) + 3
	}
	return n
}

// wanted returns why the read should not go on, nil if it should.
func (r *reading) wanted(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !r.p.host.nats.wanted(r.reply) {
		return errUnwanted
	}
	return nil
}

func (r *reading) add(ctx context.Context, t *wal.Transaction, size int) error {
	if err := r.p.mustFit(&r.enc, t, r.q.payload, r.q.packed, r.most); err != nil {
		return err
	}
	if r.q.packed {
		r.out = r.pack.add(r.out, &r.enc, t, r.q.payload)
	} else {
		r.enc.previous, r.enc.chained = r.last, true
		r.out = r.enc.append(r.out, r.reply, t, r.q.payload)
	}
	r.sent++
	r.bytes += size
	r.last, r.next = t.Txid, t.Txid+1
	if len(r.out) < readChunk {
		return nil
	}
	if err := r.wanted(ctx); err != nil {
		return err
	}
	r.endTurn()
	if err := r.flush(ctx); err != nil {
		return err
	}
	return r.takeTurn(ctx)
}

// flush sends the messages that were put together, once the client is near
// enough to what was sent to it before.
func (r *reading) flush(ctx context.Context) error {
	if len(r.out) == 0 {
		return nil
	}
	if err := r.paced.wait(ctx, len(r.out)); err != nil {
		return err
	}
	err := r.p.host.reads.Send(r.out)
	r.paced.written(len(r.out))
	r.wrote += len(r.out)
	r.out = r.out[:0]
	if err != nil {
		return err
	}
	r.done = reached{r.sent, r.last, r.last + 1}
	if r.q.packed {
		r.done = reached{r.sent - r.pack.count, r.pack.previous, r.pack.previous + 1}
	}
	return nil
}

// finish sends what is left, and the end.
func (r *reading) finish(ctx context.Context, mark uint64) error {
	r.out = r.pack.flush(r.out)
	if err := r.flush(ctx); err != nil {
		return r.stop(ctx, err, mark)
	}
	r.done = reached{r.sent, r.last, r.next}
	return r.end(mark)
}

// stop ends an answer because of an error: early if anything was sent, else the
// error is the caller's to tell.
func (r *reading) stop(ctx context.Context, err error, mark uint64) error {
	if errors.Is(err, errUnwanted) {
		return err
	}
	r.out = r.pack.flush(r.out)
	if err := r.flush(ctx); err == nil && r.sent > 0 {
		r.done = reached{r.sent, r.last, r.next}
	}
	if r.done.sent == 0 {
		return err
	}
	return r.end(mark)
}

func (r *reading) end(mark uint64) error {
	r.p.metrics.read(r.done.sent)
	return r.p.host.reads.Send(appendEnd(nil, r.reply, r.done, mark))
}

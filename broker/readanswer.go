package broker

import (
	"cmp"
	"context"
	"errors"
	"math"
	"runtime"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

const (
	// readChunk is about how many bytes of an answer are encoded before they
	// are sent.
	readChunk = 128 << 10
	// scanBytes bounds how much of the log one filtered read scans, and
	// answerBytes how much it sends, headers included; the answer says where to
	// continue.
	scanBytes   = 64 << 20
	answerBytes = 4 * subjects.MaxReadBytes
	// scanPart is about how much of the log a read scans before it checks again
	// whether the answer has a subscriber.
	scanPart = 1 << 20
	// scanPatience is how long a read waits for its turn to scan the log.
	scanPatience = time.Second
	// wantedEvery is how often a read that waits at the log's end checks
	// whether the answer has a subscriber.
	wantedEvery = time.Second
)

// errScansBusy is returned when a read has waited for its turn too long.
var errScansBusy = errors.New("broker: too many reads go through the log")

// scansAtOnce returns how many reads scan logs at a time. More would not be
// faster, and would leave no processor to anything else.
func scansAtOnce() int64 { return int64(max(2, runtime.GOMAXPROCS(0))) }

// errNoSubscriber ends a read whose reply subject has no subscriber any more.
var errNoSubscriber = errors.New("broker: nobody listens to the answer")

// readAnswer is the answer to a read in progress: it consists of any number of
// messages, each of which names the transaction that was sent before it, so
// that a client notices when one is missing.
//
// A read is refused only as long as it has sent nothing. An error after that
// ends the answer early, with the message that says where to continue; the
// client reads on from there, and that read is refused.
type readAnswer struct {
	reader *reader
	q      query
	reply  string
	enc    encoder
	paced  paced
	most   int // bytes of a message

	next     uint64 // txid that is looked at next
	sent     int    // transactions, those in out and pack included
	last     uint64 // txid of the last of them, 0 for none
	bytes    int    // of the transactions
	wrote    int    // bytes of messages that were sent
	out      []byte // messages that are to be sent
	scanning bool   // it counts among the scans of the log
	pack     packer // a message that is not full

	done answerProgress // what was sent
}

// answerProgress is how far an answer has got.
type answerProgress struct {
	sent       int
	last, next uint64
}

// read answers a query: the transactions, then the end.
func (r *reader) read(ctx context.Context, reply string, q query) error {
	most := r.nats.MaxPayload()
	a := readAnswer{
		reader: r, q: q, reply: reply, next: q.from, done: answerProgress{next: q.from}, enc: encoder{partition: r.partition, names: r.names},
		most:  most,
		pack:  packer{subject: reply, most: min(readChunk, most-chainRoom)},
		paced: paced{pacer: r.pacer, reply: reply},
	}
	if q.newest {
		return a.readNewest(ctx)
	}
	timer := time.NewTimer(q.wait)
	defer timer.Stop()
	if q.fromTime != math.MinInt64 {
		if err := a.seek(ctx); err != nil {
			return err
		}
	}
	for {
		at := r.position()
		if at.restoring {
			return a.stop(ctx, errRestoring(r.partition), at.mark)
		}
		if err := a.limitToCluster(at); err != nil {
			return a.stop(ctx, err, at.mark)
		}
		shown := at
		if a.q.limit > 0 {
			shown.mark = min(at.mark, a.q.limit)
		}
		if a.next < at.first {
			if err := a.scanArchive(ctx, shown); err != nil {
				return a.stop(ctx, err, at.mark)
			}
			return a.finish(ctx, at.mark) // the client goes on from there, if need be in the log
		}
		if err := a.scan(ctx, shown); err != nil {
			return a.stop(ctx, err, at.mark)
		}
		if a.sent > 0 || a.next <= at.mark || q.wait == 0 || a.q.limit > 0 {
			return a.finish(ctx, at.mark)
		}
		over, err := a.await(ctx, at, timer.C)
		switch {
		case err != nil:
			return err
		case over:
			return a.finish(ctx, r.position().mark)
		}
	}
}

// limitToCluster limits the answer of a mirror that was promoted while it was
// read: what follows is not from the cluster that the client has named.
func (r *readAnswer) limitToCluster(at position) (err error) {
	if r.q.limit == 0 && r.q.cluster != "" {
		r.q.limit, err = r.reader.checkHistory(r.q, at)
	}
	return err
}

// seek moves on to the first transaction at or after the time that the query
// asks for. In a log without one the read waits for it at the end.
func (r *readAnswer) seek(ctx context.Context) error {
	txid, err := r.reader.times.find(ctx, r.q.fromTime, r.q.from)
	r.next = max(r.next, txid)
	r.done.next = r.next
	return err
}

// await waits for the log to grow. over reports that the client's wait has
// ended first.
func (r *readAnswer) await(ctx context.Context, at position, timer <-chan time.Time) (over bool, err error) {
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
			if !r.reader.nats.MayHaveInterest(r.reply) {
				return false, errNoSubscriber
			}
		}
	}
}

// scan sends the transactions between next and the position that the query asks
// for, up to its limits.
func (r *readAnswer) scan(ctx context.Context, at position) error {
	if r.next > at.mark {
		return nil
	}
	if err := r.acquireScan(ctx); err != nil {
		return err
	}
	defer r.releaseScan()
	var s scanned
	if done, err := r.scanIndexed(ctx, at, &s); done || err != nil || r.next > at.mark {
		return err
	}
	for _, b := range r.reader.store.Batches(r.next, at.index) {
		if b.Err != nil {
			return b.Err
		}
		if done, err := r.scanBatch(ctx, b.Batch, at, &s); done || err != nil {
			return err
		}
	}
	return nil
}

// scanArchive is scan for transactions that were trimmed: it sends some of
// those in the archive.
func (r *readAnswer) scanArchive(ctx context.Context, at position) error {
	release, err := r.reader.archived.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	batches, err := r.reader.archived.batches(ctx, r.next, at)
	if err != nil {
		return err
	}
	if err := r.acquireScan(ctx); err != nil {
		return err
	}
	defer r.releaseScan()
	var s scanned
	defer func() { r.reader.metrics.readArchive(s.bytes) }()
	for _, b := range batches {
		if b.First >= at.first {
			return nil
		}
		if done, err := r.scanBatch(ctx, b, at, &s); done || err != nil {
			return err
		}
	}
	return nil
}

// scanned counts what was scanned for one answer.
type scanned struct {
	bytes  int
	looked int // bytes when the subscriber was last looked for
	t      wal.Transaction
}

// scanBatch sends the transactions of a batch from next on that the query asks
// for. It reports whether the scan ends with it.
func (r *readAnswer) scanBatch(ctx context.Context, b wal.Batch, at position, s *scanned) (done bool, err error) {
	t := &s.t
	records := b.Read()
	records.Skip(int(r.next - b.First))
	for records.Next(t) {
		if t.Txid > at.mark && r.q.limit > 0 {
			return true, nil
		}
		invariant.ReadWithinLog.Check(t.Txid <= at.mark, t.Txid, at.mark)
		if done, err := r.take(ctx, t, s); done || err != nil {
			return true, err
		}
	}
	err = records.Err()
	return err != nil || r.next > at.mark, err
}

// take sends a transaction if the query asks for it. It reports whether the
// scan ends with it, or before it.
func (r *readAnswer) take(ctx context.Context, t *wal.Transaction, s *scanned) (done bool, err error) {
	size := len(t.Payload) + len(t.Header)
	if r.q.matches(t) {
		if r.sent > 0 && r.bytes+size > r.q.maxBytes {
			return true, nil
		}
		if err := r.add(ctx, t, size); err != nil {
			return true, err
		}
	}
	r.next = r.after(t.Txid)
	s.bytes += recordBytes(t)
	if r.sent == r.q.max || s.bytes > scanBytes || r.wrote > answerBytes {
		return true, nil
	}
	if s.bytes-s.looked > scanPart {
		s.looked = s.bytes
		if err := r.wanted(ctx); err != nil {
			return true, err
		}
	}
	return false, nil
}

// after returns the transaction that is looked at after another.
func (r *readAnswer) after(txid uint64) uint64 {
	if r.q.newest {
		return txid - 1
	}
	return txid + 1
}

// acquireScan waits until the read may scan the log. A read that waits for its
// client does not count among the scans.
func (r *readAnswer) acquireScan(ctx context.Context) error {
	err := acquireScan(ctx, r.reader.scans)
	r.scanning = err == nil
	return err
}

func acquireScan(ctx context.Context, scans *semaphore.Weighted) error {
	if scans.TryAcquire(1) {
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, scanPatience)
	defer cancel()
	if scans.Acquire(patient, 1) != nil {
		return cmp.Or(ctx.Err(), errScansBusy)
	}
	return nil
}

func (r *readAnswer) releaseScan() {
	if r.scanning {
		r.scanning = false
		r.reader.scans.Release(1)
	}
}

// recordBytes returns about how many bytes a transaction has in the log.
func recordBytes(t *wal.Transaction) int {
	n := len(t.Payload) + len(t.Header) + len(t.MsgID) + len(t.Session) + 64
	for _, l := range t.Locks {
		n += len(l.Name) + 3
	}
	return n
}

// wanted returns why the read should end, nil if it should go on.
func (r *readAnswer) wanted(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !r.reader.nats.MayHaveInterest(r.reply) {
		return errNoSubscriber
	}
	return nil
}

func (r *readAnswer) add(ctx context.Context, t *wal.Transaction, size int) error {
	if err := r.reader.unsendable.mustFit(&r.enc, t, r.q.payload, r.q.packed, r.most); err != nil {
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
	r.last, r.next = t.Txid, r.after(t.Txid)
	if len(r.out) < readChunk {
		return nil
	}
	if err := r.wanted(ctx); err != nil {
		return err
	}
	r.releaseScan()
	if err := r.flush(ctx); err != nil {
		return err
	}
	return r.acquireScan(ctx)
}

// flush sends the encoded messages, once the client is not too far behind with
// what was sent to it before.
func (r *readAnswer) flush(ctx context.Context) error {
	if len(r.out) == 0 {
		return nil
	}
	if err := r.paced.wait(ctx, len(r.out)); err != nil {
		return err
	}
	err := r.transmit(r.out)
	r.out = r.out[:0]
	if err != nil {
		return err
	}
	r.done = answerProgress{r.sent, r.last, r.after(r.last)}
	if r.q.packed {
		r.done = answerProgress{r.sent - r.pack.count, r.pack.previous, r.after(r.pack.previous)}
	}
	return nil
}

// transmit sends encoded messages that paced.wait has admitted.
func (r *readAnswer) transmit(messages []byte) error {
	err := r.reader.answers.Send(messages)
	r.paced.written(len(messages))
	r.wrote += len(messages)
	return err
}

// finish sends the rest of the answer, and its end.
func (r *readAnswer) finish(ctx context.Context, mark uint64) error {
	r.out = r.pack.flush(r.out)
	if err := r.flush(ctx); err != nil {
		return r.stop(ctx, err, mark)
	}
	r.done = answerProgress{r.sent, r.last, r.next}
	return r.end(mark)
}

// stop ends an answer because of an error: with the message that says where to
// continue if anything was sent; otherwise it returns the error.
func (r *readAnswer) stop(ctx context.Context, err error, mark uint64) error {
	if errors.Is(err, errNoSubscriber) {
		return err
	}
	r.out = r.pack.flush(r.out)
	if err := r.flush(ctx); err == nil && r.sent > 0 {
		r.done = answerProgress{r.sent, r.last, r.next}
	}
	if r.done.sent == 0 {
		return err
	}
	return r.end(mark)
}

func (r *readAnswer) end(mark uint64) error {
	r.reader.metrics.read(r.done.sent)
	return r.reader.answers.Send(appendEnd(nil, r.reply, r.reader.answeringCluster(r.q, r.reader.position()), r.done, mark))
}

package broker

import (
	"cmp"
	"context"
	"math"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/wal"
)

const (
	// readWindow is how many transactions a read that goes backwards without an
	// index reads at a time, unless they have more than windowBytes.
	readWindow  = 256
	windowBytes = 4 << 20
)

// idScanBytes bounds how much of the log one search for a message id scans
// where there is no index. Clients send again until there is: they must not
// keep a processor busy.
const idScanBytes = 8 << 20

// seekCost is how many bytes of the log a lookup counts as.
const seekCost = 4 << 10

// scanIndexed is scan for the transactions that the index has: it looks only at
// those that the query may ask for.
func (r *readAnswer) scanIndexed(ctx context.Context, at position, s *scanned) (done bool, err error) {
	index, covered, ok := r.reader.indexer.covers(r.next, at.mark)
	if !ok || covered.From > r.next {
		return false, nil
	}
	items := r.q.indexed(index.Keys())
	if items == nil {
		return false, nil
	}
	w := r.reader.walker(at)
	defer w.close()
	seeks := 0
	for txid, err := range r.reader.indexer.search(index, items, covered) {
		if err != nil {
			return false, nil // the log is searched instead
		}
		if err := w.read(txid, &s.t); err != nil {
			return true, err
		}
		invariant.ReadWithinLog.Check(txid <= at.mark, txid, at.mark)
		s.bytes += seekCost * (w.seeks - seeks)
		seeks = w.seeks
		if done, err := r.take(ctx, &s.t, s); done || err != nil {
			return true, err
		}
	}
	r.next = covered.To + 1
	return false, nil
}

// readNewest answers a query that begins with the newest transaction.
func (r *readAnswer) readNewest(ctx context.Context) error {
	at := r.reader.position()
	if at.restoring {
		return errRestoring(r.reader.partition)
	}
	if r.next == 0 || r.next > at.mark {
		r.next = at.mark
	}
	r.done.next = r.next
	if r.next > 0 && r.next < at.first {
		return wal.ErrTrimmed
	}
	low := at.first
	if r.q.fromTime != math.MinInt64 {
		txid, err := r.reader.times.find(ctx, r.q.fromTime, at.first)
		if err != nil {
			return err
		}
		low = max(low, txid)
	}
	if err := r.scanDown(ctx, at, low); err != nil {
		return r.stop(ctx, err, at.mark)
	}
	if r.next < low && low > at.first {
		r.next = 0 // what is older is not asked for
	}
	return r.finish(ctx, at.mark)
}

// scanDown sends the transactions from next down to low that the query asks
// for, up to its limits.
func (r *readAnswer) scanDown(ctx context.Context, at position, low uint64) error {
	if err := r.acquireScan(ctx); err != nil {
		return err
	}
	defer r.releaseScan()
	var s scanned
	ended := false
	next, err := r.reader.down(at, &r.q, r.next, low, &s, func(t *wal.Transaction) (done bool, err error) {
		ended, err = r.take(ctx, t, &s)
		return ended, err
	})
	if err == nil && !ended {
		r.next = next
	}
	return err
}

// findNewest returns the newest transaction from low to high that a query asks
// for, 0 if there is none; next is then where the search would go on, low-1 if
// it is complete. It adds to s what it has searched.
func (r *reader) findNewest(ctx context.Context, at position, q *query, high, low uint64, s *scanned) (txid, next uint64, err error) {
	if err := acquireScan(ctx, r.scans); err != nil {
		return 0, 0, err
	}
	defer r.scans.Release(1)
	most := s.bytes + scanBytes
	next, err = r.down(at, q, high, low, s, func(t *wal.Transaction) (done bool, err error) {
		if q.matches(t) {
			txid = t.Txid
			return true, nil
		}
		s.bytes += recordBytes(t)
		return s.bytes > most, ctx.Err()
	})
	return txid, next, err
}

// findUse returns the newest use of a message id up to a transaction, none if
// the log has none. complete is false if it would take too long to search all.
func (r *reader) findUse(ctx context.Context, at position, id string, through uint64, s *scanned) (use lockmgr.Use, complete bool, err error) {
	if err := acquireScan(ctx, r.scans); err != nil {
		return use, false, err
	}
	defer r.scans.Release(1)
	q := query{msgID: id, fromTime: math.MinInt64}
	most := s.bytes + idScanBytes
	next, err := r.down(at, &q, min(through, at.mark), at.first, s, func(t *wal.Transaction) (done bool, err error) {
		if q.matches(t) {
			var c lockmgr.Transaction
			lockTransaction(t, &c)
			use = lockmgr.Use{Txid: t.Txid, Time: t.Time, Fingerprint: c.Fingerprint}
			return true, nil
		}
		s.bytes += recordBytes(t)
		return s.bytes > most, ctx.Err()
	})
	return use, use.Txid > 0 || next < at.first, err
}

// down calls each with the transactions from high down to low that a query may
// ask for, until it reports that it is done. next is the one that would come
// next, low-1 if there is none.
func (r *reader) down(at position, q *query, high, low uint64, s *scanned, each func(*wal.Transaction) (done bool, err error)) (next uint64, err error) {
	d := descent{reader: r, at: at, q: q, low: low, next: high, scanned: s, each: each, walker: r.walker(at)}
	defer d.walker.close()
	for d.next >= low && d.next > 0 && !d.done {
		if err := d.part(); err != nil {
			return d.next, err
		}
	}
	return d.next, nil
}

// descent is the state of a search from newer transactions to older ones.
type descent struct {
	reader  *reader
	at      position
	q       *query
	low     uint64
	next    uint64
	scanned *scanned
	each    func(*wal.Transaction) (done bool, err error)
	done    bool
	walker  walker
	window  []wal.Transaction
	size    uint64 // of the next window, 0 for readWindow
}

// part looks at what the index has, or at a window of the log.
func (d *descent) part() error {
	index, covered, ok := d.reader.indexer.covers(d.low, d.next)
	if ok {
		covered.Descending = true
		if items := d.q.indexed(index.Keys()); items == nil {
			ok = false
		} else if covered.To == d.next {
			for txid, err := range d.reader.indexer.search(index, items, covered) {
				if err != nil {
					return d.readWindow(d.low)
				}
				if err := d.read(txid); err != nil || d.done {
					return err
				}
			}
			d.next = covered.From - 1
			return nil
		}
	}
	low := d.low
	if ok {
		low = covered.To + 1
	}
	return d.readWindow(low)
}

func (d *descent) read(txid uint64) error {
	t, seeks := &d.scanned.t, d.walker.seeks
	if err := d.walker.read(txid, t); err != nil {
		return err
	}
	d.scanned.bytes += seekCost * (d.walker.seeks - seeks)
	return d.take(t)
}

func (d *descent) take(t *wal.Transaction) (err error) {
	d.next = t.Txid - 1
	d.done, err = d.each(t)
	return err
}

// readWindow looks at some transactions, none before low.
func (d *descent) readWindow(low uint64) error {
	size := cmp.Or(d.size, readWindow)
	low = max(low, d.next-min(d.next, size-1), 1)
	d.window = d.window[:0]
	bytes := 0
	for txid := low; txid <= d.next; txid++ {
		if bytes > windowBytes { // fewer are read at a time
			d.size = max(uint64(len(d.window))/2, 1)
			d.window = nil
			return nil
		}
		var t wal.Transaction
		if err := d.walker.read(txid, &t); err != nil {
			return err
		}
		d.window = append(d.window, t)
		d.walker.buf = nil // it stays valid, as those before it
		bytes += recordBytes(&t)
	}
	d.size = min(2*size, readWindow)
	for i := len(d.window) - 1; i >= 0; i-- {
		if err := d.take(&d.window[i]); err != nil || d.done {
			return err
		}
	}
	return nil
}

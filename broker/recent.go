package broker

import (
	"cmp"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/nameindex"
)

const (
	// recentBytes and recentCount bound the recent transactions of a partition
	// that a node leads, unless more are in flight.
	recentBytes = 1 << 20
	recentCount = 8192
)

// recent finds transactions among the newest ones that a leader has certified,
// by what they recorded. It keeps their batches; what they recorded is indexed
// when a search first needs it, so that partitions without conditions do
// without.
type recent struct {
	hasher  nameindex.Hasher
	most    uint64        // transactions that it has, if they are committed
	steps   int           // searchSteps, but in tests
	batches []recentBatch // oldest first, without gaps
	start   uint64        // the transaction before the first one
	bytes   int           // of all batches

	entries []recentEntry            // in the order of their transactions
	dropped uint64                   // entries that were dropped before
	newest  map[nameindex.Key]uint64 // the number of a key's newest entry
	indexed uint64                   // the last transaction in entries, start or later

	sessions []*recentSession          // of the transactions that are indexed, nil for none
	byName   map[string]*recentSession // those in sessions

	terms [][]uint64 // scratch of a search: the entries where it is, by term and key
	keys  []nameindex.Key
	tx    wal.Transaction
}

// recentBatch is a batch, committed or in flight.
type recentBatch struct {
	first uint64
	count int
	data  []byte
	// readers are at every recentStep-th record; nil until one is needed.
	readers []wal.BatchReader
}

const recentStep = 64

// A search has a number of steps, so that nobody makes the certifier compare
// long lists for seconds. Each takes some nanoseconds.
const (
	searchSteps      = 1 << 13 // for a message, and a part for each item of its conditions
	searchPart       = 16
	transactionSteps = 512 // that it takes to look at a transaction
)

// errSteps ends a search that takes more steps than it has.
var errSteps = errors.New("broker: the search takes too many steps")

func (b *recentBatch) last() uint64 { return b.first + uint64(b.count) - 1 }

// read returns a reader of the records from a transaction on.
func (b *recentBatch) read(txid uint64) (wal.BatchReader, error) {
	if b.readers == nil {
		batch, err := wal.ParseBatch(b.data)
		if err != nil {
			return wal.BatchReader{}, err
		}
		records := batch.Read()
		for range (b.count + recentStep - 1) / recentStep {
			b.readers = append(b.readers, records)
			records.Skip(recentStep)
		}
	}
	n := int(txid - b.first)
	records := b.readers[n/recentStep]
	records.Skip(n % recentStep)
	return records, nil
}

// recentEntry is a key of a transaction. Entries are numbered from 1 on.
type recentEntry struct {
	key   nameindex.Key
	txid  uint64
	older uint64 // the number of the next older entry of the key, 0 for none; it may be dropped
}

// recentSession is a session that some of the recent transactions are in.
type recentSession struct {
	name  string
	count int // how many
}

func newRecent() *recent {
	return &recent{byName: map[string]*recentSession{}, most: recentCount, steps: searchSteps, hasher: nameindex.NewHasher(rand.Uint64()), newest: map[nameindex.Key]uint64{}}
}

// reset forgets everything. The next transaction is the one after last.
func (r *recent) reset(last uint64) {
	clear(r.batches)
	clear(r.newest)
	clear(r.byName)
	r.sessions = nil
	r.batches, r.entries, r.dropped = r.batches[:0], nil, 0
	r.start, r.indexed, r.bytes = last, last, 0
}

// last returns the last transaction of a batch.
func (r *recent) last() uint64 {
	if n := len(r.batches); n > 0 {
		return r.batches[n-1].last()
	}
	return r.start
}

// add adds a batch as the newest, and drops old ones that are committed.
func (r *recent) add(b recentBatch, committed uint64) {
	r.batches = append(r.batches, b)
	r.bytes += len(b.data)
	n := 0
	for n < len(r.batches)-1 && (r.bytes > recentBytes || r.last()-r.start > r.most) {
		old := &r.batches[n]
		end := old.last()
		if end > committed {
			break
		}
		r.bytes -= len(old.data)
		r.start = end
		n++
	}
	if n == 0 {
		return
	}
	r.batches = slices.Delete(r.batches, 0, n)
	r.forget()
}

// forget drops the entries of transactions that were dropped.
func (r *recent) forget() {
	kept := int(max(r.indexed, r.start) - r.start)
	for _, s := range r.sessions[:max(len(r.sessions)-kept, 0)] {
		if s == nil {
			continue
		}
		if s.count--; s.count == 0 {
			delete(r.byName, s.name)
		}
	}
	r.sessions = r.sessions[max(len(r.sessions)-kept, 0):]
	r.indexed = max(r.indexed, r.start)
	n := 0
	for ; n < len(r.entries) && r.entries[n].txid <= r.start; n++ {
		r.dropped++
		if key := r.entries[n].key; r.newest[key] == r.dropped {
			delete(r.newest, key)
		}
	}
	r.entries = r.entries[n:]
}

// entry returns entry number n, nil if it was dropped or n is 0.
func (r *recent) entry(n uint64) *recentEntry {
	if n <= r.dropped {
		return nil
	}
	return &r.entries[n-r.dropped-1]
}

// index indexes a transaction that has the next txid.
func (r *recent) index(t *wal.Transaction, txid uint64) {
	r.keys = keysOf(r.keys[:0], r.hasher, t)
	for _, key := range r.keys {
		older := r.newest[key]
		if e := r.entry(older); e != nil && e.txid == txid {
			continue // two locks with one prefix
		}
		r.entries = append(r.entries, recentEntry{key, txid, older})
		r.newest[key] = r.dropped + uint64(len(r.entries))
	}
	r.sessions = append(r.sessions, r.sessionOf(t))
	r.indexed = txid
}

// sessionOf counts a transaction as one of its session.
func (r *recent) sessionOf(t *wal.Transaction) *recentSession {
	if t.SessionSeq == 0 {
		return nil
	}
	s := r.byName[string(t.Session)]
	if s == nil {
		s = &recentSession{name: string(t.Session)}
		r.byName[s.name] = s
	}
	s.count++
	return s
}

// level indexes what is not indexed yet: of the batches, and of passed, which
// are certified after them.
func (r *recent) level(passed []*request) error {
	last := r.last()
	for i := r.holder(r.indexed + 1); i < len(r.batches); i++ {
		records, err := r.batches[i].read(r.indexed + 1)
		if err != nil {
			return err
		}
		for records.Next(&r.tx) {
			r.index(&r.tx, r.tx.Txid)
		}
		if err := records.Err(); err != nil {
			return err
		}
	}
	for i := int(r.indexed - last); i < len(passed); i++ {
		r.index(&passed[i].tx, last+1+uint64(i))
	}
	return nil
}

// find returns the newest transaction after base and up to high that an item
// matches, 0 for none. No other transaction is looked at, and base is start or
// later. passed were certified after the last batch. It takes steps away, and
// returns errSteps if there are not enough.
func (r *recent) find(item *queryItem, base, high uint64, passed []*request, steps *int) (txid uint64, err error) {
	if err := r.level(passed); err != nil {
		return 0, err
	}
	own := r.byName[item.besides]
	for txid = range r.candidates(item, base, high, steps) {
		if own != nil && r.sessions[len(r.sessions)-1-int(r.indexed-txid)] == own {
			*steps--
			continue
		}
		if *steps -= transactionSteps; *steps < 0 {
			break
		}
		t, err := r.get(txid, passed)
		if err != nil || item.matches(t) {
			return txid, err
		}
	}
	if *steps < 0 {
		return 0, errSteps
	}
	return 0, nil
}

// candidates iterates over the transactions after base and up to high that have
// a key of each term of an item, the newest first. Each step takes the newest
// transaction that every term can still have.
func (r *recent) candidates(item *queryItem, base, high uint64, steps *int) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		terms := item.terms(r.hasher)
		r.terms = r.terms[:0]
		for _, keys := range terms {
			var at []uint64
			for _, key := range keys {
				at = append(at, r.newest[key])
			}
			r.terms = append(r.terms, at)
		}
		for at := min(r.indexed, high); at > base; {
			low := at
			for _, term := range r.terms {
				low = min(low, r.descend(term, at, steps))
			}
			if low <= base || *steps < 0 {
				return
			}
			if low < at {
				at = low
				continue
			}
			if !yield(at) {
				return
			}
			at--
		}
	}
}

// descend moves the entries of a term's keys down to txid at most, and returns
// the newest transaction that they then have, 0 for none.
func (r *recent) descend(term []uint64, at uint64, steps *int) (newest uint64) {
	*steps -= len(term)
	for i, n := range term {
		e := r.entry(n)
		for e != nil && e.txid > at {
			n = e.older
			e = r.entry(n)
			*steps--
		}
		if term[i] = n; e != nil {
			newest = max(newest, e.txid)
		}
	}
	return newest
}

// get returns a transaction.
func (r *recent) get(txid uint64, passed []*request) (*wal.Transaction, error) {
	last := r.last()
	if txid > last {
		return &passed[txid-last-1].tx, nil
	}
	records, err := r.batches[r.holder(txid)].read(txid)
	if err != nil {
		return nil, err
	}
	if !records.Next(&r.tx) {
		return nil, cmp.Or(records.Err(), wal.ErrDamaged)
	}
	return &r.tx, nil
}

// holder returns the number of the batch that has a transaction, that of the
// next one if none has.
func (r *recent) holder(txid uint64) int {
	i, _ := slices.BinarySearchFunc(r.batches, txid, func(b recentBatch, txid uint64) int { return cmp.Compare(b.last(), txid) })
	return i
}

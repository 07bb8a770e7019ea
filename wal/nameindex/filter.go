package nameindex

import (
	"errors"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// A filter says of most message ids that no transaction in the index has them,
// without looking at a run. It is a Bloom filter whose bits for one key are in
// two words of one block, which is a line of the processor's cache (Putze,
// Sanders, Singler: Cache-, Hash- and Space-Efficient Bloom Filters, 2007). At
// its capacity, one in some 5,000 keys that it does not have looks as if it had
// it: few enough that most messages with hundreds of ids have none.
//
// One goroutine adds keys, another one may add older ones meanwhile, and any
// number may look for them.
type filter struct {
	blocks []filterBlock
	count  atomic.Int64 // keys that were added
}

type filterBlock [8]atomic.Uint64

const (
	filterBits     = 24      // for a key, at the filter's capacity
	wordBits       = 4       // that a key sets in each of two words of its block
	leastFilter    = 1 << 10 // keys
	filterSlack    = 8       // one for more than 8 times as many keys is made smaller
	filterRoom     = 1 << 24 // up to this capacity a filter is made for four times as many keys as there are
	blockBits      = 512
	mostFilterSize = 256 << 20
	loadedKeys     = 64 // at a time: see filter.load
)

// newFilter returns a filter for a number of keys, or for as many as fit into
// the largest.
func newFilter(capacity int) *filter {
	n := min(capacity*filterBits/blockBits+1, mostFilterSize/(blockBits/8))
	return &filter{blocks: make([]filterBlock, n)}
}

// capacity returns how many keys the filter is for.
func (f *filter) capacity() int { return len(f.blocks) * blockBits / filterBits }

// isLargest reports whether no filter is larger.
func (f *filter) isLargest() bool { return len(f.blocks) >= mostFilterSize/(blockBits/8) }

// of returns the block of a key, and a number that says which of its bits.
func (f *filter) of(k Key) (*filterBlock, uint64) {
	// A key has no lower bits, so they are mixed into all of the number's.
	h := (uint64(k) ^ uint64(k)>>32) * 0x9e3779b97f4a7c15
	at, _ := bits.Mul64(h, uint64(len(f.blocks)))
	return &f.blocks[at], (h ^ h>>29) * 0xbf58476d1ce4e5b9
}

// load has the processor load what the filter has for each of some keys. In a
// large filter each is a miss of the cache, and so they overlap.
func (f *filter) load(keys []Key) {
	for _, k := range keys {
		block, h := f.of(k)
		block[h>>62].Load()
	}
}

func (f *filter) add(k Key) {
	block, h := f.of(k)
	low, high := bitsOf(h<<4), bitsOf(h<<(4+6*wordBits))
	block[h>>62].Or(low)
	block[4+(h>>60&3)].Or(high)
	f.count.Add(1)
}

// mayHave reports false if a key was not added.
func (f *filter) mayHave(k Key) bool {
	block, h := f.of(k)
	low, high := bitsOf(h<<4), bitsOf(h<<(4+6*wordBits))
	return block[h>>62].Load()&low == low && block[4+(h>>60&3)].Load()&high == high
}

// bitsOf returns the bits of a word that the first bits of a number say.
func bitsOf(h uint64) (word uint64) {
	for range wordBits {
		word |= 1 << (h >> 58)
		h <<= 6
	}
	return word
}

// idFilter is the filter of an index's message ids. It is made from the index
// when that is opened, and made again, larger if need be, when it has more keys
// than it is for. Those of transactions that were trimmed go then.
type idFilter struct {
	current *filter // has every message id in the index, nil until it is made
	growing *filter // is being made in place of it, nil for none
	added   []Key   // those of transactions that are not visible yet, and in neither
	most    int64   // keys in current before it is made again
	made    chan error
	ready   chan struct{} // one value if something was made
	making  sync.WaitGroup
	stopped atomic.Bool
}

// add adds the message id of a transaction that is added to the index. complete
// is to be called before the transaction is visible.
func (s *idFilter) add(k Key) { s.added = append(s.added, k) }

// complete puts what was added into the filters.
func (s *idFilter) complete() {
	for keys := range slices.Chunk(s.added, loadedKeys) {
		for _, f := range []*filter{s.current, s.growing} {
			if f == nil {
				continue
			}
			f.load(keys)
			for _, k := range keys {
				f.add(k)
			}
		}
	}
	s.added = s.added[:0]
}

// reset begins anew, with an index that has nothing.
func (s *idFilter) reset() {
	s.growing, s.made, s.added = nil, nil, nil
	s.use(newFilter(leastFilter))
}

// forget has the filter made anew.
func (s *idFilter) forget() { s.current, s.growing, s.made = nil, nil, nil }

func (s *idFilter) use(f *filter) {
	s.current, s.most = f, int64(f.capacity())
	if f.isLargest() {
		s.most = max(s.most, 2*f.count.Load())
	}
}

// stop ends what is under way.
func (s *idFilter) stop() {
	s.stopped.Store(true)
	s.making.Wait()
}

// FilterReady returns a channel from which LevelFilter is to be called for each
// value.
func (x *Index) FilterReady() <-chan struct{} { return x.ids.ready }

// LevelFilter begins to make the filter of message ids if there is none or it
// has too many keys, and takes one that is ready. Publish calls it, too.
func (x *Index) LevelFilter() {
	s := &x.ids
	select {
	case err := <-s.made:
		f := s.growing
		s.growing, s.made = nil, nil
		switch n := int(f.count.Load()); {
		case errors.Is(err, errFilterFull):
			x.makeFilter(2 * f.capacity())
		case err != nil:
			x.dropDamaged(err) // and it is tried again
		case n*filterSlack < f.capacity() && f.capacity() > filterSlack*leastFilter:
			x.makeFilter(2 * n) // most transactions have no id
		default:
			s.use(f)
			x.show()
		}
	default:
	}
	first, last := x.Covers()
	transactions := int(last + 1 - first)
	switch {
	case s.made != nil || x.closing:
	case s.current == nil && transactions == 0:
		s.reset()
		x.show()
	case s.current == nil:
		x.makeFilter(transactions + transactions/4)
	case s.current.count.Load() > s.most:
		n := min(transactions, int(s.current.count.Load()))
		x.makeFilter(max(2*n, min(4*n, filterRoom)))
	}
}

// makeFilter begins to make a filter for a number of keys, of what the index
// has and of what is added meanwhile.
func (x *Index) makeFilter(capacity int) {
	s := &x.ids
	f, made := newFilter(max(capacity, leastFilter)), make(chan error, 1)
	s.growing, s.made = f, made
	first, through := x.Covers()
	s.making.Go(func() {
		made <- x.fill(f, first, through)
		select {
		case s.ready <- struct{}{}:
		default: // the one that was made before is not taken yet
		}
	})
}

// dropDamaged drops the run that an error says is damaged.
func (x *Index) dropDamaged(err error) {
	if damage := (*DamageError)(nil); errors.As(err, &damage) {
		x.Drop(damage.First)
	}
}

var (
	errFilterFull    = errors.New("nameindex: the filter is full")
	errFilterStopped = errors.New("nameindex: the index is being closed")
)

// fill adds the message ids of transactions to a filter. The error is
// errFilterFull once it has more than it is for.
func (x *Index) fill(f *filter, from, to uint64) error {
	add := func(k Key) error {
		if !k.isMsgID() {
			return nil
		}
		if f.add(k); f.count.Load() > int64(f.capacity()) && !f.isLargest() {
			return errFilterFull
		}
		return nil
	}
	for from <= to {
		err := x.withPart(from, func(p part, v *view, s *run) error {
			if s == nil {
				from = v.through + 1
				return v.eachKey(add)
			}
			from = s.last + 1
			return x.eachKey(p.(openedRun), add)
		})
		switch first, _ := x.Covers(); {
		case errors.Is(err, ErrNotCovered) && first > from:
			from = first // it was trimmed
		case err != nil:
			return err
		}
	}
	return nil
}

// eachKey calls each with the keys of a run, until it returns an error.
func (x *Index) eachKey(s openedRun, each func(Key) error) error {
	whole, err := s.run.whole(s.file)
	if err != nil {
		return err
	}
	c := cursor{from: whole}
	for n := 1; ; n++ {
		if err := c.next(); err != nil || c.done {
			return err
		}
		if err := each(c.key); err != nil {
			return err
		}
		if n%yieldEvery > 0 {
			continue
		}
		if runtime.Gosched(); x.ids.stopped.Load() {
			return errFilterStopped
		}
	}
}

// eachKey calls each with the keys of what is in memory, until it returns an
// error. A key may come several times.
func (v *view) eachKey(each func(Key) error) error {
	for _, entries := range append(v.sorted[:len(v.sorted):len(v.sorted)], sorted(v.fresh)) {
		for _, e := range entries {
			if err := each(Key(e &^ offsetMask)); err != nil {
				return err
			}
		}
	}
	for _, l := range v.common {
		if err := each(l.key); err != nil {
			return err
		}
	}
	return nil
}

// LoadIDs prepares for a call of MayHave with the key of each of some message
// ids, which are then quicker together.
func (x *Index) LoadIDs(ids []string) {
	f := x.view.Load().ids
	if f == nil {
		return
	}
	var keys [loadedKeys]Key
	for ids := range slices.Chunk(ids, loadedKeys) {
		for i, id := range ids {
			keys[i] = x.hasher.MsgID(id)
		}
		f.load(keys[:len(ids)])
	}
}

// MayHave reports whether a transaction from first through last may have a key
// that Keys().MsgID has made. These are all that the index has. It takes no
// longer than some memory accesses.
func (x *Index) MayHave(k Key) (may bool, first, last uint64) {
	v := x.view.Load()
	first = v.first
	if len(v.runs) > 0 {
		first = v.runs[0].first
	}
	return v.ids == nil || v.ids.mayHave(k), first, v.through
}

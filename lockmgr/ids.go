package lockmgr

import "hash/maphash"

// ids remembers message ids in the order of their txids, and so of their times,
// those in flight included. An id that had expired when it was used again has
// two entries until the newer use commits.
type ids struct {
	seed    maphash.Seed
	records fifo[idRecord]
	void    int    // how many records are void; the oldest never is
	from    uint64 // all ids of transactions from here on are known
	byID    index  // removed records stay in it until a shard is full
}

type idRecord struct {
	id          ID // zero for one that is void
	txid        uint64
	time        int64
	fingerprint uint64
}

func newIDs() *ids {
	s := &ids{seed: maphash.MakeSeed(), from: 1, records: newFIFO[idRecord]()}
	s.byID.holds = func(short uint32) bool {
		_, held := s.records.number(short)
		return held
	}
	return s
}

func (s *ids) len() int { return s.records.len() - s.void }

// find returns the newest use of an id that is known, nil if none is.
func (s *ids) find(id ID) *idRecord {
	r, _ := s.below(id, s.records.next)
	return r
}

// below returns the newest use of an id among the records before number n.
func (s *ids) below(id ID, n uint64) (newest *idRecord, at uint64) {
	for p := s.byID.probe(s.hash(id)); ; {
		short := p.next()
		if short == 0 {
			return newest, at
		}
		i, held := s.records.number(short)
		if !held {
			continue
		}
		if r := s.records.at(i); r.id == id && i < n && (newest == nil || i > at) {
			newest, at = r, i
		}
	}
}

// add remembers a use of an id as the newest, and returns its number.
func (s *ids) add(r idRecord) uint64 {
	i := s.records.addNewest(r)
	s.byID.add(s.hash(r.id), s.records.short(i))
	return i
}

// only voids the earlier use of the id of record i, if there is one. There is
// never more than one.
func (s *ids) only(i uint64) {
	if r, _ := s.below(s.records.at(i).id, i); r != nil {
		*r = idRecord{}
		s.void++
		s.skip()
	}
}

// addOlder remembers an id as the oldest, unless it is known already.
func (s *ids) addOlder(r idRecord) {
	if s.find(r.id) != nil {
		return
	}
	i := s.records.addOldest(r)
	s.byID.add(s.hash(r.id), s.records.short(i))
}

// forget drops the ids recorded before txid first.
func (s *ids) forget(first uint64) {
	for s.len() > 0 && s.oldest().txid < first {
		s.dropOldest()
	}
}

// expire drops the ids older than time, of transactions up to txid last.
func (s *ids) expire(time int64, last uint64) {
	for s.len() > 0 && s.oldest().time < time && s.oldest().txid <= last {
		s.dropOldest()
	}
}

// oldestSince returns the txid of the oldest id that is not older than time, of
// transactions up to txid last; 0 if there is none.
func (s *ids) oldestSince(time int64, last uint64) uint64 {
	for i := s.records.first; i < s.records.next; i++ {
		if r := s.records.at(i); r.id != (ID{}) && r.time >= time {
			if r.txid > last {
				return 0
			}
			return r.txid
		}
	}
	return 0
}

func (s *ids) oldest() *idRecord { return s.records.at(s.records.first) }

func (s *ids) dropOldest() {
	s.from = s.oldest().txid + 1
	s.records.dropOldest()
	s.skip()
}

// skip drops void records until the oldest is not one.
func (s *ids) skip() {
	for s.records.len() > 0 && s.oldest().id == (ID{}) {
		s.records.dropOldest()
		s.void--
	}
}

// dropNewest drops the newest, which is not void.
func (s *ids) dropNewest() { s.records.dropNewest() }

// hash is seeded although an ID is a hash itself: clients choose message ids,
// and could make many whose hashes begin alike.
func (s *ids) hash(id ID) uint32 {
	return uint32(maphash.Bytes(s.seed, id[:]) >> 32)
}

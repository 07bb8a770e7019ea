package lockmgr

import "hash/maphash"

// ids remembers message ids, from the newest to the oldest, those in flight
// included. An id that was too old to count when it passed again stands in it
// twice, until the newer one commits.
type ids struct {
	seed    maphash.Seed
	records ring[idRecord] // by txid, and so by time
	byID    index
}

type idRecord struct {
	id          ID
	txid        uint64
	time        int64
	fingerprint uint64
}

func newIDs() *ids {
	return &ids{seed: maphash.MakeSeed(), records: newRing[idRecord]()}
}

func (s *ids) len() int { return s.records.n }

// find returns the newest use of an id that is known, nil if none is.
func (s *ids) find(id ID) *idRecord {
	if s.len() == 0 {
		return nil
	}
	var newest *idRecord
	for p := s.byID.probe(s.hash(id)); ; {
		i := p.next()
		if i == 0 {
			return newest
		}
		if r := s.records.at(i); r.id == id && (newest == nil || r.txid > newest.txid) {
			newest = r
		}
	}
}

// add remembers a use of an id as the newest. Its index stays valid until it is
// removed.
func (s *ids) add(r idRecord) uint32 {
	i := s.records.take()
	*s.records.at(i) = r
	s.records.enterNewest(i)
	s.byID.add(s.hash(r.id), i)
	return i
}

// only forgets other uses of the id of record i, which are older.
func (s *ids) only(i uint32) {
	newest := s.records.at(i)
	for p := s.byID.probe(s.hash(newest.id)); ; {
		j := p.next()
		if j == 0 {
			return
		}
		if r := s.records.at(j); r.id == newest.id && r.txid < newest.txid {
			s.remove(j)
			return // there was one at most
		}
	}
}

// addOlder remembers an id as the oldest, unless it is known already.
func (s *ids) addOlder(r idRecord) {
	if s.find(r.id) != nil {
		return
	}
	i := s.records.take()
	*s.records.at(i) = r
	s.records.enterOldest(i)
	s.byID.add(s.hash(r.id), i)
}

// forget drops the ids recorded before txid first.
func (s *ids) forget(first uint64) {
	for s.len() > 0 && s.oldest().txid < first {
		s.dropOldest()
	}
}

// expire drops the ids older than time.
func (s *ids) expire(time int64) {
	for s.len() > 0 && s.oldest().time < time {
		s.dropOldest()
	}
}

func (s *ids) oldest() *idRecord { return s.records.at(s.records.oldest()) }

func (s *ids) dropOldest() { s.remove(s.records.oldest()) }

func (s *ids) remove(i uint32) {
	s.byID.remove(s.hash(s.records.at(i).id), i)
	s.records.leave(i)
	s.records.give(i)
}

// hash is seeded although an ID is a hash itself: clients choose what goes in,
// and could make many that start alike.
func (s *ids) hash(id ID) uint32 {
	return uint32(maphash.Bytes(s.seed, id[:]) >> 32)
}

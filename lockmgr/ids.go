package lockmgr

import "hash/maphash"

// ids remembers message ids, from the newest to the oldest.
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

// find returns what is known of an id, nil if nothing is.
func (s *ids) find(id ID) *idRecord {
	if s.len() == 0 {
		return nil
	}
	if i := s.lookup(s.hash(id), id); i != 0 {
		return s.records.at(i)
	}
	return nil
}

// record remembers an id as the newest. An earlier use of the same id, which
// then was too old to count, is forgotten.
func (s *ids) record(r idRecord) {
	hash := s.hash(r.id)
	i := s.lookup(hash, r.id)
	if i != 0 {
		s.records.renew(i)
	} else {
		i = s.records.addNewest()
		s.byID.add(hash, i)
	}
	*s.records.at(i) = r
}

// recordOlder remembers an id as the oldest, unless it is known already.
func (s *ids) recordOlder(r idRecord) {
	hash := s.hash(r.id)
	if s.lookup(hash, r.id) != 0 {
		return
	}
	i := s.records.addOldest()
	*s.records.at(i) = r
	s.byID.add(hash, i)
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

func (s *ids) dropOldest() {
	i := s.records.oldest()
	s.byID.remove(s.hash(s.records.at(i).id), i)
	s.records.remove(i)
}

func (s *ids) lookup(hash uint32, id ID) uint32 {
	for p := s.byID.probe(hash); ; {
		i := p.next()
		if i == 0 || s.records.at(i).id == id {
			return i
		}
	}
}

// hash is seeded although an ID is a hash itself: clients choose what goes in,
// and could make many that start alike.
func (s *ids) hash(id ID) uint32 {
	return uint32(maphash.Bytes(s.seed, id[:]) >> 32)
}

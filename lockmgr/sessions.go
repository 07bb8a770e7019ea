package lockmgr

// sessions remembers the last number of sessions, of those with the newest
// transactions.
type sessions struct {
	most    int
	records ring[session] // in its order those with a committed transaction, by its txid
	byID    map[ID]uint32

	// floor is the highest txid that a session which is forgotten may have. One
	// that begins with a lower high-water mark may have begun before.
	floor uint64
}

// session is a session that is known: it has a transaction.
type session struct {
	id        ID
	seq, txid uint64 // of the newest, in flight or committed

	committedSeq, committedTxid uint64 // of the newest committed one, 0 for none
}

func newSessions(most int) *sessions {
	return &sessions{most: most, records: newRing[session](), byID: map[ID]uint32{}}
}

// len is the number of sessions with a committed transaction.
func (s *sessions) len() int { return s.records.n }

// find returns a session, nil if it is not known.
func (s *sessions) find(id ID) *session {
	if i := s.byID[id]; i != 0 {
		return s.records.at(i)
	}
	return nil
}

// recordPending makes a transaction the newest of a session, and returns the
// session's index. It is in flight until commit or revert.
func (s *sessions) recordPending(id ID, seq, txid uint64) (i uint32) {
	if i = s.byID[id]; i == 0 {
		i = s.records.alloc()
		s.records.at(i).id = id
		s.byID[id] = i
	}
	r := s.records.at(i)
	r.seq, r.txid = seq, txid
	return i
}

// commit makes a transaction that was recorded as pending the newest committed
// one of session i, and returns the session.
func (s *sessions) commit(i uint32, seq, txid uint64) ID {
	r := s.records.at(i)
	if r.committedTxid != 0 {
		s.records.renew(i)
	} else {
		s.records.enterNewest(i)
	}
	r.committedSeq, r.committedTxid = seq, txid
	if s.len() > s.most {
		s.dropOldest()
	}
	return r.id
}

// revert sets the newest transaction of session i back to the committed one; 0
// is no session. The caller then calls again for those still in flight, oldest
// first, and dropUnknown.
func (s *sessions) revert(i uint32) {
	if i != 0 {
		r := s.records.at(i)
		r.seq, r.txid = r.committedSeq, r.committedTxid
	}
}

// again records a transaction that is still in flight after a revert, and
// returns its session, zero if it has none.
func (s *sessions) again(kept recording) ID {
	if kept.session == 0 {
		return ID{}
	}
	r := s.records.at(kept.session)
	r.seq, r.txid = kept.seq, kept.txid
	return r.id
}

// dropUnknown forgets session i, which may be 0 or forgotten already, if it has
// no transaction left.
func (s *sessions) dropUnknown(i uint32) {
	if r := s.records.at(i); r.id != (ID{}) && r.txid == 0 {
		s.drop(i)
	}
}

// recordOlder makes a transaction, older than any, the newest of its session
// unless the session is known. It returns false if there are too many sessions.
func (s *sessions) recordOlder(id ID, seq, txid uint64) bool {
	switch {
	case s.byID[id] != 0:
		return true
	case s.len() >= s.most:
		return false
	}
	i := s.recordPending(id, seq, txid)
	r := s.records.at(i)
	r.committedSeq, r.committedTxid = seq, txid
	s.records.enterOldest(i)
	return true
}

// forget forgets the sessions without a transaction from txid first on.
func (s *sessions) forget(first uint64) {
	for s.len() > 0 && s.records.at(s.records.oldest()).committedTxid < first {
		s.dropOldest()
	}
	s.floor = max(s.floor, first-1)
}

func (s *sessions) dropOldest() {
	i := s.records.oldest()
	r := s.records.at(i)
	s.floor = max(s.floor, r.committedTxid)
	s.records.leave(i)
	if r.txid == r.committedTxid {
		s.drop(i)
		return
	}
	r.committedSeq, r.committedTxid = 0, 0
}

func (s *sessions) drop(i uint32) {
	delete(s.byID, s.records.at(i).id)
	s.records.free(i)
}

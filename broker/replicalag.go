package broker

import (
	"sync"
	"time"
)

// replicaLag measures how far a replica is behind its leader, by the leader's
// announcements.
type replicaLag struct {
	mu     sync.Mutex
	newest uint64    // the leader's high-water mark, as last announced
	target uint64    // an earlier one, which the replica has not reached, or the newest
	since  time.Time // when target was announced
}

// observe is called with the high-water marks of the replica and of its leader.
func (l *replicaLag) observe(mark, leader uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newest = leader
	if mark >= l.target {
		l.target, l.since = leader, now
	}
}

// read returns how many transactions the replica lacks, and for how long its
// leader has had one of them.
func (l *replicaLag) read(mark uint64, now time.Time) (transactions uint64, behind time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	transactions = l.newest - min(mark, l.newest)
	if mark < l.target {
		behind = now.Sub(l.since)
	}
	return transactions, behind
}

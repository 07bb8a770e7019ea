package broker

import (
	"fmt"
	"testing"
	"time"
)

// A replica that follows its leader at a distance is behind for as long as it
// takes it to reach what the leader has announced.
func TestReplicaLag(t *testing.T) {
	var l replicaLag
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	for _, step := range []struct {
		second, mark, leader int
		transactions         uint64
		behind               time.Duration
	}{
		{0, 5, 5, 0, 0},
		{1, 5, 9, 4, 0}, // announced just now
		{3, 8, 20, 12, 2 * time.Second},
		{4, 9, 30, 21, 0},
		{9, 29, 40, 11, 5 * time.Second},
		{10, 40, 40, 0, 0},
		{3600, 40, 41, 1, 0},
		{3601, 41, 41, 0, 0},
		{3602, 41, 7, 0, 0}, // a new leader has not applied everything yet
	} {
		l.observe(uint64(step.mark), uint64(step.leader), at(step.second))
		if n, behind := l.read(uint64(step.mark), at(step.second)); n != step.transactions || behind != step.behind {
			t.Errorf("second %d: %d transactions, %v: %+v", step.second, n, behind, step)
		}
	}
}

// However many cursors clients make, few of them have metrics.
func TestCursorsInMetricsAreBounded(t *testing.T) {
	s := partitionState{cursors: map[string]cursor{}}
	s.mark.Store(1000)
	for i := range 3 * shownCursors {
		s.cursors[fmt.Sprint("c", i)] = cursor{Txid: uint64(i), Time: int64(i)}
	}
	s.cursors["ahead"] = cursor{Txid: 2000} // of a log that was restored up to an earlier end
	all := s.furthestBehind(shownCursors)
	if len(all) != shownCursors || all[0] != (laggingCursor{"c0", 1000, 0}) || all[99] != (laggingCursor{"c99", 901, 99}) {
		t.Errorf("%d: %v", len(all), all)
	}
	if few := (&partitionState{cursors: map[string]cursor{"ahead": {Txid: 1}}}).furthestBehind(shownCursors); len(few) != 1 || few[0].lag != 0 {
		t.Errorf("%v", few)
	}
}

package broker

import (
	"fmt"
	"slices"
	"time"
)

// A clock that is wrong by years must not trim everything that is younger. So
// an age is not measured by the leader's clock as it is:
//
//   - In a cluster it is measured by the median of the clocks of the nodes that
//     are heard, the lower one of two. One clock that is ahead changes nothing.
//   - A node that hears no other believes its clock up to the time of the
//     newest transaction that it found when it began to lead, and the time that
//     has passed since by a clock that can't be set, and an hour. A clock that
//     is further ahead is believed once it has been so for a day.
//
// A clock that is behind only keeps more.
const (
	clockSlack     = time.Hour
	clockProbation = 24 * time.Hour
)

// believedClock is how far a partition's leader believes its clock. It is for
// one goroutine.
type believedClock struct {
	began  time.Duration // when the leader began, by the clock that can't be set
	newest time.Time     // of the newest transaction then
	isOff  bool          // the clock is ahead of what is believed
	ahead  time.Duration // by about how much
	since  time.Duration // since when, by the clock that can't be set
}

// newBelievedClock returns the clock of a leader that begins. steady is the
// time by a clock that can't be set. newest is the time of its newest
// transaction, zero if there is none: then there is nothing to be trimmed.
func newBelievedClock(now, newest time.Time, steady time.Duration) *believedClock {
	if newest.IsZero() {
		newest = now
	}
	return &believedClock{began: steady, newest: newest}
}

// read returns the time to measure ages by, and, if that is not now, why.
// others are the clocks of the other nodes that are heard.
func (c *believedClock) read(now time.Time, steady time.Duration, others []time.Time) (time.Time, string) {
	now = now.Round(0)
	if len(others) > 0 {
		c.isOff = false
		all := append(slices.Clone(others), now)
		slices.SortFunc(all, time.Time.Compare)
		median := all[(len(all)-1)/2].Round(0)
		if ahead := now.Sub(median); ahead > time.Minute {
			return median, fmt.Sprintf("the clock of the partition's leader is %v ahead of the other nodes': ages are measured by theirs", ahead.Round(time.Second))
		}
		if median.Before(now) {
			return median, ""
		}
		return now, ""
	}
	most := c.newest.Add(steady - c.began + clockSlack).Round(0)
	ahead := now.Sub(most)
	if ahead <= 0 {
		c.isOff = false
		return now, ""
	}
	if moved := (ahead - c.ahead).Abs(); !c.isOff || moved > clockSlack {
		c.isOff, c.ahead, c.since = true, ahead, steady
	}
	if steady-c.since >= clockProbation {
		return now, ""
	}
	return most, fmt.Sprintf("the clock is %v ahead of the partition's newest transaction and no other node confirms it: it is believed in %v",
		(ahead + clockSlack).Round(time.Second), (clockProbation - (steady - c.since)).Round(time.Second))
}

package broker

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// diskGate decides, by the room on the disks of a partition's replicas, whether
// a leader accepts transactions and a follower its leader's entries. See space.
type diskGate struct {
	partition int
	self      string // this node
	space     diskSpace
	peers     *peers
	announce  func()           // has the announcement sent now
	queues    []*queue         // they need not gather while the leader refuses
	group     *raftstore.Group // set when opened is closed
	opened    <-chan struct{}

	blocked atomic.Bool // the latest result of isBlocked, while this replica leads
	mu      sync.Mutex  // held while blocked is updated
}

// majorityHasRoom reports whether a majority of the partition's voters accept
// transactions, and returns those that are full.
func (g *diskGate) majorityHasRoom() (hasRoom bool, full []string) {
	voters, room := 0, 0
	now := time.Now()
	for _, r := range g.group.Status().Replicas {
		if !r.Voter {
			continue
		}
		voters++
		has, isFull := g.space.hasRoom(r.Name, now)
		if has {
			room++
		}
		if isFull {
			full = append(full, r.Name)
		}
	}
	return room > voters/2, full
}

// isBlocked reports whether transactions can't be committed because of full
// disks.
func (g *diskGate) isBlocked() bool {
	hasRoom, full := g.majorityHasRoom()
	return !hasRoom && len(full) > 0
}

// update updates blocked on a leader. A change is announced at once: the
// followers wait for it before they accept the entries proposed before.
func (g *diskGate) update() {
	g.mu.Lock()
	defer g.mu.Unlock()
	blocked := g.isBlocked()
	if blocked != g.blocked.Swap(blocked) {
		for _, q := range g.queues {
			q.reject(blocked)
		}
		g.announce()
	}
}

// peerFull is called when a peer has rejected this leader's entries because its
// disk is full.
func (g *diskGate) peerFull(name string) {
	g.peers.setFull(name)
	select {
	case <-g.opened:
		g.update() // even before a tenure begins: entries of the last term may wait
	default:
	}
}

// rejectsEntries reports whether this replica, as a follower, rejects entries
// of n bytes because its disk is full. It accepts them once its leader refuses
// transactions: they were proposed before that, and there are few of them.
func (g *diskGate) rejectsEntries(n int) bool {
	if !g.space.isFull() {
		return false
	}
	g.space.setFull(true) // announces it to the leader now
	_, leader, ok := g.peers.leader(g.partition, time.Now())
	return !ok || leader.Full == "" || !g.space.takesProposed(int64(n))
}

// fullError returns an error if the partition accepts no transactions because
// of full disks.
func (g *diskGate) fullError() error {
	const until = "nothing is appended until there is room: free space there, or trim"
	name := g.self
	switch {
	case g.space.isTight():
		return subjects.Errorf(subjects.StorageFull, "the disk of node %s is full: %s", name, until)
	case g.space.isLow():
		return subjects.Errorf(subjects.StorageFull, "less than %s are free on the disk of node %s: %s", humanize.IBytes(uint64(max(0, g.space.reserve()))), name, until)
	case g.blocked.Load():
		if hasRoom, full := g.majorityHasRoom(); !hasRoom && len(full) > 0 {
			return subjects.Errorf(subjects.StorageFull, "%s: %s", tooFew(full), until)
		}
	}
	return nil
}

func tooFew(full []string) string {
	return "too few of the partition's nodes have room on their disks, " + strings.Join(full, " and ") + " none"
}

// roomPatience is how long a trim waits for the commit of earlier entries for
// which there is no room.
const roomPatience = 3 * time.Second

// awaitProposed waits until the entries proposed before the call are committed,
// or do not wait for room. Otherwise a trim would wait behind them without a
// limit.
func (g *diskGate) awaitProposed(ctx context.Context) error {
	last, began := g.group.Status().LastIndex, time.Now()
	for g.group.Status().CommitIndex < last {
		hasRoom, full := g.majorityHasRoom()
		if hasRoom || len(full) == 0 {
			return nil
		}
		if time.Since(began) > roomPatience {
			return subjects.Errorf(subjects.StorageFull, "%s, not even for entries that were proposed before this one: free space there first", tooFew(full))
		}
		select {
		case <-time.After(roomPatience / 100):
		case <-ctx.Done():
			return subjects.Errorf(subjects.Unavailable, "node %s no longer leads partition %d: nothing was trimmed, try again", g.self, g.partition)
		}
	}
	return nil
}

// outcome waits for the outcome of a proposal. It returns an error if the
// proposal waits longer than roomPatience for room on disks, or longer than
// outcomeTime for anything.
func (g *diskGate) outcome(of proposal) (applied, error) {
	type outcome struct {
		result any
		err    error
	}
	done := make(chan outcome, 1)
	go func() { // ends at the latest when the group is closed
		result, err := of.Wait()
		done <- outcome{result, err}
	}()
	for began := time.Now(); ; {
		select {
		case o := <-done:
			if o.err != nil {
				return applied{}, o.err
			}
			return o.result.(applied), nil
		case <-time.After(roomPatience / 3):
		}
		waited := time.Since(began)
		if waited > outcomeTime {
			return applied{}, errLate
		}
		if hasRoom, full := g.majorityHasRoom(); !hasRoom && len(full) > 0 && waited > roomPatience {
			return applied{}, subjects.Errorf(subjects.Unknown, "%s: the request is done once there is space, unless another node leads by then: free space there, and send it again", tooFew(full))
		}
	}
}

// fullText returns the text of fullError, "" if there is room.
func (g *diskGate) fullText() string {
	if err := g.fullError(); err != nil {
		return err.Error()
	}
	return ""
}

// leaderWithRoom returns the first of voters that accepts transactions, or the
// first of all if none does.
func (g *diskGate) leaderWithRoom(voters []string, now time.Time) string {
	for _, name := range voters {
		if room, _ := g.space.hasRoom(name, now); room {
			return name
		}
	}
	return voters[0]
}

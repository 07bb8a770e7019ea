package broker

import (
	"errors"
	"strings"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// A node is full if its disk has less free space than its reserve, or than its next
// start needs. As a leader it then refuses transactions. As a follower it refuses
// its leader's entries, and the partition goes on with the others.
//
// Each node says in its hellos whether it is full, and a leader also learns it from
// the refusal. Where no majority has room, the leader refuses transactions and says
// so. Its followers, although full, then take the entries that it had proposed
// before, as far as the room that each keeps for them goes (wal.Store.TakesProposed):
// behind those is the trim that makes room. Elections, trims and the cluster's facts
// are small, and always taken.

// errFull is returned when a log is not fetched for want of room.
var errFull = errors.New("this node's disk is full")

// checkSpace checks whether the disk has room, and has the others informed when that
// changes.
func (n *Node) checkSpace() {
	free, err := n.opts.freeSpace(n.store.Dir())
	if err != nil {
		n.log.Warn("free disk space unknown", "err", err)
		return
	}
	n.free.Store(free)
	n.setFull(free < n.limits.reserve.Load() || n.store.Tight())
}

// setFull sets whether the node is full, and has the others informed if that changes.
func (n *Node) setFull(full bool) {
	if full == n.full.Swap(full) {
		return
	}
	free := n.free.Load()
	n.log.Warn("room on the disk", "enough", !full, "free_bytes", free, "reserve_bytes", n.limits.reserve.Load())
	n.advise("storage", map[string]any{"full": full, "free_bytes": free, "reserve_bytes": n.limits.reserve.Load()})
	n.helloSoon()
}

// isTight reports whether this node's store accepts nothing more; isLow, whether its
// disk has less free space than the reserve, as of a second ago; isFull, whether this
// node accepts no more transactions for either reason.
func (n *Node) isTight() bool { return n.store.Tight() }
func (n *Node) isLow() bool   { return n.full.Load() }
func (n *Node) isFull() bool  { return n.isLow() || n.isTight() }

func (n *Node) reserve() int64 { return n.limits.reserve.Load() }

func (n *Node) takesProposed(bytes int64) bool { return n.store.TakesProposed(bytes) }

// hasRoom reports whether a node accepts transactions, as far as is known, and if not,
// whether that is because it is full.
func (n *Node) hasRoom(name string, now time.Time) (room, full bool) {
	if name == n.opts.Name {
		full = n.isFull()
		return !full, full
	}
	q, _ := n.peers.get(name)
	alive := n.peers.alive(name, now)
	return alive && !q.Full, alive && q.Full
}

// majorityHasRoom reports whether a majority of the partition's voters accept
// transactions, and returns those that are full.
func (p *partition) majorityHasRoom() (hasRoom bool, full []string) {
	voters, room := 0, 0
	now := time.Now()
	for _, r := range p.group.Status().Replicas {
		if !r.Voter {
			continue
		}
		voters++
		has, isFull := p.host.space.hasRoom(r.Name, now)
		if has {
			room++
		}
		if isFull {
			full = append(full, r.Name)
		}
	}
	return room > voters/2, full
}

// isDiskBlocked reports whether transactions can't be committed because of full disks.
func (p *partition) isDiskBlocked() bool {
	hasRoom, full := p.majorityHasRoom()
	return !hasRoom && len(full) > 0
}

// updateDiskBlocked updates diskBlocked on a leader. If it changes, the followers are
// informed soon: they wait for that before they accept entries proposed before.
func (p *partition) updateDiskBlocked() {
	p.diskBlockedMu.Lock()
	defer p.diskBlockedMu.Unlock()
	blocked := p.isDiskBlocked()
	if blocked != p.diskBlocked.Swap(blocked) {
		p.queue.reject(blocked)
		p.cursors.reject(blocked)
		p.host.announce()
	}
}

// peerFull notes that a peer has refused this leader's entries for want of room.
func (p *partition) peerFull(name string) {
	p.host.peers.setFull(name)
	select {
	case <-p.opened:
		p.updateDiskBlocked() // also before it serves: entries of the last term may wait
	default:
	}
}

// rejectsEntries reports whether this replica, as a follower, rejects entries of some
// bytes for want of room. It accepts them once its leader refuses transactions: they
// were proposed before that, and there are few of them.
func (p *partition) rejectsEntries(bytes int) bool {
	space := p.host.space
	if !space.isFull() {
		return false
	}
	space.setFull(true) // the leader is to hear it now
	_, leader, ok := p.host.peers.leader(p.id, time.Now())
	return !ok || leader.Full == "" || !space.takesProposed(int64(bytes))
}

// fullError returns why the partition accepts no transactions, nil if it does.
func (p *partition) fullError() error {
	const until = "nothing is appended until there is room: free some there, or trim"
	name := p.host.name
	switch {
	case p.host.space.isTight():
		return subjects.Errorf(subjects.StorageFull, "the disk of node %s is full: %s", name, until)
	case p.host.space.isLow():
		return subjects.Errorf(subjects.StorageFull, "less than %d bytes are free on the disk of node %s: %s", p.host.space.reserve(), name, until)
	case p.diskBlocked.Load():
		if hasRoom, full := p.majorityHasRoom(); !hasRoom && len(full) > 0 {
			return subjects.Errorf(subjects.StorageFull, "%s: %s", tooFew(full), until)
		}
	}
	return nil
}

func tooFew(full []string) string {
	return "too few of the partition's nodes have room on their disks, " + strings.Join(full, " and ") + " none"
}

// roomPatience is how long an entry that needs no room waits for entries before it for
// which there is none.
const roomPatience = 3 * time.Second

// awaitProposed returns nil once the entries proposed before the call are committed, or
// do not wait for room. Otherwise a trim would wait behind them.
func (p *partition) awaitProposed() error {
	last, began := p.group.Status().LastIndex, time.Now()
	for p.group.Status().CommitIndex < last {
		hasRoom, full := p.majorityHasRoom()
		if hasRoom || len(full) == 0 {
			return nil
		}
		if time.Since(began) > roomPatience {
			return subjects.Errorf(subjects.StorageFull, "%s, not even for what was proposed before: free some there first", tooFew(full))
		}
		time.Sleep(roomPatience / 100)
	}
	return nil
}

// outcome returns the outcome of a proposal, or an error if that waits for room on disks
// for longer than roomPatience.
func (p *partition) outcome(of raftstore.Proposal) (applied, error) {
	type outcome struct {
		result any
		err    error
	}
	done := make(chan outcome, 1)
	go func() { // ends at the latest when the group is closed
		result, err := of.Wait()
		done <- outcome{result, err}
	}()
	for {
		select {
		case o := <-done:
			if o.err != nil {
				return applied{}, o.err
			}
			return o.result.(applied), nil
		case <-time.After(roomPatience):
		}
		if hasRoom, full := p.majorityHasRoom(); !hasRoom && len(full) > 0 {
			return applied{}, subjects.Errorf(subjects.Unknown, "%s: it is done when there is some, unless another node leads then: free some there, and send it again", tooFew(full))
		}
	}
}

// fullText returns fullError's text, "" if there is room.
func (p *partition) fullText() string {
	if err := p.fullError(); err != nil {
		return err.Error()
	}
	return ""
}

// leaderWithRoom returns the first of voters that accepts transactions, or the first of
// all if none does.
func (p *partition) leaderWithRoom(voters []string, now time.Time) string {
	for _, name := range voters {
		if room, _ := p.host.space.hasRoom(name, now); room {
			return name
		}
	}
	return voters[0]
}

package broker

import (
	"errors"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// A node whose disk has less free space than its reserve takes no more
// transactions: as a leader it refuses them, as a follower it turns the leader's
// entries down, and the partition goes on with the others. Each node says of
// itself in its hellos whether it is full. Where a majority is, the leader
// refuses, and what was on its way is taken by all, which is what the reserve
// is for; so are elections, cursors' trims and the cluster's facts.

// errFull is why nothing is fetched.
var errFull = errors.New("this node's disk is full")

// checkSpace looks whether the disk has room, and tells the others when that
// changes.
func (n *Node) checkSpace() {
	free, err := n.opts.freeSpace(n.store.Dir())
	if err != nil {
		n.log.Warn("free disk space unknown", "err", err)
		return
	}
	n.free.Store(free)
	full := free < n.limits.reserve.Load() || n.store.Tight()
	if full == n.full.Swap(full) {
		return
	}
	n.log.Warn("room on the disk", "enough", !full, "free_bytes", free, "reserve_bytes", n.limits.reserve.Load())
	n.advise("storage", map[string]any{"full": full, "free_bytes": free, "reserve_bytes": n.limits.reserve.Load()})
	n.helloSoon()
}

// isFull reports whether this node takes no more transactions.
func (n *Node) isFull() bool { return n.full.Load() || n.store.Tight() }

// hasRoom reports whether a node takes transactions, as far as is known, and
// whether it is full if it does not.
func (n *Node) hasRoom(name string, now time.Time) (room, full bool) {
	if name == n.opts.Name {
		full = n.isFull()
		return !full, full
	}
	q, _ := n.peers.get(name)
	alive := n.peers.alive(name, now)
	return alive && !q.Full, alive && q.Full
}

// roomy reports whether a majority of the partition's voters take transactions,
// and how many are full.
func (p *partition) roomy() (roomy bool, full int) {
	voters, room := 0, 0
	now := time.Now()
	for _, r := range p.group.Status().Replicas {
		if !r.Voter {
			continue
		}
		voters++
		has, isFull := p.node.hasRoom(r.Name, now)
		if has {
			room++
		}
		if isFull {
			full++
		}
	}
	return room > voters/2, full
}

// isCrowded reports whether transactions can't be committed because of full disks.
func (p *partition) isCrowded() bool {
	roomy, full := p.roomy()
	return !roomy && full > 0
}

// turnsDown reports whether this replica, following, takes no more transactions
// from its leader. While no majority has room it takes what is on its way.
func (p *partition) turnsDown() bool {
	if !p.node.isFull() {
		return false
	}
	if p.group == nil || p.node.store.Tight() {
		return true
	}
	roomy, _ := p.roomy()
	return roomy
}

// fullError is why the partition takes no more transactions, nil if it does.
func (p *partition) fullError() error {
	switch {
	case p.node.store.Tight():
		return subjects.Errorf(subjects.StorageFull, "the node's disk is full: nothing is appended until there is room")
	case p.node.full.Load():
		return subjects.Errorf(subjects.StorageFull, "less than %d bytes are free on the node's disk: nothing is appended until there is room", p.node.limits.reserve.Load())
	case p.crowded.Load() && p.isCrowded():
		return subjects.Errorf(subjects.StorageFull, "too few of the partition's nodes have room on their disks: nothing is appended until there is room")
	}
	return nil
}

// fullText is fullError's text, "" if there is room.
func (p *partition) fullText() string {
	if err := p.fullError(); err != nil {
		return err.Error()
	}
	return ""
}

// leaderWithRoom is the first of voters that takes transactions, and the first
// of all if none does.
func (p *partition) leaderWithRoom(voters []string, now time.Time) string {
	for _, name := range voters {
		if room, _ := p.node.hasRoom(name, now); room {
			return name
		}
	}
	return voters[0]
}

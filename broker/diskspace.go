package broker

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// A node is full if its disk has less free space than its reserve, or than its next start
// needs. As a leader it then refuses transactions. As a follower it rejects its leader's
// entries, and the partition continues with the other replicas.
//
// Each node says in its announcements whether it is full, and a leader also
// learns it from a rejection. If no majority has room, the leader refuses
// transactions and says so in its announcements. Its followers, although full,
// then accept the entries that it had proposed before, as far as the room that
// each keeps for them allows (wal.Store.TakesProposed): the trim that makes
// room comes after those entries. Votes, trims and the cluster's facts are
// small, and always accepted.

// errFull is returned when a log is not fetched because the disk is full.
var errFull = errors.New("this node's disk is full")

// space reports whether this node and others have room on their disks. It is a diskSpace.
type space struct {
	self     string
	log      *slog.Logger
	store    *wal.Store
	peers    *peers
	reserved *atomic.Int64 // bytes; see Options.MinFreeBytes
	read     func(dir string) (free int64, err error)
	advise   func(event string, fields map[string]any)
	announce func() // has the node's status sent now

	low  atomic.Bool  // less than the reserve is free
	free atomic.Int64 // bytes free on the disk
}

// check checks whether the disk has room, and announces a change.
func (s *space) check() {
	free, err := s.read(s.store.Dir())
	if err != nil {
		s.log.Warn("free disk space unknown", "err", err)
		return
	}
	s.free.Store(free)
	s.setFull(free < s.reserve() || s.store.Tight())
}

// setFull sets whether the node is full, and announces a change.
func (s *space) setFull(full bool) {
	if full == s.low.Swap(full) {
		return
	}
	free := s.free.Load()
	s.log.Warn("room on the disk", "enough", !full, "free_bytes", free, "reserve_bytes", s.reserve())
	s.advise("storage", map[string]any{"full": full, "free_bytes": free, "reserve_bytes": s.reserve()})
	s.announce()
}

// isTight reports whether this node's store accepts nothing more. isLow reports whether its
// disk had less free space than the reserve at the last check. isFull reports either.
func (s *space) isTight() bool { return s.store.Tight() }
func (s *space) isLow() bool   { return s.low.Load() }
func (s *space) isFull() bool  { return s.isLow() || s.isTight() }

func (s *space) reserve() int64 { return s.reserved.Load() }

// takesProposed reports whether there is room for entries of n bytes that were proposed
// before their leader refused transactions.
func (s *space) takesProposed(n int64) bool { return s.store.TakesProposed(n) }

// hasRoom reports whether a node is known to have room, and whether it is known to be
// full. Neither is the case if the node is away.
func (s *space) hasRoom(name string, now time.Time) (room, full bool) {
	if name == s.self {
		full = s.isFull()
		return !full, full
	}
	q, _ := s.peers.get(name)
	alive := s.peers.alive(name, now)
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

// updateDiskBlocked updates diskBlocked on a leader. A change is announced at once: the
// followers wait for it before they accept the entries proposed before.
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

// peerFull is called when a peer has rejected this leader's entries because its disk is
// full.
func (p *partition) peerFull(name string) {
	p.host.peers.setFull(name)
	select {
	case <-p.opened:
		p.updateDiskBlocked() // even before a session begins: entries of the last term may wait
	default:
	}
}

// rejectsEntries reports whether this replica, as a follower, rejects entries of n bytes
// because its disk is full. It accepts them once its leader refuses transactions: they
// were proposed before that, and there are few of them.
func (p *partition) rejectsEntries(n int) bool {
	space := p.host.space
	if !space.isFull() {
		return false
	}
	space.setFull(true) // announces it to the leader now
	_, leader, ok := p.host.peers.leader(p.id, time.Now())
	return !ok || leader.Full == "" || !space.takesProposed(int64(n))
}

// fullError returns an error if the partition accepts no transactions because of full
// disks.
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

// roomPatience is how long a trim waits for the commit of earlier entries for which there
// is no room.
const roomPatience = 3 * time.Second

// awaitProposed waits until the entries proposed before the call are committed, or do not
// wait for room. Otherwise a trim would wait behind them without a limit.
func (p *partition) awaitProposed(ctx context.Context) error {
	last, began := p.group.Status().LastIndex, time.Now()
	for p.group.Status().CommitIndex < last {
		hasRoom, full := p.majorityHasRoom()
		if hasRoom || len(full) == 0 {
			return nil
		}
		if time.Since(began) > roomPatience {
			return subjects.Errorf(subjects.StorageFull, "%s, not even for what was proposed before: free some there first", tooFew(full))
		}
		select {
		case <-time.After(roomPatience / 100):
		case <-ctx.Done():
			return subjects.Errorf(subjects.Unavailable, "the node stops: nothing was trimmed, try again")
		}
	}
	return nil
}

// outcome waits for the outcome of a proposal. It returns an error if the proposal waits
// longer than roomPatience for room on disks.
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

// fullText returns the text of fullError, "" if there is room.
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

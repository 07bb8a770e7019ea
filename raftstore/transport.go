package raftstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// sendTimeout is how long raft waits for the answer to entries, which are
	// synced before it is given.
	sendTimeout = 10 * time.Second
	// retryFirst and retryMost are between attempts to reach a peer.
	retryFirst = 5 * time.Millisecond
	retryMost  = 100 * time.Millisecond
	// retryFull is between attempts to send entries to a peer that has no room.
	retryFull = time.Second
	// maxInFlight is how many requests with entries a peer is sent before it
	// has answered the first.
	maxInFlight = 4
	// pooled is how many idle connections to a peer each transport keeps.
	pooled = 2
)

// transport is a group's raft.Transport over its node's network. Entries go
// through one of raft's own, votes, which must not wait behind them, or for
// long, through another, and heartbeats together with those of other groups.
//
// Raft itself backs off from a peer that is away, by up to ten seconds, and one
// that has come back would wait as long. So this one tries, for raft, until the
// peer is there, as long as it matters.
type transport struct {
	*raft.NetworkTransport // entries; and all that peers send
	control                *raft.NetworkTransport
	end                    *endpoint
	filter                 *rpcFilter
	inMemory               func(index uint64) bool // whether an entry is in memory
	writes                 *asyncWrites
	throttle               func(ctx context.Context, bytes int) error // waits until old entries may be sent
	raft                   atomic.Pointer[raft.Raft]
	// beatDelay is how long a heartbeat may wait for others, and patience how
	// long for its answer.
	heartbeatDelay, replyTimeout time.Duration
	heartbeatTimeout             time.Duration
	// urgent counts who waits for heartbeats to be answered.
	urgent atomic.Int64
	// transfers counts those of leadership that are under way.
	transfers atomic.Int64

	mu    sync.Mutex
	peers map[raft.ServerID]*peer
	// peerForgot is told once of a peer that has lost entries; it may be nil.
	peerLostEntries func(peer string, has, had uint64)
}

// peer is what the transport knows of a peer.
type peer struct {
	lastContact  atomic.Int64  // when it last answered a heartbeat, Unix nanoseconds
	stored       atomic.Uint64 // what it last said, outside of a pipeline, that it has
	unanswered   atomic.Int64  // heartbeats without an answer
	rejectedTerm atomic.Uint64 // the newest term in which it said that there is a newer one
	blocked      atomic.Int64  // requests that wait until it can be reached

	mu sync.Mutex
	// term is the newest one in which it has confirmed that this replica leads,
	// and asked is when the newest question that it did so to was sent, at the
	// earliest.
	term  uint64
	asked time.Time
	// acks is what it has acknowledged.
	acks peerAcks
}

// confirm notes that the peer has confirmed a term's leader.
func (p *peer) recordConfirmation(term uint64, asked time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term > p.term || term == p.term && asked.After(p.asked) {
		p.term, p.asked = term, asked
	}
}

// followed tells whether the peer has confirmed a term's leader, asked not before
// since.
func (p *peer) confirmedSince(term uint64, since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.term == term && !p.asked.Before(since)
}

var (
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func newTransport(e *endpoint, opts Options, u *asyncWrites) *transport {
	t := &transport{end: e, peers: map[raft.ServerID]*peer{}, writes: u, peerLostEntries: opts.PeerLostEntries, throttle: e.network.peers.Throttle}
	t.inMemory = func(index uint64) bool { return u.get(index) != nil || opts.Log.InMemory(index) }
	config := raft.NetworkTransportConfig{
		Logger: opts.logger, MaxPool: pooled, MaxRPCsInFlight: maxInFlight,
		Stream: streamLayer{e, true}, Timeout: sendTimeout, MsgpackUseNewTimeFormat: true,
	}
	t.NetworkTransport = raft.NewNetworkTransportWithConfig(&config)
	t.heartbeatTimeout = opts.HeartbeatTimeout
	t.heartbeatDelay, t.replyTimeout = opts.HeartbeatTimeout/10, max(2*opts.HeartbeatTimeout, 500*time.Millisecond)
	config.Stream, config.Timeout = streamLayer{e, false}, t.replyTimeout
	t.control = raft.NewNetworkTransportWithConfig(&config)
	t.filter = newRPCFilter(t.NetworkTransport.Consumer(), e.open, opts.Log, e.halt, opts.Full, e.network.peers.Warn)
	return t
}

// use tells the transport, and who it lets in, of the group that runs on it.
func (t *transport) use(g *Group) {
	t.raft.Store(g.raft)
	t.filter.raft.Store(g.raft)
	t.end.group.Store(g)
	t.end.network.recordTimeout(g.heartbeatTimeout)
}

// Consumer gives what peers ask.
func (t *transport) Consumer() <-chan raft.RPC { return t.filter.out }

// SetHeartbeatHandler implements raft.Transport.
func (t *transport) SetHeartbeatHandler(f func(raft.RPC)) { t.end.heartbeatHandler.Store(&f) }

// Close ends the transport and waits for what uses its connections.
func (t *transport) Close() error {
	t.end.stopDialing()
	_ = t.control.Close()
	_ = t.NetworkTransport.Close()
	for _, pool := range []*raft.NetworkTransport{t.control, t.NetworkTransport} {
		pool.CloseStreams()
	}
	t.end.close()
	t.filter.wait()
	return nil
}

func (t *transport) peer(id raft.ServerID) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil {
		p = &peer{}
		t.peers[id] = p
	}
	return p
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	if err := t.end.halt.err(); err != nil {
		return err
	}
	err := t.control.RequestVote(id, to, q, a)
	return t.checkTerm(id, a.Term, err)
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	if err := t.end.halt.err(); err != nil {
		return err
	}
	err := t.control.RequestPreVote(id, to, q, a)
	return t.checkTerm(id, a.Term, err)
}

// sane refuses an answer to a vote whose term leaps: raft would adopt it.
func (t *transport) checkTerm(id raft.ServerID, term uint64, err error) error {
	if err != nil || !implausibleTerm(t.filter.term(), term) {
		return err
	}
	t.end.network.peers.Warn("a peer's answer is refused: its term leaps", "peer", id, "term", term, "own", t.filter.term())
	return errImplausibleTerm
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	if err := t.end.halt.err(); err != nil {
		return err
	}
	return t.control.TimeoutNow(id, to, q, a)
}

// AppendEntries implements raft.Transport. Heartbeats fail fast.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if err := t.end.halt.err(); err != nil {
		return err
	}
	if isHeartbeat(q) {
		return t.sendHeartbeat(id, to, q, a)
	}
	q.LeaderCommitIndex = t.writes.limit(q.LeaderCommitIndex)
	p := t.peer(id)
	had, err := p.acks.beforeRequest(q)
	if err != nil {
		return err
	}
	if err := t.throttleOld(q); err != nil {
		return err
	}
	err = t.retry(id, q.Term, func() error {
		*a = raft.AppendEntriesResponse{}
		return t.NetworkTransport.AppendEntries(id, to, q, a)
	})
	switch {
	case err != nil:
	case a.Success:
		p.stored.Store(lastIndexAfter(q))
		p.acks.record(q.Term, lastIndexAfter(q))
	case a.Term == q.Term && a.LastLog < had:
		return t.reportLoss(id, p, a.LastLog, had)
	}
	return err
}

// lastOf is the newest entry that the peer has if it has taken q.
func lastIndexAfter(q *raft.AppendEntriesRequest) uint64 {
	if n := len(q.Entries); n > 0 {
		return q.Entries[n-1].Index
	}
	return q.PrevLogEntry
}

// isHeartbeat tells heartbeats from other requests without entries, as the
// receiver's transport does.
func isHeartbeat(q *raft.AppendEntriesRequest) bool {
	return len(q.Entries) == 0 && q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && q.LeaderCommitIndex == 0
}

// heartbeat sends one. A peer that doesn't answer loses its other connections:
// they are most likely as dead, and nothing else would tell for long.
func (t *transport) sendHeartbeat(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	p := t.peer(id)
	delay := t.heartbeatDelay
	if t.urgent.Load() > 0 {
		delay = 0
	}
	beats := t.end.network.heartbeatsTo(string(to))
	had := p.acks.newest(q.Term)
	term, asked := q.Term, time.Now()
	one := beats.enqueue(t.end.id, term, delay, func(a raft.AppendEntriesResponse) {
		if a.Success && a.Term == term && a.LastLog < had {
			_ = t.reportLoss(id, p, a.LastLog, had)
		}
		if p.acks.check(a.LastLog) != nil {
			return // it counts for nothing
		}
		if a.Success {
			p.recordConfirmation(term, asked)
		} else if a.Term > term {
			p.rejectedTerm.Store(term)
		}
		p.lastContact.Store(time.Now().UnixNano())
	})
	answer, err := beats.await(t.end.dialing, one, t.replyTimeout, t.heartbeatTimeout/4, func() bool { return t.presumesFollowing(p, term) })
	if err != nil {
		p.unanswered.Add(1)
		t.end.abortTo(string(to))
		return err
	}
	if err := p.acks.check(0); err != nil {
		return err
	}
	*a = answer
	return nil
}

// hurry sends heartbeats at once until done is called.
func (t *transport) expediteHeartbeats() (done func()) {
	t.urgent.Add(1)
	for _, s := range t.raft.Load().GetConfiguration().Configuration().Servers {
		if string(s.ID) != t.end.network.peers.Node() {
			t.end.network.heartbeatsTo(string(s.Address)).flushNow()
		}
	}
	return func() { t.urgent.Add(-1) }
}

// paceOld keeps old entries, which come from the disk, from crowding out what
// is new on the whole node.
func (t *transport) throttleOld(q *raft.AppendEntriesRequest) error {
	if len(q.Entries) == 0 || t.inMemory(q.Entries[0].Index) {
		return nil
	}
	bytes := 0
	for _, l := range q.Entries {
		bytes += len(l.Data) + len(l.Extensions)
	}
	return t.throttle(t.end.dialing, bytes)
}

// persist tries a request of a term until it has an answer, or doesn't matter
// any more.
func (t *transport) retry(id raft.ServerID, term uint64, try func() error) error {
	err := try()
	if err == nil {
		return nil
	}
	p := t.peer(id)
	p.blocked.Add(1)
	defer p.blocked.Add(-1)
	for pause := retryFirst; err != nil && t.worthRetrying(id, term); pause = min(2*pause, retryMost) {
		if isFull(err) {
			pause = retryFull
		}
		select {
		case <-t.end.dialing.Done():
			return err
		case <-time.After(pause):
		}
		err = try()
	}
	return err
}

// matters tells whether this replica still leads in a term, and the peer is
// one of the group's. While leadership is being handed over nothing does: raft
// would wait for a successor that is gone, and turn proposals away meanwhile.
func (t *transport) worthRetrying(id raft.ServerID, term uint64) bool {
	r := t.raft.Load()
	if r == nil || t.end.halt.err() != nil || r.State() != raft.Leader || r.CurrentTerm() != term || t.transfers.Load() > 0 {
		return false
	}
	return isMember(r, id)
}

func isMember(r *raft.Raft, id raft.ServerID) bool {
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.ID == id {
			return true
		}
	}
	return false
}

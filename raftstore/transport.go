package raftstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// sendTimeout is how long raft waits for the reply to entries, which comes
	// after the peer has synced them.
	sendTimeout = 10 * time.Second
	// retryFirst and retryMost are the shortest and the longest pause between
	// attempts to reach a peer.
	retryFirst = 5 * time.Millisecond
	retryMost  = 100 * time.Millisecond
	// retryFull is the pause between attempts to send entries to a peer whose
	// disk is full.
	retryFull = time.Second
	// maxInFlight bounds the requests with entries that a peer has not replied
	// to.
	maxInFlight = 4
	// pooled is the number of idle connections to a peer that each of the two
	// transports keeps.
	pooled = 2
)

// transport is a group's raft.Transport over its node's network. It sends
// requests in three ways. Entries go through one of raft's own transports.
// Votes go through another, since they must neither wait behind entries nor
// wait for long. Heartbeats are batched with those of other groups
// (heartbeat_send.go).
//
// Raft itself backs off from a peer that is away, by up to ten seconds, and a
// peer that comes back would wait as long. So this transport retries on raft's
// behalf until the peer is there, for as long as the request matters (retry).
//
// What peers send passes the rpcFilter on its way to raft.
type transport struct {
	*raft.NetworkTransport // entries, and all requests of peers
	control                *raft.NetworkTransport
	end                    *endpoint
	filter                 *rpcFilter
	inMemory               func(index uint64) bool // whether an entry is in memory
	writes                 *asyncWrites
	throttle               func(ctx context.Context, bytes int) error // blocks until old entries may be sent
	raft                   atomic.Pointer[raft.Raft]
	// heartbeatDelay is how long a heartbeat may wait for others, to share a
	// message, and replyTimeout how long raft waits for its reply.
	heartbeatDelay, replyTimeout time.Duration
	heartbeatTimeout             time.Duration
	// urgent counts the callers that wait for heartbeats to be confirmed.
	urgent atomic.Int64
	// transfers counts the leadership transfers that are under way.
	transfers atomic.Int64

	mu    sync.Mutex
	peers map[raft.ServerID]*peer
	// peerLostEntries is Options.PeerLostEntries; it may be nil.
	peerLostEntries func(peer string, has, had uint64)
	// peerFull is Options.PeerFull; it may be nil.
	peerFull func(peer string)
}

// peer is what this replica, leading, knows of a peer.
type peer struct {
	lastContact  atomic.Int64  // when it last replied to a heartbeat, Unix nanoseconds
	stored       atomic.Uint64 // its last entry, by its last reply outside of a pipeline
	unanswered   atomic.Int64  // heartbeats without a reply
	rejectedTerm atomic.Uint64 // the newest of this replica's terms that it has rejected
	blocked      atomic.Int64  // requests that are being retried

	mu sync.Mutex
	// term is the newest term in which the peer has confirmed that this replica
	// leads. It did so in reply to a heartbeat that was sent at asked or later.
	term  uint64
	asked time.Time
	acks  atomic.Pointer[peerAcks]
}

// recordConfirmation records that the peer has confirmed this replica as the
// leader of a term, in reply to a heartbeat that was sent at asked or later.
func (p *peer) recordConfirmation(term uint64, asked time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term > p.term || term == p.term && asked.After(p.asked) {
		p.term, p.asked = term, asked
	}
}

// confirmedSince reports whether the peer has confirmed this replica as the
// leader of a term, in reply to a heartbeat that was sent at since or later.
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
	t := &transport{end: e, peers: map[raft.ServerID]*peer{}, writes: u, peerLostEntries: opts.PeerLostEntries, peerFull: opts.PeerFull, throttle: e.network.peers.Throttle}
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

// use connects the transport with the group that runs on it.
func (t *transport) use(g *Group) {
	t.raft.Store(g.raft)
	t.filter.raft.Store(g.raft)
	t.end.group.Store(g)
	t.end.network.recordTimeout(g.heartbeatTimeout)
}

// Consumer implements raft.Transport. It returns the requests of peers that
// have passed the filter.
func (t *transport) Consumer() <-chan raft.RPC { return t.filter.out }

// SetHeartbeatHandler implements raft.Transport.
func (t *transport) SetHeartbeatHandler(f func(raft.RPC)) { t.end.heartbeatHandler.Store(&f) }

// Close closes the transport and waits for the users of its connections.
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
		p.replaced()
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

// checkTerm returns an error if the term in a reply to a vote is implausible:
// raft would adopt it.
func (t *transport) checkTerm(id raft.ServerID, term uint64, err error) error {
	if err != nil || !implausibleTerm(t.filter.term(), term) {
		return err
	}
	t.end.network.peers.Warn("reply refused: the peer's term is implausibly high", "peer", id, "term", term, "own", t.filter.term())
	return errImplausibleTerm
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	if err := t.end.halt.err(); err != nil {
		return err
	}
	return t.control.TimeoutNow(id, to, q, a)
}

// AppendEntries implements raft.Transport. It retries requests with entries, and
// not heartbeats.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if err := t.end.halt.err(); err != nil {
		return err
	}
	if isHeartbeat(q) {
		return t.sendHeartbeat(id, to, q, a)
	}
	q.LeaderCommitIndex = t.writes.limit(q.LeaderCommitIndex)
	p := t.peer(id)
	acks := p.acks.Load()
	had, err := acks.beforeRequest(q)
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
		acks.record(q.Term, lastIndexAfter(q))
	case a.Term == q.Term && a.LastLog < had:
		return t.reportLoss(id, p, acks, a.LastLog, had)
	}
	return err
}

// lastIndexAfter returns the index up to which the peer has entries once it has
// accepted q.
func lastIndexAfter(q *raft.AppendEntriesRequest) uint64 {
	if n := len(q.Entries); n > 0 {
		return q.Entries[n-1].Index
	}
	return q.PrevLogEntry
}

// isHeartbeat reports whether a request is a heartbeat, by the same test as the
// transport of the receiver: other requests may have no entries either.
func isHeartbeat(q *raft.AppendEntriesRequest) bool {
	return len(q.Entries) == 0 && q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && q.LeaderCommitIndex == 0
}

// sendHeartbeat sends a heartbeat and waits for the reply. If there is none, it
// breaks the other connections to the peer: they are most likely dead too, and
// nothing else would notice for long.
func (t *transport) sendHeartbeat(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	p := t.peer(id)
	delay := t.heartbeatDelay
	if t.urgent.Load() > 0 {
		delay = 0
	}
	batcher := t.end.network.heartbeatsTo(string(to))
	acks := p.acks.Load()
	had := acks.newest(q.Term)
	term, asked := q.Term, time.Now()
	h := batcher.enqueue(t.end.id, term, delay, func(a raft.AppendEntriesResponse) {
		if a.Success && a.Term == term && a.LastLog < had {
			_ = t.reportLoss(id, p, acks, a.LastLog, had)
		}
		if acks.check(a.LastLog) != nil {
			return // a peer that has lost entries confirms nothing
		}
		if a.Success {
			p.recordConfirmation(term, asked)
		} else if a.Term > term {
			p.rejectedTerm.Store(term)
		}
		p.lastContact.Store(time.Now().UnixNano())
	})
	reply, err := batcher.await(t.end.dialing, h, t.replyTimeout, t.heartbeatTimeout/4, func() bool { return t.presumesFollowing(p, term) })
	if err != nil {
		p.unanswered.Add(1)
		t.end.abortTo(string(to))
		return err
	}
	if err := acks.check(0); err != nil {
		return err
	}
	*a = reply
	return nil
}

// expediteHeartbeats has all heartbeats sent without delay until done is
// called.
func (t *transport) expediteHeartbeats() (done func()) {
	t.urgent.Add(1)
	for _, s := range t.raft.Load().GetConfiguration().Configuration().Servers {
		if string(s.ID) != t.end.network.peers.Node() {
			t.end.network.heartbeatsTo(string(s.Address)).flushNow()
		}
	}
	return func() { t.urgent.Add(-1) }
}

// throttleOld waits before old entries, which come from the disk, are sent.
// They must not crowd out new ones on the whole node.
func (t *transport) throttleOld(q *raft.AppendEntriesRequest) error {
	if len(q.Entries) == 0 || t.inMemory(q.Entries[0].Index) {
		return nil
	}
	return t.throttle(t.end.dialing, entryBytes(q))
}

// retry tries a request of a term until the peer has replied, or the request no
// longer matters.
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
			if t.peerFull != nil {
				t.peerFull(string(id))
			}
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

// worthRetrying reports whether this replica still leads in a term, and the
// peer is a member of the group. Nothing is worth retrying during a leadership
// transfer: raft would wait for a transferee that is gone, and reject proposals
// meanwhile.
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

package raftstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// sendTimeout is how long raft waits for the reply to a request with
	// entries. The peer replies after it has synced them.
	sendTimeout = 10 * time.Second
	// retryMin and retryMax are the shortest and the longest pause between
	// attempts to reach a peer.
	retryMin = 5 * time.Millisecond
	retryMax = 100 * time.Millisecond
	// retryFull is the pause between attempts to send entries to a peer that
	// has no room for them.
	retryFull = time.Second
	// maxRequestBytes bounds the entries in one request, in bytes. A request
	// with one entry may be larger. What a peer stores is stored in one write,
	// or not at all.
	maxRequestBytes = 4 << 20
	// maxInFlight bounds the requests with entries that are sent to a peer
	// before it replies to the first.
	maxInFlight = 4
	// maxIdleConns is the number of idle connections to a peer that each of the
	// two transports keeps.
	maxIdleConns = 2
)

// transport is a group's raft.Transport over its node's network. Requests take
// one of three paths. Entries go through one of raft's own transports: through
// its pipeline (pipeline.go), or by AppendEntries to a peer that is behind.
// Votes go through another, with a shorter timeout, so that they never wait
// behind entries. Heartbeats are batched with those of other groups
// (heartbeat_send.go). The requests of peers pass the rpcFilter on their way to
// raft.
//
// Its methods run on raft's goroutines. For each peer, raft has one goroutine
// that sends entries and one that sends heartbeats, and it starts one for each
// vote. Their sends may block: until the reply or its timeout; in retry, while
// the peer can't be reached; and in throttleOld, for the catch-up rate. They
// stop blocking when dialCtx is done. No lock is held while a request is sent.
//
// After a failed request, and after one whose entries the peer could not store,
// raft backs off from the peer by up to ten seconds, and a peer that returns or
// has room meanwhile would have to wait. So retry repeats the request on raft's
// behalf until the peer has accepted it or asks for other entries, for as long
// as this replica leads.
type transport struct {
	*raft.NetworkTransport // sends entries, and receives all requests of peers
	control                *raft.NetworkTransport
	endpoint               *endpoint
	filter                 *rpcFilter
	inMemory               func(index uint64) bool // whether an entry is in memory
	writes                 *asyncWrites
	throttle               func(ctx context.Context, bytes int) error // blocks until old entries may be sent
	raft                   atomic.Pointer[raft.Raft]
	// heartbeatDelay is how long a heartbeat may wait for others, to share a
	// message. replyTimeout is how long raft waits for the reply.
	heartbeatDelay, replyTimeout time.Duration
	heartbeatTimeout             time.Duration
	// urgent counts the callers that wait for replies to heartbeats.
	urgent atomic.Int64
	// transfers counts the leadership transfers in progress.
	transfers atomic.Int64
	// peerLostEntries is Options.PeerLostEntries; it may be nil.
	peerLostEntries func(peer string, has, had uint64)
	// peerFull is Options.PeerFull; it may be nil.
	peerFull func(peer string)

	mu    sync.Mutex // guards the fields below
	peers map[raft.ServerID]*peer
	// confirmation is closed and replaced when a peer confirms that this
	// replica leads.
	confirmation chan struct{}
}

// peer is what a leader knows about a peer.
type peer struct {
	lastContact  atomic.Int64  // when it last replied to a heartbeat, Unix nanoseconds
	stored       atomic.Uint64 // its last entry, from its last reply outside of a pipeline
	unanswered   atomic.Int64  // number of heartbeats without a reply
	rejectedTerm atomic.Uint64 // the newest term of this replica that it has rejected
	retrying     atomic.Int64  // number of requests that are being retried
	acks         atomic.Pointer[peerAcks]

	mu sync.Mutex // guards the fields below
	// confirmedTerm is the newest term in which the peer has confirmed that
	// this replica leads, by its reply to a heartbeat that was sent at
	// confirmedAt or later.
	confirmedTerm uint64
	confirmedAt   time.Time
}

// recordConfirmation records that the peer has confirmed this replica as the
// leader of a term, in reply to a heartbeat that was sent at sent or later.
func (p *peer) recordConfirmation(term uint64, sent time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term > p.confirmedTerm || term == p.confirmedTerm && sent.After(p.confirmedAt) {
		p.confirmedTerm, p.confirmedAt = term, sent
	}
}

// confirmedSince reports whether the peer has confirmed this replica as the
// leader of a term, in reply to a heartbeat that was sent at since or later.
func (p *peer) confirmedSince(term uint64, since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.confirmedTerm == term && !p.confirmedAt.Before(since)
}

var (
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func newTransport(e *endpoint, opts Options, writes *asyncWrites) *transport {
	t := &transport{
		endpoint: e, peers: map[raft.ServerID]*peer{}, confirmation: make(chan struct{}), writes: writes, throttle: e.network.peers.Throttle,
		peerLostEntries: opts.PeerLostEntries, peerFull: opts.PeerFull,
	}
	t.inMemory = func(index uint64) bool { return writes.get(index) != nil || opts.Log.InMemory(index) }
	config := raft.NetworkTransportConfig{
		Logger: opts.logger, MaxPool: maxIdleConns, MaxRPCsInFlight: maxInFlight,
		Stream: streamLayer{e, true}, Timeout: sendTimeout, MsgpackUseNewTimeFormat: true,
	}
	t.NetworkTransport = raft.NewNetworkTransportWithConfig(&config)
	t.heartbeatTimeout = opts.HeartbeatTimeout
	t.heartbeatDelay, t.replyTimeout = opts.HeartbeatTimeout/10, max(2*opts.HeartbeatTimeout, 500*time.Millisecond)
	config.Stream, config.Timeout = streamLayer{e, false}, t.replyTimeout
	t.control = raft.NewNetworkTransportWithConfig(&config)
	t.filter = newRPCFilter(e.ctx, t.NetworkTransport.Consumer(), opts.Log, e.halt, opts.Full, e.network.peers.Warn)
	return t
}

// setGroup connects the transport to the group that runs on it.
func (t *transport) setGroup(g *Group) {
	t.raft.Store(g.raft)
	t.filter.raft.Store(g.raft)
	t.endpoint.group.Store(g)
	t.endpoint.network.recordTimeout(g.heartbeatTimeout)
}

// Consumer implements raft.Transport. It returns the channel of the peers'
// requests that have passed the filter.
func (t *transport) Consumer() <-chan raft.RPC { return t.filter.out }

// SetHeartbeatHandler implements raft.Transport.
func (t *transport) SetHeartbeatHandler(f func(raft.RPC)) { t.endpoint.heartbeatHandler.Store(&f) }

// Close closes the transport and waits for the endpoint's users.
func (t *transport) Close() error {
	t.endpoint.stopDialing()
	_ = t.control.Close()
	_ = t.NetworkTransport.Close()
	for _, pool := range []*raft.NetworkTransport{t.control, t.NetworkTransport} {
		pool.CloseStreams()
	}
	t.endpoint.close()
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
	if err := t.endpoint.halt.err(); err != nil {
		return err
	}
	err := t.control.RequestVote(id, to, q, a)
	return t.checkTerm(id, a.Term, err)
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	if err := t.endpoint.halt.err(); err != nil {
		return err
	}
	err := t.control.RequestPreVote(id, to, q, a)
	return t.checkTerm(id, a.Term, err)
}

// checkTerm returns an error if the term in the reply to a vote request is
// implausible: raft would adopt it.
func (t *transport) checkTerm(id raft.ServerID, term uint64, err error) error {
	if err != nil || !implausibleTerm(t.filter.term(), term) {
		return err
	}
	t.endpoint.network.peers.Warn("reply rejected: the peer's term is implausibly high", "peer", id, "term", term, "own", t.filter.term())
	return errImplausibleTerm
}

// TimeoutNow implements raft.Transport. It is sent again if a connection fails:
// those that are kept may be to an earlier process of the node. Twice is the
// same as once.
func (t *transport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	if err := t.endpoint.halt.err(); err != nil {
		return err
	}
	var err error
	for range maxIdleConns + 1 {
		if err = t.control.TimeoutNow(id, to, q, a); err == nil {
			break
		}
	}
	return err
}

// AppendEntries implements raft.Transport. It retries requests other than
// heartbeats.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if err := t.endpoint.halt.err(); err != nil {
		return err
	}
	if isHeartbeat(q) {
		return t.sendHeartbeat(id, to, q, a)
	}
	limitBytes(q)
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
		q.LeaderCommitIndex = t.writes.limit(max(q.LeaderCommitIndex, t.commitIndex())) // a retry has a newer one
		err := t.NetworkTransport.AppendEntries(id, to, q, a)
		if err == nil && notStored(q, a) {
			err = errNotStored
		}
		return err
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

// errNotStored is the error of a request whose entries a peer could not store.
var errNotStored = errors.New("the peer could not store entries")

// notStored reports whether a peer's reply says that it could not store the
// entries: it follows this leader, and its log has the entry before them, or it
// would ask not to back off. Raft would back off, for longer each time, and
// would look for earlier entries.
func notStored(q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) bool {
	return !a.Success && !a.NoRetryBackoff && a.Term == q.Term && len(q.Entries) > 0
}

// limitBytes removes the last entries of a request that has more than
// maxRequestBytes. Raft looks at the request to see what it has sent, and sends
// the rest in the next one.
func limitBytes(q *raft.AppendEntriesRequest) {
	bytes := 0
	for i, l := range q.Entries {
		if bytes += len(l.Data) + len(l.Extensions); bytes > maxRequestBytes && i > 0 {
			q.Entries = q.Entries[:i]
			return
		}
	}
}

// commitIndex returns raft's commit index, 0 before raft is started.
func (t *transport) commitIndex() uint64 {
	if r := t.raft.Load(); r != nil {
		return r.CommitIndex()
	}
	return 0
}

// lastIndexAfter returns the index up to which the peer has entries once it has
// accepted q.
func lastIndexAfter(q *raft.AppendEntriesRequest) uint64 {
	if n := len(q.Entries); n > 0 {
		return q.Entries[n-1].Index
	}
	return q.PrevLogEntry
}

// isHeartbeat reports whether a request is a heartbeat. Other requests may have
// no entries either, so it uses the same test as raft's transport on the
// receiver.
func isHeartbeat(q *raft.AppendEntriesRequest) bool {
	return len(q.Entries) == 0 && q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && q.LeaderCommitIndex == 0
}

// sendHeartbeat sends a heartbeat and waits for the reply. If there is none, it
// breaks the other connections to the peer: they are most likely dead too, and
// requests on them would only fail after a long timeout.
func (t *transport) sendHeartbeat(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	p := t.peer(id)
	delay := t.heartbeatDelay
	if t.urgent.Load() > 0 {
		delay = 0
	}
	batcher := t.endpoint.network.heartbeatsTo(string(to))
	acks := p.acks.Load()
	had := acks.lastAcked(q.Term)
	term, sent := q.Term, time.Now()
	h := batcher.enqueue(t.endpoint.id, term, delay, func(a raft.AppendEntriesResponse) {
		if a.Success && a.Term == term && a.LastLog < had {
			_ = t.reportLoss(id, p, acks, a.LastLog, had)
		}
		if acks.check(a.LastLog) != nil {
			return // the reply of a peer that has lost entries does not count
		}
		if a.Success {
			p.recordConfirmation(term, sent)
			t.notifyConfirmation()
		} else if a.Term > term {
			p.rejectedTerm.Store(term)
		}
		p.lastContact.Store(time.Now().UnixNano())
	})
	reply, err := batcher.await(t.endpoint.dialCtx, h, t.replyTimeout, t.heartbeatTimeout/4, func() bool { return t.presumesFollowing(p, term) })
	if err != nil {
		p.unanswered.Add(1)
		t.endpoint.abortTo(string(to))
		return err
	}
	if err := acks.check(0); err != nil {
		return err
	}
	*a = reply
	return nil
}

// notifyConfirmation wakes the callers that wait for a confirmation.
func (t *transport) notifyConfirmation() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.confirmation)
	t.confirmation = make(chan struct{})
}

// expediteHeartbeats sends the queued heartbeats now, and later ones without
// delay until done is called.
func (t *transport) expediteHeartbeats() (done func()) {
	t.urgent.Add(1)
	for _, s := range t.raft.Load().GetConfiguration().Configuration().Servers {
		if string(s.ID) != t.endpoint.network.peers.Node() {
			t.endpoint.network.heartbeatsTo(string(s.Address)).flushNow()
		}
	}
	return func() { t.urgent.Add(-1) }
}

// throttleOld waits for the catch-up rate if a request has old entries, which
// are read from the disk: they must not crowd out the node's new entries.
func (t *transport) throttleOld(q *raft.AppendEntriesRequest) error {
	if len(q.Entries) == 0 || t.inMemory(q.Entries[0].Index) {
		return nil
	}
	return t.throttle(t.endpoint.dialCtx, entryBytes(q))
}

// retry sends a request of a term until the peer replies, or until shouldRetry
// returns false. It returns the last error.
func (t *transport) retry(id raft.ServerID, term uint64, try func() error) error {
	err := try()
	if err == nil {
		return nil
	}
	p := t.peer(id)
	p.retrying.Add(1)
	defer p.retrying.Add(-1)
	for pause := retryMin; err != nil && t.shouldRetry(id, term); pause = min(2*pause, retryMax) {
		if isFull(err) || errors.Is(err, errNotStored) {
			pause = retryFull
			if t.peerFull != nil {
				t.peerFull(string(id))
			}
		}
		select {
		case <-t.endpoint.dialCtx.Done():
			return err
		case <-time.After(pause):
		}
		err = try()
	}
	return err
}

// shouldRetry reports whether this replica still leads in a term and the peer
// is a member of the group. It returns false during a leadership transfer: if
// the transferee can't be reached, raft would wait for the retries, and reject
// proposals meanwhile.
func (t *transport) shouldRetry(id raft.ServerID, term uint64) bool {
	r := t.raft.Load()
	if r == nil || t.endpoint.halt.err() != nil || r.State() != raft.Leader || r.CurrentTerm() != term || t.transfers.Load() > 0 {
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

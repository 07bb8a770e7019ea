package broker

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
)

// A NATS server drops messages for a connection that is more than three
// quarters of max_pending behind, and closes a connection that falls further
// behind. The pacer prevents reads from filling a connection that far: it makes
// them send no faster than their clients receive.
//
// The pacer counts what all reads together send. A look measures how far behind
// each connection of the node's own server is and, in a cluster, asks the other
// nodes about theirs. When the bytes sent since the last look could push a
// connection too far behind, the next chunk of a read waits for another look. A
// question to other nodes is sent after the data that it is about, on the same
// connection, so an answer also confirms that the data arrived. Usually no
// connection is far behind, and all reads continue.
//
// If some are, their subscriptions tell which reads have to wait. Those look
// again until their connection catches up; the others continue. A read that can
// send nothing for takeTime ends. Correctness does not depend on the pacer: a
// client detects by itself whether anything was lost.
type pacer struct {
	*identity
	server  pacedServer
	members *peers
	reads   transmitter
	answers outbox

	questions chan paceQuestion

	state   sync.Mutex // guards what follows
	here    sendWindow // to connections of this node's server, as far as is known
	there   sendWindow // to those of other nodes' servers, as far as is known
	looking bool
	looked  time.Time // when the newest look began
	rest    time.Time // the earliest time of the next look, unless all reads wait for it
	found   natsserver.SlowConns
	peers   map[string]*peerPace
	asked   uint64    // number of the newest question
	askedAt time.Time // when it was sent; zero if it was answered by all
	askRest time.Time
	changed chan struct{} // closed when anything new is known, then replaced
}

// sendWindow counts the bytes that reads send.
type sendWindow struct {
	admitted, written int64 // since the node started
	base              int64 // the part of written that the newest look covers
}

func (w *sendWindow) room(size, most int64) bool {
	return w.admitted == w.base || w.admitted+size-w.base <= most
}

const (
	// takeTime is how long a read waits for its client to receive anything.
	takeTime = 5 * time.Second
	// guessTime bounds the wait of a read whose connection is not known.
	guessTime = 100 * time.Millisecond
	// answerTime is how long a read waits for other nodes' answers before it
	// finds out whether they are needed.
	answerTime = 250 * time.Millisecond
	// paceStep is about how often a waiting read looks again.
	paceStep = 5 * time.Millisecond
	// smallRead is the size up to which a read is sent without a look of its
	// own.
	smallRead = 64 << 10
)

// errNotTaken ends a read whose client does not take what is sent to it.
var errNotTaken = errors.New("broker: the client does not take what is sent to it")

func newPacer(i *identity, s pacedServer, members *peers, reads transmitter, answers outbox) *pacer {
	return &pacer{
		identity: i, server: s, members: members, reads: reads, answers: answers,
		questions: make(chan paceQuestion, 64), peers: map[string]*peerPace{}, changed: make(chan struct{}),
	}
}

// far returns the number of unsent bytes from which a connection counts as far
// behind.
func (p *pacer) far() int64 { return p.server.MaxPending() / 4 }

// paced is one read's part.
type paced struct {
	pacer  *pacer
	reply  string
	began  time.Time
	side   side
	total  int
	gaveUp bool
}

// side is where the connection is that a read's answer goes to.
type side uint8

const (
	anywhere side = iota
	here
	there
)

// pacing is what is known of a read that wants to send.
type pacing uint8

const (
	free    pacing = iota // it may
	unknown               // too much was sent since the last look
	stale                 // some are far behind, and the read began after the last look
	guessed               // one that is far behind may be the read's
	held                  // the read's connection is far behind
)

// wait blocks until the read may send size bytes, counts them as under way, and
// returns nil; the caller must then call written. The error is errNotTaken,
// errNoSubscriber or ctx's.
func (c *paced) wait(ctx context.Context, size int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.gaveUp {
		return errNotTaken
	}
	if c.began.IsZero() {
		c.began = time.Now()
	}
	c.total += size
	if c.pacer.admit(c, int64(size), 0) {
		return nil
	}
	start := time.Now()
	timer := time.NewTimer(paceStep)
	defer timer.Stop()
	for {
		waited := time.Since(start)
		changed := c.pacer.refresh(c, int64(size), waited)
		if c.pacer.admit(c, int64(size), waited) {
			return nil
		}
		if waited > takeTime {
			c.gaveUp = true
			return errNotTaken
		}
		timer.Reset(paceStep)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !c.pacer.server.MayHaveInterest(c.reply) {
			return errNoSubscriber
		}
	}
}

// written notes that bytes which wait admitted were written.
func (c *paced) written(size int) {
	p := c.pacer
	p.state.Lock()
	defer p.state.Unlock()
	for _, w := range p.windows(c) {
		w.written += int64(size)
	}
}

// windows are those that the read counts for. It is called with state held.
func (p *pacer) windows(c *paced) []*sendWindow {
	switch c.side {
	case here:
		return []*sendWindow{&p.here}
	case there:
		return []*sendWindow{&p.there}
	}
	return []*sendWindow{&p.here, &p.there}
}

// admit reports whether the read, which has waited for the given time, may send
// size bytes, and counts them if so.
func (p *pacer) admit(c *paced, size int64, waited time.Duration) bool {
	p.state.Lock()
	defer p.state.Unlock()
	peers := p.alive()
	for _, v := range []pacing{p.near(c, size, len(peers)), p.remote(c, size, peers)} {
		switch {
		case v == free, v == guessed && waited > guessTime, v == stale && c.total <= smallRead:
		default:
			return false
		}
	}
	for _, w := range p.windows(c) {
		w.admitted += size
	}
	return true
}

// share is how much this node's reads may send between two looks: the others
// send to the same connections.
func (p *pacer) share(peers int) int64 { return p.far() / int64(peers+1) }

// near judges a read by the newest look at this node's server.
func (p *pacer) near(c *paced, size int64, peers int) pacing {
	if c.side == there {
		return free
	}
	if !p.here.room(size, p.share(peers)) {
		return unknown
	}
	return c.judge(p.found, p.looked)
}

// judge returns how the read must be paced, given the connections that are
// behind.
func (c *paced) judge(b natsserver.SlowConns, at time.Time) pacing {
	if len(b.Slow) == 0 {
		return free
	}
	imported := strings.HasPrefix(c.reply, importedReply)
	v := free
	if b.More {
		v = guessed
	}
	for _, s := range b.Slow {
		if s.Account != c.pacer.server.AccountName() {
			if imported {
				v = guessed
			}
			continue
		}
		for _, subject := range s.Subjects {
			if server.SubjectsCollide(c.reply, subject) {
				return held
			}
		}
	}
	if v == free && c.began.After(at) {
		return stale
	}
	return v
}

// importedReply begins the reply subjects that a NATS server makes for requests
// of other accounts. The subscribers of such subjects are not known.
const importedReply = "_R_."

// refresh looks up what is not known about the read's connection, unless that
// is under way. It returns a channel that is closed when anything new is known.
func (p *pacer) refresh(c *paced, size int64, waited time.Duration) <-chan struct{} {
	now := time.Now()
	p.state.Lock()
	changed := p.changed
	peers := p.alive()
	near, far := p.near(c, size, len(peers)), p.remote(c, size, peers)
	look := near != free && !p.looking && (near == unknown || now.After(p.rest))
	p.looking = p.looking || look
	ask := p.mayAsk(far, now)
	classify := near == free && far != free && c.side == anywhere && waited > answerTime && !strings.HasPrefix(c.reply, importedReply)
	p.state.Unlock()
	if look {
		p.look()
	}
	if ask {
		p.ask()
	}
	if classify {
		c.side = p.find(c.reply)
	}
	return changed
}

// look finds the connections of this node's server that are far behind.
func (p *pacer) look() {
	p.state.Lock()
	base, at := p.here.written, time.Now()
	p.state.Unlock()
	found := p.server.Behind(p.far())
	p.state.Lock()
	defer p.state.Unlock()
	p.here.base, p.found, p.looked, p.looking = base, found, at, false
	p.rest = restAfter(at)
	p.wake()
}

// restAfter returns when to check again, so that checks take little of the
// time.
func restAfter(began time.Time) time.Time {
	now := time.Now()
	return now.Add(max(paceStep, 10*now.Sub(began)))
}

// wake is called with state held.
func (p *pacer) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// find reports whether one of this node's own connections subscribes to a
// subject.
func (p *pacer) find(reply string) side {
	if p.server.Subscribed(reply) {
		return here
	}
	return there
}

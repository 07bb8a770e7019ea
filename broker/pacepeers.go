package broker

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
)

// peerPace is what another node has said of its connections.
type peerPace struct {
	number uint64 // of the question that it answered
	base   int64  // bytes written to other nodes that its answer covers
	at     time.Time
	found  natsserver.SlowConns
}

// paceQuestion asks the other nodes which of their connections are far behind.
// It is sent behind the data that it is about.
type paceQuestion struct {
	Node   string `json:"node"`
	Number uint64 `json:"number"`
	Base   int64  `json:"base"`
}

// paceAnswer answers it.
type paceAnswer struct {
	Node     string       `json:"node"`
	Question paceQuestion `json:"question"`
	natsserver.SlowConns
}

// askAgain is how long a question may go without an answer of each node: the
// data before it may be under way for a long time, or it was lost.
const askAgain = 2 * time.Second

// listedBytes bounds the subjects that an answer lists.
const listedBytes = 64 << 10

// alive returns the other nodes, and forgets those that have gone. It is called
// with state held.
func (p *pacer) alive() []string {
	if !p.opts.clustered() {
		return nil
	}
	var names []string
	for _, q := range p.members.all(time.Now()) {
		if q.Leaving {
			continue
		}
		names = append(names, q.Name)
		if p.peers[q.Name] == nil {
			p.peers[q.Name] = &peerPace{base: p.there.written, at: time.Now()}
		}
	}
	for name := range p.peers {
		if !slices.Contains(names, name) {
			delete(p.peers, name)
		}
	}
	return names
}

// remote judges a read by what the other nodes said last.
func (p *pacer) remote(c *paced, size int64, peers []string) pacing {
	if c.side == here {
		return free
	}
	worst := free
	for _, name := range peers {
		q := p.peers[name]
		w := p.there
		w.base = q.base
		v := unknown
		if w.room(size, p.share(len(peers))) {
			v = c.judge(q.found, q.at)
		}
		worst = max(worst, v)
	}
	return worst
}

// mayAsk reports whether a question is to be sent for a read, and notes that it
// is. It is called with state held.
func (p *pacer) mayAsk(v pacing, now time.Time) bool {
	if v == free || !p.askedAt.IsZero() && now.Sub(p.askedAt) < askAgain || v != unknown && now.Before(p.askRest) {
		return false
	}
	p.asked++
	p.askedAt = now
	return true
}

func (p *pacer) ask() {
	p.state.Lock()
	q := paceQuestion{Node: p.opts.Name, Number: p.asked, Base: p.there.written}
	p.state.Unlock()
	subject := p.names.Admin("pace")
	if err := p.reads.Send(natslink.AppendPub(nil, subject, p.envelope(subject, q))); err != nil {
		p.log.Debug("other nodes not asked for their connections", "err", err)
	}
}

// onQuestion takes another node's question in. It runs on the link's reading
// goroutine.
func (p *pacer) onQuestion(m *natslink.Message) {
	var q paceQuestion
	if !p.open(m, &q) || q.Node == p.opts.Name {
		return
	}
	select {
	case p.questions <- q:
	default: // it asks again
	}
}

// open reads what another node of the cluster says, and reports whether it is
// one.
func (p *pacer) open(m *natslink.Message, v any) bool {
	e, err := openEnvelope(m.Payload)
	return err == nil && e.protocol == p.opts.protocol && e.cluster != "" && p.proved(e, m.Subject) && json.Unmarshal(e.body, v) == nil
}

// answer answers questions until ctx ends.
func (p *pacer) answer(ctx context.Context) {
	for {
		var all []paceQuestion
		select {
		case q := <-p.questions:
			all = append(all, q)
		case <-ctx.Done():
			return
		}
		for len(p.questions) > 0 {
			all = append(all, <-p.questions)
		}
		began := time.Now()
		found := p.server.Behind(p.far())
		found.Cut(listedBytes)
		for _, q := range all {
			if _, known := p.members.get(q.Node); known {
				subject := p.names.Admin("pace", q.Node)
				a := paceAnswer{Node: p.opts.Name, Question: q, SlowConns: found}
				p.answers.Enqueue(natslink.AppendPub(nil, subject, p.envelope(subject, a)))
			}
		}
		select {
		case <-time.After(min(4*time.Since(began), time.Second)):
		case <-ctx.Done():
			return
		}
	}
}

// onAnswer takes another node's answer in. It is believed only as far as it
// holds reads up for a while.
func (p *pacer) onAnswer(m *natslink.Message) {
	var a paceAnswer
	if !p.open(m, &a) {
		return
	}
	p.state.Lock()
	defer p.state.Unlock()
	q := p.peers[a.Node]
	if q == nil || a.Question.Number <= q.number || a.Question.Number > p.asked || a.Question.Base > p.there.written {
		return
	}
	*q = peerPace{number: a.Question.Number, base: max(q.base, a.Question.Base), at: p.askedAt, found: a.SlowConns}
	if q.number == p.asked {
		done := true
		for _, other := range p.peers {
			done = done && other.number == p.asked
		}
		if done {
			p.askRest = restAfter(p.askedAt)
			p.askedAt = time.Time{}
		}
	}
	p.wake()
}

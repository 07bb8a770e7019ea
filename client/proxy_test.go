package client_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// proxied is the prefix at which a proxy answers.
const proxied = "proxied"

// fault is what a proxy does to one message.
type fault uint8

const (
	pass     fault = iota
	swallow        // not forwarded, not answered
	lose           // forwarded, the answer lost
	twice          // forwarded twice, and both answers returned
	late           // forwarded, the answer delayed until the next one
	garble         // forwarded, the answer malformed
	busy           // refused, not forwarded
	unavail        // refused, not forwarded
	full           // refused, not forwarded
	unknown        // forwarded, and answered as unknown
	internal       // forwarded, and answered as internal
	nobody         // not forwarded; "no responders"
	strange        // not forwarded; a reason of a later version
	faults         // number of faults
)

var faultNames = [...]string{"pass", "swallow", "lose", "twice", "late", "garble", "busy", "unavailable", "storage_full",
	"unknown", "internal", "no responders", "a reason of a later version"}

var refusals = map[fault]subjects.Reason{
	busy: subjects.Busy, unavail: subjects.Unavailable, full: subjects.StorageFull,
	unknown: subjects.Unknown, internal: subjects.Internal,
}

// proxy forwards requests from the prefix "proxied" to a node, with faults.
type proxy struct {
	t  testing.TB
	nc *nats.Conn

	mu   sync.Mutex
	next func(m *nats.Msg) fault
	seen int
	kept []*nats.Msg // delayed answers
}

// newProxy returns a proxy for batches, a client of it, and a client that is
// connected to the node directly. next decides on each message.
func newProxy(t testing.TB, opts client.Options, next func(m *nats.Msg) fault) (p *proxy, faulty, direct *client.Client) {
	t.Helper()
	n := openNode(t, broker.Options{})
	p = &proxy{t: t, nc: connect(t, n), next: next}
	if _, err := p.nc.Subscribe(proxied+".batch.*", p.onBatch); err != nil {
		t.Fatal(err)
	}
	if err := p.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	opts.Prefix = proxied
	return p, newClient(t, connect(t, n), opts), newClient(t, connect(t, n), client.Options{})
}

// messages returns the number of messages so far.
func (p *proxy) messages() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

func (p *proxy) onBatch(m *nats.Msg) {
	p.mu.Lock()
	p.seen++
	f := p.next(m)
	kept := p.kept
	p.kept = nil
	p.mu.Unlock()
	switch f {
	case swallow:
	case nobody:
		p.answer(&nats.Msg{Subject: m.Reply, Header: nats.Header{"Status": {"503"}}})
	case busy, unavail, full:
		p.refuse(m, refusals[f])
	case strange:
		p.answerJSON(m, subjects.Reply{Error: &subjects.Error{Code: 599, Reason: "strange", Message: "?"}})
	default:
		answer := p.forward(m)
		if answer == nil {
			return
		}
		switch f {
		case pass:
			p.answer(answer)
		case late:
			p.mu.Lock()
			p.kept = append(p.kept, answer)
			p.mu.Unlock()
		case twice:
			p.answer(answer)
			p.answer(p.forward(m))
		case garble:
			p.answer(&nats.Msg{Subject: m.Reply, Data: []byte(`{"partition":0,"results":[{"ind`)})
		case unknown, internal:
			p.refuse(m, refusals[f])
		}
	}
	for _, k := range kept {
		p.answer(k)
	}
}

// forward forwards a message to the node and returns its answer.
func (p *proxy) forward(m *nats.Msg) *nats.Msg {
	to := &nats.Msg{Subject: "cantus" + strings.TrimPrefix(m.Subject, proxied), Header: m.Header, Data: m.Data}
	answer, err := p.nc.RequestMsg(to, 30*time.Second)
	if err != nil {
		return nil // the client resends
	}
	return &nats.Msg{Subject: m.Reply, Header: answer.Header, Data: answer.Data}
}

func (p *proxy) refuse(m *nats.Msg, reason subjects.Reason) {
	p.answerJSON(m, subjects.Reply{Error: subjects.Errorf(reason, "so the proxy says")})
}

func (p *proxy) answerJSON(m *nats.Msg, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		p.t.Error(err)
	}
	p.answer(&nats.Msg{Subject: m.Reply, Header: nats.Header{subjects.HeaderErrorCode: {"0"}}, Data: body})
}

func (p *proxy) answer(m *nats.Msg) {
	if m == nil {
		return
	}
	if err := p.nc.PublishMsg(m); err != nil {
		p.t.Logf("answer: %v", err)
	}
}

// always applies f to every message.
func always(f fault) func(*nats.Msg) fault { return func(*nats.Msg) fault { return f } }

// first applies f to the first n messages, and passes the others.
func first(n int, f fault) func(*nats.Msg) fault {
	return func(*nats.Msg) fault {
		if n--; n >= 0 {
			return f
		}
		return pass
	}
}

// quick are options for tests in which attempts fail.
var quick = client.Options{
	AttemptTimeout: 100 * time.Millisecond, MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, MaxBatch: 20,
}

package client_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/cantustest"
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

var faultsOf = map[fault]cantustest.Fault{
	pass: {}, swallow: cantustest.Drop(), lose: cantustest.LoseAnswer(), twice: cantustest.Repeat(),
	late: cantustest.LateAnswer(), garble: cantustest.GarbleAnswer(),
	busy: cantustest.RefuseAs(subjects.Busy), unavail: cantustest.RefuseAs(subjects.Unavailable), full: cantustest.RefuseAs(subjects.StorageFull),
	unknown: cantustest.AnswerAs(subjects.Unknown), internal: cantustest.AnswerAs(subjects.Internal),
	nobody:  cantustest.NoResponders(),
	strange: cantustest.Refuse(&subjects.Error{Code: 599, Reason: "strange", Message: "?"}),
}

// proxy is a log that clients find at the prefix "proxied". What they append
// meets faults.
type proxy struct {
	t   testing.TB
	log *cantustest.Log
	nc  *nats.Conn
}

// openProxy returns a proxy. next decides on each append.
func openProxy(t testing.TB, next func(m *nats.Msg) fault) *proxy {
	t.Helper()
	p := &proxy{t: t, log: cantustest.New(t, cantustest.Options{Partitions: 2, Prefix: proxied})}
	p.nc = p.connect()
	p.fail(next)
	return p
}

// fail has next decide on each append from now on.
func (p *proxy) fail(next func(m *nats.Msg) fault) {
	p.log.FailFunc(cantustest.Append, func(m *nats.Msg) cantustest.Fault { return faultsOf[next(m)] })
}

// newProxy returns a proxy, a client of it, and a client that is connected to
// the node directly.
func newProxy(t testing.TB, opts client.Options, next func(m *nats.Msg) fault) (p *proxy, faulty, direct *client.Client) {
	t.Helper()
	p = openProxy(t, next)
	opts.Prefix = proxied
	return p, newClient(t, p.connect(), opts), p.direct()
}

// connect returns a connection, closed in cleanup.
func (p *proxy) connect() *nats.Conn {
	p.t.Helper()
	nc, err := p.log.Connect()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(nc.Close)
	return nc
}

// direct returns a client that meets no faults: it uses the node's own prefix.
func (p *proxy) direct() *client.Client {
	p.t.Helper()
	return newClient(p.t, p.connect(), client.Options{Prefix: "cantustest"})
}

// messages returns the number of messages with appends so far.
func (p *proxy) messages() int { return p.log.Seen(cantustest.Append) }

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

// openFaultyProxy opens a proxy with faults at random, and connects to it. Now
// and then the connection breaks, too.
func openFaultyProxy(t *testing.T) (*proxy, *nats.Conn) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p := openProxy(t, always(pass))
	nc := p.connect()
	p.fail(func(*nats.Msg) fault {
		if random.IntN(20) == 0 {
			if err := nc.ForceReconnect(); err != nil {
				t.Error(err)
			}
		}
		if random.IntN(2) == 0 {
			return pass
		}
		return fault(random.IntN(int(faults)))
	})
	return p, nc
}

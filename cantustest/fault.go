package cantustest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Verb is a sort of message.
type Verb string

// The verbs.
const (
	Append Verb = "append" // append, append by key and batch
	Read   Verb = "read"
	Get    Verb = "get"
	Info   Verb = "info"
	Cursor Verb = "cursor"
	Feed   Verb = "feed" // a transaction published
)

// Fault is what becomes of a message. The zero value lets it pass.
type Fault struct {
	err          *subjects.Error
	noResponders bool
	drop         bool // the request
	loseAnswer   bool // the answer
	repeat       bool
	repeatAnswer bool // the answer
	losePart     int  // of the answer that is lost, 1 for the first; 0 for none
	delay        time.Duration
	answerDelay  time.Duration
	release      <-chan struct{}
	alter        bool
	forge        bool
}

// Refuse answers with a refusal, and the log hears nothing. Where several
// transactions came in one message each of them is refused. A conflict should name
// its lock and txid.
func Refuse(err *subjects.Error) Fault { return Fault{err: err} }

// RefuseAs is Refuse with a reason alone.
func RefuseAs(reason subjects.Reason) Fault {
	return Refuse(subjects.Errorf(reason, "the test asked for this"))
}

// RefuseConflict is Refuse for a lock that txid recorded.
func RefuseConflict(lock string, txid uint64) Fault {
	err := subjects.Errorf(subjects.Conflict, "the test asked for this")
	err.Lock, err.Txid = lock, txid
	err.Conflicts = []subjects.ConflictingLock{{Lock: lock, Mode: "write", Txid: txid}}
	return Refuse(err)
}

// NoResponders answers as NATS does where a partition has no leader.
func NoResponders() Fault { return Fault{noResponders: true} }

// Drop loses the message: a request is neither carried out nor answered.
func Drop() Fault { return Fault{drop: true} }

// LoseAnswer has the request carried out, and its answer lost.
func LoseAnswer() Fault { return Fault{loseAnswer: true} }

// LosePart has a read carried out, and one message of its answer lost: 1 is the
// first. Its end, or a refusal, is not lost.
func LosePart(n int) Fault { return Fault{losePart: n} }

// Repeat passes the message on twice; both requests are answered.
func Repeat() Fault { return Fault{repeat: true} }

// RepeatAnswer gives each message of the answer twice.
func RepeatAnswer() Fault { return Fault{repeatAnswer: true} }

// Alter changes the payload of a transaction on the feed, behind the signature of
// the packed form.
func Alter() Fault { return Fault{alter: true} }

// Forge puts another transaction of the same txid on the feed, before the one of
// the log. The packed form is signed with another key.
func Forge() Fault { return Fault{forge: true} }

// Delay passes the message on d later.
func Delay(d time.Duration) Fault { return Fault{delay: d} }

// DelayAnswer gives the answer d later.
func DelayAnswer(d time.Duration) Fault { return Fault{answerDelay: d} }

// Hold passes the message on when release is closed.
func Hold(release <-chan struct{}) Fault { return Fault{release: release} }

// rules says which message meets which fault.
type rules struct {
	mu      sync.Mutex
	next    map[Verb][]Fault
	funcs   map[Verb]func(*nats.Msg) Fault
	seen    map[Verb]int
	changed chan struct{} // closed at the next message; nil while nobody waits
}

// FailNext applies the fault to the next n messages of a verb, after those that
// earlier calls of FailNext claimed.
func (l *Log) FailNext(n int, verb Verb, fault Fault) {
	l.rules.mu.Lock()
	defer l.rules.mu.Unlock()
	if l.rules.next == nil {
		l.rules.next = map[Verb][]Fault{}
	}
	for range n {
		l.rules.next[verb] = append(l.rules.next[verb], fault)
	}
}

// FailFunc has decide choose the fault of each message of the verb that FailNext
// does not claim; nil lets them pass again. decide is called for one message at
// a time; it must not keep or change it, nor call the log.
func (l *Log) FailFunc(verb Verb, decide func(m *nats.Msg) Fault) {
	l.rules.mu.Lock()
	defer l.rules.mu.Unlock()
	if l.rules.funcs == nil {
		l.rules.funcs = map[Verb]func(*nats.Msg) Fault{}
	}
	l.rules.funcs[verb] = decide
}

// Seen is how many messages of the verb have come.
func (l *Log) Seen(verb Verb) int {
	l.rules.mu.Lock()
	defer l.rules.mu.Unlock()
	return l.rules.seen[verb]
}

// Await returns nil once n messages of the verb have come.
func (l *Log) Await(ctx context.Context, verb Verb, n int) error {
	r := &l.rules
	for {
		r.mu.Lock()
		seen := r.seen[verb]
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		changed := r.changed
		r.mu.Unlock()
		if seen >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d messages of %s have come: %w", seen, n, verb, context.Cause(ctx))
		}
	}
}

// meet returns the fault for a message.
func (r *rules) faultFor(verb Verb, m *nats.Msg) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[Verb]int{}
	}
	r.seen[verb]++
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	if next := r.next[verb]; len(next) > 0 {
		r.next[verb] = next[1:]
		return next[0]
	}
	if decide := r.funcs[verb]; decide != nil {
		return decide(m)
	}
	return Fault{}
}

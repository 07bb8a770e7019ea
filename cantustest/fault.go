package cantustest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Verb is a kind of message.
type Verb string

// Verbs.
const (
	Append Verb = "append" // append, append by key, and batch
	Read   Verb = "read"
	Get    Verb = "get"
	Info   Verb = "info"
	Cursor Verb = "cursor"
	Feed   Verb = "feed" // a published transaction
)

// Fault is what happens to a message. The zero value passes it on.
type Fault struct {
	err          *subjects.Error
	noResponders bool
	drop         bool
	loseAnswer   bool
	repeat       bool
	repeatAnswer bool
	losePart     int // the number of the lost message of the answer, from 1; 0: none
	delay        time.Duration
	answerDelay  time.Duration
	release      <-chan struct{}
	alter        bool
	forge        bool
	whole        bool            // err is of the message, not of each transaction
	answerErr    *subjects.Error // replaces the answer
	garble       bool            // the answer
	lateAnswer   bool
}

// Refuse replies with a refusal; the node does not get the request. If the
// message contains several transactions, each of them is refused. A conflict
// should have a Lock and a Txid.
func Refuse(err *subjects.Error) Fault { return Fault{err: err} }

// RefuseAs is Refuse with a reason only.
func RefuseAs(reason subjects.Reason) Fault {
	return Refuse(subjects.Errorf(reason, "the test asked for this"))
}

// RefuseConflict is Refuse with a conflict over a lock that txid recorded.
func RefuseConflict(lock string, txid uint64) Fault {
	err := subjects.Errorf(subjects.Conflict, "the test asked for this")
	err.Lock, err.Txid = lock, txid
	err.Conflicts = []subjects.ConflictingLock{{Lock: lock, Mode: "write", Txid: txid}}
	return Refuse(err)
}

// RefuseMessage is Refuse for the message as a whole, whatever it contains.
func RefuseMessage(err *subjects.Error) Fault { return Fault{err: err, whole: true} }

// NoResponders replies as NATS does if a partition has no leader.
func NoResponders() Fault { return Fault{noResponders: true} }

// Drop loses the message: a request is neither executed nor answered.
func Drop() Fault { return Fault{drop: true} }

// LoseAnswer executes the request and loses its answer.
func LoseAnswer() Fault { return Fault{loseAnswer: true} }

// AnswerAs executes the request and replaces its answer with a refusal, such as
// one of the reason unknown.
func AnswerAs(reason subjects.Reason) Fault {
	return Fault{answerErr: subjects.Errorf(reason, "the test asked for this")}
}

// GarbleAnswer executes the request and replaces its answer with the beginning
// of one.
func GarbleAnswer() Fault { return Fault{garble: true} }

// LateAnswer executes the request and delays its answer until another request
// comes, of any verb.
func LateAnswer() Fault { return Fault{lateAnswer: true} }

// LosePart executes a read and loses the n-th message of its answer, n from 1.
// It never loses the end of a read or a refusal.
func LosePart(n int) Fault { return Fault{losePart: n} }

// Repeat passes the message on twice. Both requests are answered.
func Repeat() Fault { return Fault{repeat: true} }

// RepeatAnswer sends each message of the answer twice.
func RepeatAnswer() Fault { return Fault{repeatAnswer: true} }

// Alter changes the payload of a transaction on the feed and leaves the
// signature of the packed form as it is.
func Alter() Fault { return Fault{alter: true} }

// Forge publishes a forged transaction of the same txid on the feed before the
// real one. Its packed form is signed with another key.
func Forge() Fault { return Fault{forge: true} }

// Delay passes the message on after d.
func Delay(d time.Duration) Fault { return Fault{delay: d} }

// DelayAnswer sends the answer after d.
func DelayAnswer(d time.Duration) Fault { return Fault{answerDelay: d} }

// Hold passes the message on when release is closed.
func Hold(release <-chan struct{}) Fault { return Fault{release: release} }

// rules selects the fault of each message.
type rules struct {
	mu      sync.Mutex
	next    map[Verb][]Fault
	funcs   map[Verb]func(*nats.Msg) Fault
	seen    map[Verb]int
	changed chan struct{} // closed at the next message; nil if nobody waits
}

// FailNext applies the fault to the next n messages of a verb, after those that
// earlier calls of FailNext apply to.
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

// FailFunc calls decide for the fault of each message of the verb to which no
// FailNext applies. A nil decide ends that. decide is not called concurrently;
// it must not retain or change the message, nor call methods of the log.
func (l *Log) FailFunc(verb Verb, decide func(m *nats.Msg) Fault) {
	l.rules.mu.Lock()
	defer l.rules.mu.Unlock()
	if l.rules.funcs == nil {
		l.rules.funcs = map[Verb]func(*nats.Msg) Fault{}
	}
	l.rules.funcs[verb] = decide
}

// Seen returns the number of messages of the verb so far.
func (l *Log) Seen(verb Verb) int {
	l.rules.mu.Lock()
	defer l.rules.mu.Unlock()
	return l.rules.seen[verb]
}

// Await returns nil once there were n messages of the verb.
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
			return fmt.Errorf("%d of %d %s messages so far: %w", seen, n, verb, context.Cause(ctx))
		}
	}
}

// faultFor counts a message and returns its fault.
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

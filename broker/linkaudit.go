package broker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// The server answers a SUB that it refuses, or a subscription that it takes back,
// with an -ERR that often does not name it. So whenever the server objects to
// anything, the link compares what it has asked for with what the server has: that
// is exact, whatever the reason. What the server lacks it is asked for again each
// second, until it takes it.
type audits struct {
	// has returns the ids of a connection's subscriptions at the server; nil for
	// none to ask.
	has func(client uint64) (map[int]bool, error)

	objections atomic.Int64  // -ERRs so far
	audited    atomic.Int64  // of them, those that an audit has seen
	said       atomic.Value  // the newest, a string
	objected   chan struct{} // capacity 1
	running    sync.WaitGroup

	auditing sync.Mutex
	// refused holds why the server lacks a subscription; link.handling guards it.
	refused map[int]string
}

func newAudits() audits { return audits{objected: make(chan struct{}, 1), refused: map[int]string{}} }

const (
	auditTime  = 5 * time.Second
	auditPause = time.Second // before a refused subscription is asked for again
)

// refusedError says that the server does not take a subscription.
type refusedError struct{ subject, said string }

func (e refusedError) Error() string {
	return fmt.Sprintf("the NATS server refuses the node's subscription to %s: %s", e.subject, e.said)
}

// object takes an -ERR in. It runs on the reading goroutine.
func (l *link) object(said string) {
	l.log.Warn("the NATS server reports an error", "link", l.name, "message", said)
	l.audits.said.Store(said)
	l.audits.objections.Add(1)
	select {
	case l.audits.objected <- struct{}{}:
	default: // an audit is due
	}
}

// watch audits when the server has objected, and asks again for what it refused.
func (l *link) watch() {
	var again <-chan time.Time
	for {
		renew := false
		select {
		case <-l.closing:
			return
		case <-l.audits.objected:
			if l.audits.objections.Load() == l.audits.audited.Load() {
				continue // seen by an audit already
			}
		case <-again:
			renew = true
		}
		ctx, cancel := context.WithTimeout(context.Background(), auditTime)
		err := l.audit(ctx, renew)
		cancel()
		if err != nil {
			l.log.Debug("subscriptions not compared with the server's", "link", l.name, "err", err)
		}
		again = nil
		if err != nil || l.trouble() != "" {
			again = time.After(auditPause)
		}
	}
}

// audit compares the subscriptions with the server's. With renew it asks for the
// refused ones again first.
func (l *link) audit(ctx context.Context, renew bool) error {
	if l.audits.has == nil {
		return nil
	}
	l.audits.auditing.Lock()
	defer l.audits.auditing.Unlock()
	asked := l.askedFor(renew)
	if err := l.flush(ctx); err != nil {
		return err
	}
	seen := l.audits.objections.Load()
	l.mu.Lock()
	client := l.client
	l.mu.Unlock()
	has, err := l.audits.has(client)
	if err != nil {
		return err
	}
	said, _ := l.audits.said.Load().(string)
	l.handling.Lock()
	defer l.handling.Unlock()
	for id := range asked {
		s, known := l.handlers[id]
		_, refused := l.audits.refused[id]
		switch {
		case !known || s.ending || has[id]:
			delete(l.audits.refused, id)
		case !refused:
			l.audits.refused[id] = said
			l.log.Error("the NATS server refuses a subscription", "link", l.name, "subject", s.subject, "message", said)
		}
	}
	l.audits.audited.Store(seen)
	return nil
}

// askedFor returns the subscriptions that the server has been asked for.
func (l *link) askedFor(renew bool) map[int]bool {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.handling.RLock()
	defer l.handling.RUnlock()
	asked := make(map[int]bool, len(l.handlers))
	var out []byte
	for id, s := range l.handlers {
		if s.ending {
			continue
		}
		asked[id] = true
		if _, refused := l.audits.refused[id]; refused && renew {
			out = appendSub(out, s.subject, s.queue, id)
		}
	}
	if err := l.write(out); err != nil {
		l.log.Debug("subscriptions not renewed", "link", l.name, "err", err)
	}
	return asked
}

// taken returns nil once the server has taken subscriptions, and a refusedError
// if it refuses one of them.
func (l *link) taken(ctx context.Context, ids ...int) error {
	if err := l.flush(ctx); err != nil {
		return err
	}
	if l.audits.objections.Load() != l.audits.audited.Load() {
		if err := l.audit(ctx, false); err != nil {
			return err
		}
	}
	l.handling.RLock()
	defer l.handling.RUnlock()
	for _, id := range ids {
		if said, refused := l.audits.refused[id]; refused {
			return refusedError{l.handlers[id].subject, said}
		}
	}
	return nil
}

// trouble says what keeps the link from hearing all that it should, "" if nothing
// does.
func (l *link) trouble() string {
	l.mu.Lock()
	lost := l.lost && !l.closed
	l.mu.Unlock()
	if lost {
		return "a connection of the node to its own NATS server is lost: " + l.lastSaid()
	}
	if err := l.refusal(); err != nil {
		return err.Error()
	}
	return ""
}

// refusal is a subscription that the server refuses, as a refusedError.
func (l *link) refusal() error {
	l.handling.RLock()
	defer l.handling.RUnlock()
	for id, said := range l.audits.refused {
		return refusedError{l.handlers[id].subject, said}
	}
	return nil
}

// lastSaid is the server's newest objection.
func (l *link) lastSaid() string {
	if said, ok := l.audits.said.Load().(string); ok {
		return said
	}
	return "it is dialed again"
}

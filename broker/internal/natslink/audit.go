package natslink

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// audits compare the subscriptions that the link has requested with those that
// the server has. When the server refuses or revokes a subscription, it sends
// an -ERR that often does not name the subscription. So after any -ERR the link
// compares all of them. It requests the missing ones again each second, until
// the server accepts them.
type audits struct {
	errors    atomic.Int64  // number of -ERRs so far
	audited   atomic.Int64  // value of errors at the last audit
	lastError atomic.Value  // the text of the newest -ERR, a string
	wake      chan struct{} // capacity 1
	running   sync.WaitGroup

	// auditing is held during an audit, which waits for the server.
	auditing sync.Mutex
	// refused has the reason of each subscription that the server lacks, by id.
	// Link.handling guards it.
	refused map[int]string
}

func newAudits() audits { return audits{wake: make(chan struct{}, 1), refused: map[int]string{}} }

const (
	// AuditTimeout bounds one audit.
	AuditTimeout = 5 * time.Second
	// RetryInterval is how long the link waits before it requests a refused
	// subscription again.
	RetryInterval = time.Second
)

// RefusedError is returned when the server refuses a subscription.
type RefusedError struct{ subject, reason string }

func (e RefusedError) Error() string {
	return fmt.Sprintf("the NATS server refuses the node's subscription to %s: %s", e.subject, e.reason)
}

// onError handles an -ERR: it requests an audit. It runs on the reading
// goroutine.
func (l *Link) onError(reason string) {
	l.log.Warn("the NATS server reports an error", "link", l.opts.Name, "message", reason)
	l.audits.lastError.Store(reason)
	l.audits.errors.Add(1)
	select {
	case l.audits.wake <- struct{}{}:
	default: // an audit is already requested
	}
}

// runAudits does an audit after each error of the server, and again each second
// while the server refuses a subscription.
func (l *Link) runAudits() {
	var retry <-chan time.Time
	for {
		renew := false
		select {
		case <-l.closing:
			return
		case <-l.audits.wake:
			if l.audits.errors.Load() == l.audits.audited.Load() {
				continue // Confirm has done the audit
			}
		case <-retry:
			renew = true
		}
		ctx, cancel := context.WithTimeout(context.Background(), AuditTimeout)
		err := l.audit(ctx, renew)
		cancel()
		if err != nil {
			l.log.Debug("subscriptions not compared with the server's", "link", l.opts.Name, "err", err)
		}
		retry = nil
		if err != nil || l.Trouble() != "" {
			retry = time.After(RetryInterval)
		}
	}
}

// audit compares the subscriptions with the server's. If renew is set, it first
// requests the refused ones again.
func (l *Link) audit(ctx context.Context, renew bool) error {
	if l.opts.Subscriptions == nil {
		return nil
	}
	l.audits.auditing.Lock()
	defer l.audits.auditing.Unlock()
	requested := l.requested(renew)
	if err := l.Flush(ctx); err != nil {
		return err
	}
	seen := l.audits.errors.Load()
	l.mu.Lock()
	client := l.clientID
	l.mu.Unlock()
	has, err := l.opts.Subscriptions(client)
	if err != nil {
		return err
	}
	reason, _ := l.audits.lastError.Load().(string)
	l.handling.Lock()
	defer l.handling.Unlock()
	for id := range requested {
		s, ok := l.handlers[id]
		_, refused := l.audits.refused[id]
		switch {
		case !ok || s.ending || has[id]:
			delete(l.audits.refused, id)
		case !refused:
			l.audits.refused[id] = reason
			l.log.Error("the NATS server refuses a subscription", "link", l.opts.Name, "subject", s.subject, "message", reason)
		}
	}
	l.audits.audited.Store(seen)
	return nil
}

// requested returns the ids of the subscriptions that the link has requested.
// If renew is set, it requests the refused ones again.
func (l *Link) requested(renew bool) map[int]bool {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.handling.RLock()
	defer l.handling.RUnlock()
	ids := make(map[int]bool, len(l.handlers))
	var out []byte
	for id, s := range l.handlers {
		if s.ending {
			continue
		}
		ids[id] = true
		if _, refused := l.audits.refused[id]; refused && renew {
			out = appendSub(out, s.subject, s.queue, id)
		}
	}
	if err := l.write(out); err != nil {
		l.log.Debug("subscriptions not renewed", "link", l.opts.Name, "err", err)
	}
	return ids
}

// Confirm waits until the server has processed the link's subscriptions. It
// returns nil if the server has accepted those with the given ids, and a
// [RefusedError] if it refuses one of them.
func (l *Link) Confirm(ctx context.Context, ids ...int) error {
	if err := l.Flush(ctx); err != nil {
		return err
	}
	if l.audits.errors.Load() != l.audits.audited.Load() {
		if err := l.audit(ctx, false); err != nil {
			return err
		}
	}
	l.handling.RLock()
	defer l.handling.RUnlock()
	for _, id := range ids {
		if reason, refused := l.audits.refused[id]; refused {
			return RefusedError{l.handlers[id].subject, reason}
		}
	}
	return nil
}

// Trouble returns the reason why the link may miss messages, "" if it receives
// all of them.
func (l *Link) Trouble() string {
	l.mu.Lock()
	lost := l.lost && !l.closed
	l.mu.Unlock()
	if lost {
		return "a connection of the node to its own NATS server is lost: " + l.lastError()
	}
	if err := l.Refusal(); err != nil {
		return err.Error()
	}
	return ""
}

// Refusal returns a [RefusedError] if the server refuses a subscription, else
// nil.
func (l *Link) Refusal() error {
	l.handling.RLock()
	defer l.handling.RUnlock()
	for id, reason := range l.audits.refused {
		return RefusedError{l.handlers[id].subject, reason}
	}
	return nil
}

// lastError returns the text of the server's newest error, for Trouble.
func (l *Link) lastError() string {
	if reason, ok := l.audits.lastError.Load().(string); ok {
		return reason
	}
	return "dialing again"
}

// Errors returns the number of errors that the server has reported.
func (l *Link) Errors() int64 { return l.audits.errors.Load() }

package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// lifecycle holds the state of a node: starting, running, failed or closing.
type lifecycle struct {
	log     *slog.Logger
	failing func(error) // called once, when the node fails

	running context.Context // canceled by cancel, when the node closes or has failed
	cancel  context.CancelFunc
	quit    chan struct{} // closed when the node begins to stop
	mayLead chan struct{} // closed when the node may lead: see allowLeading

	leadOnce  sync.Once
	leadTimer *time.Timer

	background sync.WaitGroup // goroutines that run until running is canceled
	gossip     sync.WaitGroup
	requests   sync.WaitGroup // goroutines that serve one request each

	// ended says that no more requests may begin. endMu guards it.
	endMu sync.RWMutex
	ended bool

	closing  sync.Once
	closeErr error
	stopped  chan struct{} // closed when the node is closed or has failed
	stopOnce sync.Once
	err      atomic.Pointer[error]
}

func newLifecycle(log *slog.Logger) *lifecycle {
	l := &lifecycle{log: log, quit: make(chan struct{}), mayLead: make(chan struct{}), stopped: make(chan struct{})}
	l.running, l.cancel = context.WithCancel(context.Background())
	return l
}

// leadAnywayTime is how long a node waits to hear another node before it leads
// without having heard one.
const leadAnywayTime = 3 * time.Second

// allowLeading lets the node lead. It is called when the node has heard another
// node of its cluster: a node that was started with another cluster's routes
// must notice that before it answers that cluster's requests.
func (l *lifecycle) allowLeading() { l.leadOnce.Do(func() { close(l.mayLead) }) }

// fail stops the node's service because of an error that makes it unsafe to
// continue. The caller of Open sees Done and closes the node.
func (l *lifecycle) fail(err error) {
	if !l.err.CompareAndSwap(nil, &err) {
		return
	}
	if errors.Is(err, ErrRemoved) {
		l.log.Info("this node was removed from the cluster and stops", "because", err)
	} else {
		l.log.Error("the node has failed and serves no more", "err", err)
		l.failing(err)
	}
	l.cancel()
	l.stop()
}

func (l *lifecycle) stop() { l.stopOnce.Do(func() { close(l.stopped) }) }

// failure returns why the node stopped by itself, nil if it did not.
func (l *lifecycle) failure() error {
	if p := l.err.Load(); p != nil {
		return *p
	}
	return nil
}

// begin runs fn on a goroutine that Close waits for. It does nothing and
// returns false if the node is closing.
func (l *lifecycle) begin(fn func()) bool {
	l.endMu.RLock()
	defer l.endMu.RUnlock()
	if !l.ended {
		l.requests.Go(fn)
	}
	return !l.ended
}

// endRequests lets no more requests begin, and waits for those that have.
func (l *lifecycle) endRequests() {
	l.endMu.Lock()
	l.ended = true
	l.endMu.Unlock()
	l.requests.Wait()
}

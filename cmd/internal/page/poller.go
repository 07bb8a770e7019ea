package page

import (
	"context"
	"encoding/json"
	"sync"
	"time"
)

// How often a poller asks. A cluster that needs long for its answer is asked
// less often.
const (
	pollEvery = time.Second
	pollShare = 10 // an answer takes at most one part in this many of the time
)

// poller asks for the status for as long as somebody watches, however many they
// are.
type poller struct {
	ask func(ctx context.Context) (any, error)

	mu       sync.Mutex
	watchers int
	latest   []byte
	changed  chan struct{} // closed when latest changes, and replaced
	stop     context.CancelFunc
}

func newPoller(ask func(ctx context.Context) (any, error)) *poller {
	return &poller{ask: ask, changed: make(chan struct{})}
}

// watch begins to ask, unless others watch already. The caller calls the
// function that it returns when it watches no more.
func (p *poller) watch() (unwatch func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers++; p.watchers == 1 {
		var ctx context.Context
		ctx, p.stop = context.WithCancel(context.Background())
		p.latest = nil // it may be old
		go p.run(ctx)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.watchers--; p.watchers == 0 {
			p.stop()
		}
	}
}

func (p *poller) run(ctx context.Context) {
	for {
		began := time.Now()
		text := encodeStatus(p.ask(ctx))
		p.mu.Lock()
		if ctx.Err() == nil {
			p.latest = text
			close(p.changed)
			p.changed = make(chan struct{})
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(pollEvery, pollShare*time.Since(began))):
		}
	}
}

func encodeStatus(status any, err error) []byte {
	if err == nil {
		var text []byte
		if text, err = json.Marshal(status); err == nil {
			return text
		}
	}
	text, _ := json.Marshal(map[string]string{"error": err.Error()})
	return text
}

// now returns the last status, nil for none yet, and a channel that is closed
// when there is another.
func (p *poller) now() (status []byte, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest, p.changed
}

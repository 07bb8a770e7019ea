package client

import (
	"context"
	"sync"
)

// position is the last txid that a handler has applied. Callers can wait for it
// to advance.
type position struct {
	mu      sync.Mutex
	applied uint64
	err     error         // what stopped the partition
	changed chan struct{} // closed at the next change; nil if nobody waits
}

func (p *position) get() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied
}

func (p *position) advance(txid uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = max(p.applied, txid)
	p.wake()
}

// move sets the position, which may go back.
func (p *position) move(txid uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = txid
	p.wake()
}

func (p *position) stop(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	p.wake()
}

func (p *position) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = nil
}

func (p *position) stopped() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *position) wake() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// wait returns nil once txid is applied, or the error because of which it will
// not be.
func (p *position) wait(ctx context.Context, txid uint64) error {
	for {
		p.mu.Lock()
		applied, err := p.applied, p.err
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		switch {
		case applied >= txid:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

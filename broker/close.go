package broker

import (
	"context"
	"errors"
	"sync"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
)

// Close stops the node: no more requests are taken in, those that were are
// answered, what it leads is handed over to other nodes, the state is marked
// so that the next start replays little, and the stores are closed. It is
// idempotent and returns when all is done.
func (n *Node) Close() error {
	n.closing.Do(func() { n.closeErr = n.close() })
	return n.closeErr
}

// close is the one place that says in which order things stop.
func (n *Node) close() (err error) {
	n.leaving.Store(true)
	n.helloSoon() // nobody is to hand anything to this node now
	close(n.quit)
	if n.clearTimer != nil {
		n.clearTimer.Stop()
	}
	n.cancel() // sessions: unsubscribe, settle, answer, hand over
	httpEnded := make(chan error, 1)
	go func() { httpEnded <- n.stopHTTP() }()
	n.background.Wait()
	n.intake.Lock()
	n.deaf = true
	n.intake.Unlock()
	n.readers.Wait()
	if n.meta != nil {
		n.meta.handOver()
	}
	err = errors.Join(<-httpEnded, n.closeGroups())
	close(n.helloStop)
	n.hellos.Wait()
	for _, s := range []*natslink.Sender{n.sender, n.readSender} {
		if s != nil {
			s.Close()
		}
	}
	if n.control != nil {
		n.control.Close()
	}
	for _, l := range []*natslink.Link{n.appends, n.reads, n.feeds} {
		if l != nil {
			n.lastWords(l)
			l.Close()
		}
	}
	if n.nats != nil {
		n.nats.Shutdown()
		n.nats.WaitForShutdown()
	}
	if n.listener != nil {
		err = errors.Join(err, n.listener.Close())
	}
	if n.network != nil {
		err = errors.Join(err, n.network.Close())
	}
	if n.store != nil {
		err = errors.Join(err, n.store.Close())
	}
	n.stopOnce.Do(func() { close(n.stopped) })
	return err
}

// closeGroups marks and closes the replicas.
func (n *Node) closeGroups() error {
	var groups []*raftstore.Group
	for _, s := range n.slots {
		if p := s.current(); p != nil {
			groups = append(groups, p.group)
		}
	}
	if n.meta != nil {
		groups = append(groups, n.meta.group)
	}
	errs := make([]error, len(groups))
	var closing sync.WaitGroup
	for i, g := range groups {
		closing.Go(func() {
			if n.Err() == nil {
				errs[i] = g.CloseWithSnapshot()
			} else {
				errs[i] = g.Close()
			}
		})
	}
	closing.Wait()
	return errors.Join(errs...)
}

// begin runs fn on a goroutine that Close waits for, unless the node is
// closing.
func (n *Node) begin(fn func()) {
	n.intake.RLock()
	defer n.intake.RUnlock()
	if !n.deaf {
		n.readers.Go(fn)
	}
}

// lastWords waits until the NATS server has passed on what was sent.
func (n *Node) lastWords(l *natslink.Link) {
	ctx, cancel := context.WithTimeout(context.Background(), unsubscribeTime)
	defer cancel()
	if err := l.Flush(ctx); err != nil {
		n.log.Debug("last answers may be lost", "link", l.Name(), "err", err)
	}
}

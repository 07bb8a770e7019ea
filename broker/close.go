package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
)

// Close stops the node: no more requests are taken in, those that were are
// answered, what it leads is handed over to other nodes, the state is marked
// so that the next start replays little, and the stores are closed. It is
// idempotent and returns when all is done.
func (n *Node) Close() error {
	n.life.closing.Do(func() { n.life.closeErr = n.close() })
	return n.life.closeErr
}

// close is the one place that says in which order things stop.
func (n *Node) close() (err error) {
	n.stopping.Store(true)
	n.gossip.announce() // nobody is to transfer anything to this node now
	close(n.life.quit)
	if n.life.leadTimer != nil {
		n.life.leadTimer.Stop()
	}
	n.life.cancel() // sessions: unsubscribe, complete, answer, transfer leadership
	httpEnded := make(chan error, 1)
	go func() { httpEnded <- n.http.stop() }()
	n.life.background.Wait()
	n.life.endRequests()
	if n.meta != nil {
		n.meta.handOver()
	}
	err = errors.Join(<-httpEnded, n.closeGroups())
	close(n.gossip.stop)
	n.life.gossip.Wait()
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
			flushLink(l, n.log)
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
	n.life.stop()
	return err
}

// closeGroups marks and closes the replicas.
func (n *Node) closeGroups() error {
	var groups []*raftstore.Group
	for p := range n.replicas.open() {
		groups = append(groups, p.group)
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

// flushLink waits until the NATS server has passed on what was sent.
func flushLink(l *natslink.Link, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), unsubscribeTime)
	defer cancel()
	if err := l.Flush(ctx); err != nil {
		log.Debug("last answers may be lost", "link", l.Name(), "err", err)
	}
}

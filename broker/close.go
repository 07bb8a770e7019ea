package broker

import (
	"errors"
	"sync"

	"github.com/cantuslog/cantus/raftstore"
)

// Close stops the node. It accepts no more requests, replies to those that it
// has accepted, transfers leadership to other nodes, takes a snapshot of every
// replica so that the next start replays little, and closes the stores. Close
// is idempotent and returns when all of this is done.
func (n *Node) Close() error {
	n.life.closing.Do(func() { n.life.closeErr = n.close() })
	return n.life.closeErr
}

// close stops the node's parts. The order in which they stop is stated here
// only.
func (n *Node) close() (err error) {
	n.identity.stopping.Store(true)
	n.gossip.announce() // no node is to transfer leadership to this one now
	close(n.life.quit)
	if n.life.leadTimer != nil {
		n.life.leadTimer.Stop()
	}
	n.life.cancel() // tenures: unsubscribe, complete, reply, transfer leadership
	httpEnded := make(chan error, 1)
	go func() { httpEnded <- n.http.stop() }()
	n.life.background.Wait()
	n.tracing.stop()
	n.leaderships.Flush()
	n.life.endRequests()
	if n.meta != nil {
		n.meta.transferAway()
	}
	err = errors.Join(<-httpEnded, n.closeGroups())
	close(n.gossip.stop)
	n.life.gossip.Wait()
	n.conns.close(n.identity.log)
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

// closeGroups closes the replicas. Unless the node has failed, it takes a
// snapshot of each first.
func (n *Node) closeGroups() error {
	var groups []*raftstore.Group
	for r := range n.replicas.open() {
		groups = append(groups, r.group)
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

package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// Any node answers requests about the cluster, and any replica serves replica
// reads; the NATS server chooses which. It must not choose a node that has lost
// touch with the cluster: one that was removed, and is started again on its old
// directory, would answer with what the cluster was then. So a node subscribes
// to these subjects only while it is in touch.

// sharedSubjects are the subjects that any node answers.
type sharedSubjects struct {
	self       string
	log        *slog.Logger
	clustered  bool
	reads      connection
	refusals   outbox
	queueGroup func() string
	touch      *touch
	check      func() // suspects a removal if the facts no longer list this node

	wake chan struct{} // capacity 1: update now

	mu  sync.Mutex
	on  bool // the node is subscribed to the subjects
	all map[*sharedSubject]struct{}
}

// sharedSubject is one of sharedSubjects.
type sharedSubject struct {
	subject string
	handle  func(*natslink.Message)
	id      int // of the subscription, while on
}

// touch determines whether this node is in touch with its cluster.
type touch struct {
	peers            *peers
	meta             func() *meta // nil while the node is starting
	removalSuspected func() bool  // the node may have been removed
	failed           func() error
	mayLead          <-chan struct{}
	ledAt            atomic.Int64 // when this node last saw a leader of the facts, Unix nanoseconds; 0 for never
}

// leaderlessTime is how long a node counts as in touch after it last saw a
// leader of the facts, so that it answers during an election.
const leaderlessTime = 2 * aliveTime

// ok reports whether this node is in touch: it follows a leader of the facts,
// or no other node is known to.
func (t *touch) ok() bool {
	meta, now := t.meta(), time.Now()
	switch {
	case meta == nil, t.removalSuspected(), errors.Is(t.failed(), ErrRemoved):
		return false
	case meta.group.Status().Leader != "":
		t.ledAt.Store(now.UnixNano())
		return true
	case now.Sub(time.Unix(0, t.ledAt.Load())) < leaderlessTime:
		return true
	}
	select {
	case <-t.mayLead:
	default:
		return false // it has not heard the others yet
	}
	for _, q := range t.peers.all(now) {
		if q.Meta != nil && q.Meta.leads() {
			return false
		}
	}
	return true
}

// add adds a subject, to which the node subscribes while it is in touch. end
// removes it.
func (s *sharedSubjects) add(subject string, handle func(*natslink.Message)) (end func(), err error) {
	c := &sharedSubject{subject: subject, handle: func(m *natslink.Message) {
		if m.Reply != "" && !s.touch.ok() { // the message came before the subscription ended
			e := subjects.Errorf(subjects.Unavailable, "node %s is out of touch with its cluster: ask again", s.self)
			s.refusals.Enqueue(appendRefusal(nil, m.Reply, e, map[string]any{"error": e}))
			return
		}
		handle(m)
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on {
		if c.id, err = s.reads.Subscribe(subject, s.queueGroup(), c.handle); err != nil {
			return func() {}, err
		}
	}
	s.all[c] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, c)
		if s.on {
			unsubscribeAll([]subscribed{{s.reads, c.id}}, s.log)
		}
	}, nil
}

// update subscribes or unsubscribes, depending on whether the node is in touch.
func (s *sharedSubjects) update() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.touch.ok()
	if in == s.on {
		return nil
	}
	var all []subscribed
	var err error
	for c := range s.all {
		if in {
			var failed error
			c.id, failed = s.reads.Subscribe(c.subject, s.queueGroup(), c.handle)
			err = errors.Join(err, failed)
		}
		all = append(all, subscribed{s.reads, c.id})
	}
	if s.on = in && err == nil; !s.on {
		unsubscribeAll(all, s.log)
	}
	return err
}

// run keeps the subscriptions up to date until ctx ends.
func (s *sharedSubjects) run(ctx context.Context) {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	look := tick.C
	if !s.clustered {
		look = nil // it is always in touch
	}
	for {
		s.check()
		if err := s.update(); err != nil && ctx.Err() == nil {
			s.log.Warn("requests about the cluster are not answered", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-look:
		}
	}
}

// wake sends to a channel of capacity 1 unless it is full.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

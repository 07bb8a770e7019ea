package client

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"
)

// An answer can be lost: its leader dies, or hands over, with the request in
// its hands. Nothing says so, and a try that waits for its whole AttemptTimeout costs
// seconds where another leader serves after milliseconds. So these count as
// signs that what is still unanswered may stay so:
//
//   - the advisory that a partition has a new leader;
//   - an answer to something that was sent later: a leader answers in order
//     (appends only);
//   - a connection that is back after it was lost, which leaves no doubt.
//
// A sign does not end a try at once. An answer may be on its way, and a leader
// that is stopped passes on what waits for it; so the try has one back-off more.
// Then it is sent again, under the message id that makes this safe. Anybody may
// publish an advisory: the back-off doubles with each sign until something
// succeeds, so that false ones cause no more sends than refusals would.

// onLeader takes the advisory that a node has begun to serve a partition.
func (c *Client) onLeader(m *nats.Msg) {
	var news struct {
		Partition *int `json:"partition"`
	}
	if json.Unmarshal(m.Data, &news) != nil || news.Partition == nil {
		return
	}
	p, now := *news.Partition, time.Now()
	c.mu.Lock()
	l := c.lanes[p]
	var streams []*stream
	for s := range c.streams {
		if s.partition == p {
			streams = append(streams, s)
		}
	}
	for a := range c.asking {
		if a.partition == p {
			a.newLeader()
		}
	}
	c.mu.Unlock()
	if l != nil {
		l.newLeader(now)
	}
	for _, s := range streams {
		s.newLeader(now)
	}
}

// asking is a request, other than an append or a stream's read, that waits for
// its answer or to be sent again. Client.mu guards its fields.
type asking struct {
	c         *Client
	partition int // -1: any node answers
	tries     int
	signs     int                // of a new leader
	signed    int                // the try that a sign gives one more back-off
	epoch     uint64             // of the connection, at the try
	cancel    context.CancelFunc // of the try
	again     chan struct{}      // capacity 1: the wait for the next try is over
}

func (c *Client) ask(partition int) *asking {
	a := &asking{c: c, partition: partition, again: make(chan struct{}, 1)}
	c.mu.Lock()
	c.asking[a] = struct{}{}
	c.mu.Unlock()
	return a
}

func (a *asking) done() {
	a.c.mu.Lock()
	delete(a.c.asking, a)
	a.c.mu.Unlock()
}

// try begins the next try, whose context ends with its AttemptTimeout or by sendAgain.
func (a *asking) try(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, a.c.opts.AttemptTimeout)
	a.c.mu.Lock()
	a.tries++
	a.cancel, a.epoch = cancel, a.c.epoch.Load()
	select {
	case <-a.again: // said of the one before
	default:
	}
	a.c.mu.Unlock()
	return ctx, cancel
}

// newLeader lets the try, or the wait that follows it, go on for one back-off
// more; Client.mu is held.
func (a *asking) newLeader() {
	try := a.tries
	if a.signed == try {
		return // advisories come as fast as anybody likes
	}
	a.signs++
	a.signed = try
	time.AfterFunc(a.c.backoff(max(a.signs, try)), func() {
		a.c.mu.Lock()
		defer a.c.mu.Unlock()
		a.sendAgain(try)
	})
}

// sendAgain ends a try, by its number, and the wait that follows it; Client.mu
// is held.
func (a *asking) sendAgain(try int) {
	if a.tries == try && a.cancel != nil {
		signal(a.again)
		a.cancel()
	}
}

package client

import (
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
	snd := c.senders[p]
	var streams []*stream
	for s := range c.streams {
		if s.partition == p {
			streams = append(streams, s)
		}
	}
	for r := range c.requests {
		if r.partition == p {
			r.onNewLeader()
		}
	}
	c.mu.Unlock()
	if snd != nil {
		snd.onNewLeader(now)
	}
	for _, s := range streams {
		s.onNewLeader(now)
	}
}

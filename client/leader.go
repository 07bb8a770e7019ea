package client

import (
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"
)

// An answer can be lost: its leader dies or transfers leadership before it
// answers. Nothing announces that, and an attempt that waits for its whole
// AttemptTimeout costs seconds where a new leader serves after milliseconds. So
// three events suggest that a missing answer is lost:
//
//   - an advisory that the partition has a new leader;
//   - an answer to something that was sent later: a leader answers in order
//     (appends only, and not those that it looks up in the log);
//   - a reconnect after the connection was lost. This one is certain.
//
// The first two do not end an attempt at once. The answer may be on its way,
// and a leader that is stopped forwards its waiting requests; so the attempt
// waits for one more back-off. Then the request is resent, with the same
// message id, which makes that safe. Anybody may publish an advisory: the
// back-off doubles with each one until something succeeds, so that forged
// advisories cause no more sends than refusals would.

// onLeader handles the advisory that a node has begun to serve a partition.
func (c *Client) onLeader(m *nats.Msg) {
	var advisory struct {
		Partition *int `json:"partition"`
	}
	if json.Unmarshal(m.Data, &advisory) != nil || advisory.Partition == nil {
		return
	}
	p, now := *advisory.Partition, time.Now()
	c.mu.Lock()
	snd := c.senders[p]
	var streams []*stream
	for s := range c.streams {
		if s.partition == p {
			streams = append(streams, s)
		}
	}
	for r := range c.calls {
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

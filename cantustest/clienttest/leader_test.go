package client_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
)

// patient are options with which nothing is resent because of a timeout.
var patient = client.Options{
	AttemptTimeout: time.Hour, Timeout: time.Hour, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, MaxBatch: 1, Prefix: proxied,
}

// newLeader publishes the advisory of a new leader to the clients of a proxy,
// after some advisories that do not concern the partition.
func newLeader(t testing.TB, nc *nats.Conn, partition int) {
	t.Helper()
	for _, body := range []string{
		"", "leader", `{}`, `{"partition":"0"}`, `{"partition":-1}`, fmt.Sprintf(`{"partition":%d}`, 1-partition),
		fmt.Sprintf(`{"type":"leader","node":"n2","partition":%d,"leader":"n2","term":7}`, partition),
	} {
		if err := nc.Publish(proxied+".advisory.leader", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
}

// await polls until a condition holds.
var await = testkit.Until

func TestANewLeaderIsSentWhatWentUnanswered(t *testing.T) {
	for _, f := range []fault{swallow, lose} {
		t.Run(faultNames[f], func(t *testing.T) {
			p, faulty, direct := newProxy(t, patient, first(3, f))
			var futures []*client.Future
			for i := range 3 {
				future, err := faulty.AppendAsync(soon(t), &client.Request{Payload: []byte(fmt.Sprint(i))})
				if err != nil {
					t.Fatal(err)
				}
				futures = append(futures, future)
			}
			await(t, "sent", func() bool { return p.messages() == 3 })
			newLeader(t, p.nc, 0)
			waitAll(t, futures)
			if n := p.messages(); n != 6 {
				t.Errorf("%d messages for 3 transactions and one new leader, want 6", n)
			}
			checkOnce(t, direct, 0, 3)
		})
	}
}

// A leader answers in order: if a later request is answered, the answer to an
// earlier one is lost.
func TestALaterAnswerSuggestsALostOne(t *testing.T) {
	p, faulty, direct := newProxy(t, patient, first(1, swallow))
	appendMany(t, faulty, 0, 3)
	if n := p.messages(); n != 4 {
		t.Errorf("%d messages for 3 transactions of which one was lost, want 4", n)
	}
	checkOnce(t, direct, 0, 3)
}

// behind returns a client whose requests of a verb are passed to next, and
// forwarded to a node if next returns true.
func behind(t *testing.T, n *broker.Node, verb string, next func(m *nats.Msg) bool) (*client.Client, *nats.Conn) {
	t.Helper()
	nc := connect(t, n)
	if _, err := nc.Subscribe(proxied+"."+verb+".>", func(m *nats.Msg) {
		if next(m) {
			// It fails only when the test is over.
			_ = nc.PublishRequest("cantus"+strings.TrimPrefix(m.Subject, proxied), m.Reply, m.Data)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	own := connect(t, n)
	return newClient(t, own, patient), own
}

// Requests other than appends are also resent after a new leader's advisory and
// after a lost connection.
func TestOtherRequestsAreSentAgain(t *testing.T) {
	n, direct := newLog(t)
	appendMany(t, direct, 0, 3)
	for verb, call := range map[string]func(ctx context.Context, c *client.Client) error{
		"cursor": func(ctx context.Context, c *client.Client) error {
			k, err := c.Cursor(0, "mine")
			if err == nil {
				_, err = k.Set(ctx, 2)
			}
			return err
		},
		"info": func(ctx context.Context, c *client.Client) error {
			_, err := c.HighWaterMark(ctx, 0)
			return err
		},
		"get": func(ctx context.Context, c *client.Client) error {
			_, err := c.Get(ctx, 0, 2)
			return err
		},
		"read": func(ctx context.Context, c *client.Client) error {
			for tx, err := range c.All(ctx, 0, 0, client.FollowOptions{IdleTimeout: time.Hour}) {
				if err != nil || tx.Txid == 3 {
					return err
				}
			}
			return ctx.Err()
		},
	} {
		for sign, give := range map[string]func(server, own *nats.Conn){
			"a new leader": func(server, _ *nats.Conn) { newLeader(t, server, 0) },
			"a lost connection": func(_, own *nats.Conn) {
				if err := own.ForceReconnect(); err != nil {
					t.Error(err)
				}
			},
		} {
			t.Run(verb+", "+sign, func(t *testing.T) {
				var seen atomic.Int64
				c, own := behind(t, n, verb, func(*nats.Msg) bool { return seen.Add(1) > 1 })
				server := connect(t, n)
				done := make(chan error, 1)
				go func() { done <- call(soon(t), c) }()
				await(t, "asked", func() bool { return seen.Load() == 1 })
				give(server, own)
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// The last transactions of a leader that died may be missing from the feed.
func TestACaughtUpFollowerReadsAfterALeaderChange(t *testing.T) {
	n, direct := newLog(t)
	var reads atomic.Int64
	c, own := behind(t, n, "read", func(*nats.Msg) bool { reads.Add(1); return true })
	_, seen := follow(t, c, map[int]uint64{0: 0}, client.FollowOptions{IdleTimeout: time.Hour})
	await(t, "level", func() bool { return reads.Load() == 2 }) // the follower has subscribed to a feed that is silent
	if err := own.Flush(); err != nil {
		t.Fatal(err)
	}
	appendMany(t, direct, 0, 5)
	newLeader(t, connect(t, n), 0)
	await(t, "followed", func() bool { return len(seen(0)) == 5 })
}

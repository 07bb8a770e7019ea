package simnats_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/simnats"
	"github.com/cantuslog/cantus/internal/simnet"
	"github.com/cantuslog/cantus/internal/testkit"
)

type inProcess struct{ *simnats.Server }

func (s inProcess) InProcessConn() (c net.Conn, err error) { return s.Conn() }

// servers starts a server on each of some hosts, and a client on each.
func servers(t *testing.T, network *simnet.Network, hosts ...string) (all []*simnats.Server, clients []*nats.Conn) {
	t.Helper()
	for _, host := range hosts {
		s, err := simnats.Start(simnats.Options{Host: host, Name: "server-" + host, Peers: hosts, Net: network, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		nc, err := nats.Connect("", nats.InProcessServer(inProcess{s}))
		if err != nil {
			t.Fatal(err)
		}
		all, clients = append(all, s), append(clients, nc)
	}
	return all, clients
}

func stop(all []*simnats.Server, clients []*nats.Conn) {
	for _, nc := range clients {
		nc.Close()
	}
	for _, s := range all {
		s.Close()
	}
}

// request sends a request and waits a second at most. It does not use
// nats.Conn.Request, whose timers come from a pool that outlives a bubble.
func request(nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return nc.RequestWithContext(ctx, subject, data)
}

func TestRequestsBetweenServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(1, simnet.Latency{Min: time.Millisecond, Max: 2 * time.Millisecond})
		all, clients := servers(t, network, "n1", "n2", "n3")
		defer stop(all, clients)
		if _, err := request(clients[0], "who", nil); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("a request that nobody hears: %v", err)
		}
		for i := range 2 {
			for range 2 {
				_, err := clients[i].QueueSubscribe("who.*", "group", func(m *nats.Msg) {
					answer := nats.NewMsg(m.Reply)
					answer.Header.Set("Node", fmt.Sprintf("n%d", i+1))
					answer.Data = append([]byte(m.Subject+" "), m.Data...)
					_ = m.RespondMsg(answer)
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		answered := map[string]int{}
		ask := func() {
			m, err := request(clients[2], "who.a", []byte("?"))
			if err != nil {
				t.Fatal(err)
			}
			if string(m.Data) != "who.a ?" {
				t.Errorf("answered %q", m.Data)
			}
			answered[m.Header.Get("Node")]++
		}
		testkit.Until(t, "heard of one", func() bool { return all[2].HasInterest("who.a") })
		testkit.Until(t, "heard of both", func() bool {
			ask()
			return len(answered) == 2
		})
		if all[2].Subscribed("who.a") || all[2].HasInterest("who") || all[2].HasInterest("who.a.b") || !all[2].Routed("server-n1") {
			t.Error("what n3 knows is wrong")
		}
		clear(answered)
		for range 100 {
			ask()
		}
		if answered["n1"]+answered["n2"] != 100 || answered["n1"] == 0 || answered["n2"] == 0 {
			t.Errorf("answered by %v", answered)
		}
		if m, err := request(clients[0], "who.a", nil); err != nil || m.Header.Get("Node") != "n1" {
			t.Errorf("a request to a member on the same server: %v, %v", m, err)
		}
	})
}

// A subscription without a group gets each message once, also from another
// server, and ends.
func TestSubscriptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(1, simnet.Latency{Min: time.Millisecond, Max: 2 * time.Millisecond})
		all, clients := servers(t, network, "n1", "n2")
		defer stop(all, clients)
		got := make(chan *nats.Msg, 100)
		sub, err := clients[0].ChanSubscribe("feed.>", got)
		if err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, "heard of", func() bool { return all[1].HasInterest("feed.1") })
		for i := range 10 {
			if err := clients[1].Publish("feed.a.b", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		testkit.Until(t, "received", func() bool { return len(got) == 10 })
		for i := range 10 {
			if m := <-got; string(m.Data) != fmt.Sprint(i) {
				t.Errorf("message %d is %q", i, m.Data)
			}
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, "forgotten", func() bool { return !all[1].HasInterest("feed.1") })
	})
}

// A route over a link that is blocked for long breaks, and comes back.
func TestRoutesBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(1, simnet.Latency{Min: time.Millisecond, Max: 2 * time.Millisecond})
		all, clients := servers(t, network, "n1", "n2")
		defer stop(all, clients)
		if _, err := clients[0].Subscribe("a", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, "heard of", func() bool { return all[1].HasInterest("a") })
		network.Block("n1", "n2")
		if _, err := request(clients[1], "a", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a request over a blocked link: %v", err)
		}
		testkit.Until(t, "broken", func() bool { return !all[1].HasInterest("a") && !all[0].Routed("server-n2") })
		network.Unblock("n1", "n2")
		testkit.Until(t, "back", func() bool { return all[1].HasInterest("a") })
		if _, err := request(clients[1], "a", nil); err != nil {
			t.Error(err)
		}
		network.Reset("n1", "n2")
		testkit.Until(t, "broken", func() bool { return !all[1].HasInterest("a") })
		testkit.Until(t, "back", func() bool { return all[1].HasInterest("a") })
	})
}

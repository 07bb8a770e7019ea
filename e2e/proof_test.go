package e2e_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/proof"
	"github.com/cantuslog/cantus/internal/testkit"
)

// fallible is a cluster as a proof.Log whose leader can be killed.
type fallible struct{ *cluster }

// Connect implements proof.Log.
func (f fallible) Connect(opts ...nats.Option) (*nats.Conn, error) {
	var urls []string
	for _, n := range f.nodes {
		urls = append(urls, n.url)
	}
	return nats.Connect(strings.Join(urls, ","), append([]nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(5 * time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)...)
}

// Fail implements proof.Log: it kills the leader, and starts it again once
// another node leads. The next one fails only when all replicas have caught up.
func (f fallible) Fail(ctx context.Context) error {
	client := f.dial(f.nodes[0].name)
	defer client.Conn.Close()
	leader, err := f.leader(ctx, client, 0)
	if err != nil {
		return err
	}
	leader.kill()
	if err := f.awaitOther(ctx, client, leader); err != nil {
		return err
	}
	if err := leader.start(); err != nil {
		return err
	}
	return f.awaitReady(ctx, client)
}

// TestClusterNothingIsComputedOnAStaleState has clients compute from their own
// high-water marks while leaders are killed.
func TestClusterNothingIsComputedOnAStaleState(t *testing.T) {
	p := proof.Probe{Writers: 4, Each: 40, Failures: 2}
	if testkit.Long() {
		p = proof.Probe{Writers: 10, Each: 1000, Failures: 20}
	}
	c := startCluster(t, 3, "--partitions", "1")
	began := time.Now()
	if err := p.Run(t.Context(), fallible{c}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d writers, %d transactions each, %d leaders killed: %v", p.Writers, p.Each, p.Failures, time.Since(began).Round(time.Second))
}

// TestClusterReadLocksKeepWritersFromSkew has writers on three nodes try to
// violate a limit that two accounts share.
func TestClusterReadLocksKeepWritersFromSkew(t *testing.T) {
	testkit.OnlyLong(t, "minutes of a cluster: make cluster")
	c := startCluster(t, 3, "--partitions", "1")
	broken, err := proof.Skew{Rounds: 2000, ReadLocks: true}.Run(t.Context(), fallible{c})
	if err != nil || broken > 0 {
		t.Fatalf("the limit was broken %d times: %v", broken, err)
	}
}

// TestClusterConditionsKeepWritersFromSkew has pairs of writers append with
// conditions while leaders are killed.
func TestClusterConditionsKeepWritersFromSkew(t *testing.T) {
	testkit.OnlyLong(t, "minutes of a cluster: make cluster")
	p := proof.Conditions{Workers: 20, Rounds: 500, Failures: 20}
	c := startCluster(t, 3, "--partitions", "1")
	began := time.Now()
	broken, err := p.Run(t.Context(), fallible{c})
	if err != nil || broken > 0 {
		t.Fatalf("in %d rounds both writers took both names: %v", broken, err)
	}
	t.Logf("%d rounds, %d leaders killed: %v", p.Workers*p.Rounds, p.Failures, time.Since(began).Round(time.Second))
}

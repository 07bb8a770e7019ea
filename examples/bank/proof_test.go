//go:build unix

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
)

// database is shared by the instances. The test may stop and restart it.
type database struct {
	location string
	restart  func(ctx context.Context) error // nil: it is a file
}

// databases has a constructor for each kind of database that this build tests.
var databases = map[string]func(t *testing.T) database{
	"sqlite": func(t *testing.T) database { return database{location: filepath.Join(t.TempDir(), "bank.db")} },
}

// TestBooksAreRightThroughKills has two instances on one database make random
// transfers, and repeatedly kills them, the node and the database server.
func TestBooksAreRightThroughKills(t *testing.T) {
	for name, make := range databases {
		t.Run(name, func(t *testing.T) { killed(t, make(t)) })
	}
}

func killed(t *testing.T, db database) {
	transfers, kills, limit := testkit.Sized(100, 500, 5000), testkit.Sized(1, 6, 60), testkit.Sized(4*time.Minute, 4*time.Minute, 30*time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	address := ports.Free(t)
	node := &process{t: t, ready: true, args: []string{"cantus", "serve", "--data", t.TempDir(), "--partitions", "1", "--listen", address, "--http", "127.0.0.1:0"}}
	instance := func(name string) *process {
		return &process{t: t, args: []string{"bank", "--nats", "nats://" + address, "--db", db.location,
			"load", "--name", name, "--transfers", fmt.Sprint(transfers), "--accounts", "50", "--workers", "4"}}
	}
	all := []*process{node, instance("a"), instance("b")}
	for _, p := range all {
		t.Cleanup(func() { _, _ = p.kill() })
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}
	done := map[*process]bool{}
	fallen := 0
	strike := func(i int) {
		p := all[i%3]
		if i%7 == 6 && db.restart != nil {
			if err := db.restart(ctx); err != nil {
				t.Fatal(err)
			}
			return
		}
		if done[p] {
			return
		}
		ended, err := p.kill()
		if err != nil {
			t.Fatalf("%v ended by itself: %v", p.args, err)
		}
		if done[p] = ended; ended {
			return
		}
		fallen++
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}
	// Kills depend on the length of the log, not on the clock: each happens
	// within a stretch of its own, and a fifth of the transfers follows the
	// last one.
	stretch := float64(2*transfers) * 0.8 / float64(kills)
	next, i := stretch*rand.Float64(), 0
	for tx, err := range connect(t, address).All(ctx, partition, 0, client.FollowOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if float64(tx.Txid) < next {
			continue
		}
		strike(i)
		if i++; i == kills {
			break
		}
		next = stretch * (float64(i) + rand.Float64())
	}
	for _, p := range all[1:] {
		if err := p.wait(ctx); err != nil {
			t.Fatalf("%v: %v", p.args, err)
		}
	}
	t.Logf("%d kills met something that ran", fallen)
	if fallen < kills/2 {
		t.Errorf("%d of %d kills met nothing: too few transfers for them", kills-fallen, kills)
	}
	checkBooks(t, readLog(t, address), db.location, 50, 100, map[string]int{"a": transfers, "b": transfers})
}

// readLog returns everything in the log.
func readLog(t *testing.T, address string) (all []*client.Transaction) {
	t.Helper()
	c := connect(t, address)
	mark, err := c.HighWaterMark(soon(t), partition)
	if err != nil {
		t.Fatal(err)
	}
	for tx, err := range c.All(soon(t), partition, 0, client.FollowOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, tx); tx.Txid == mark {
			break
		}
	}
	return all
}

// connect returns a client that survives restarts of the node.
func connect(t *testing.T, address string) *client.Client {
	t.Helper()
	nc, err := nats.Connect("nats://"+address, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c, err := client.New(nc, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

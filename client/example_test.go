package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
)

// exampleClient gives a client of a node within the process. A service would
// use nats.Connect with nats.MaxReconnects(-1).
func exampleClient() (c *client.Client, done func()) {
	dir, err := os.MkdirTemp("", "cantus")
	if err != nil {
		log.Fatal(err)
	}
	n, err := broker.Open(context.Background(), dir, broker.Options{Partitions: 1})
	if err != nil {
		log.Fatal(err)
	}
	nc, err := n.Conn()
	if err != nil {
		log.Fatal(err)
	}
	if c, err = client.New(nc, client.Options{}); err != nil {
		log.Fatal(err)
	}
	return c, func() {
		if err := errors.Join(c.Close(), n.Close(), os.RemoveAll(dir)); err != nil {
			log.Print(err)
		}
		nc.Close()
	}
}

func ExampleClient_Append() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()

	tx := client.Tx{Payload: []byte(`{"balance":90}`), HighWaterMark: 0, WriteLocks: []string{"account.42"}}
	r, err := c.Append(ctx, &tx)
	fmt.Println(r.Txid, err)

	// The same mark again: since then account.42 was written.
	_, err = c.Append(ctx, &tx)
	var conflict *client.Conflict
	if errors.As(err, &conflict) {
		fmt.Println(conflict.Lock, "was written by", conflict.Txid)
	}
	// Output:
	// 1 <nil>
	// account.42 was written by 1
}

func ExampleClient_Follow() {
	c, done := exampleClient()
	defer done()
	for _, word := range []string{"one", "two", "three"} {
		if _, err := c.Append(context.Background(), &client.Tx{Payload: []byte(word)}); err != nil {
			log.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	err := c.Follow(ctx, map[int]uint64{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		fmt.Println(tx.Txid, string(tx.Payload))
		if tx.Txid == 3 {
			stop()
		}
		return nil
	}, client.FollowOptions{})
	fmt.Println(err)
	// Output:
	// 1 one
	// 2 two
	// 3 three
	// context canceled
}

func ExampleApp_Transact() {
	c, done := exampleClient()
	defer done()
	ctx, stop := context.WithCancel(context.Background())

	counter := 0 // the local state; written by the follower alone
	follower, err := c.NewFollower(map[int]uint64{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		_, err := fmt.Sscan(string(tx.Payload), &counter)
		return err
	}, client.FollowOptions{})
	if err != nil {
		log.Fatal(err)
	}
	stopped := make(chan error)
	go func() { stopped <- follower.Run(ctx) }()

	app, err := client.NewApp(c, follower, client.AppOptions{Applied: true})
	if err != nil {
		log.Fatal(err)
	}
	for range 3 {
		r, err := app.Transact(ctx, 0, func(tx *client.Tx) error {
			tx.Write("counter")
			tx.Data("count", fmt.Append(nil, counter+1))
			return nil
		})
		fmt.Println(r.Txid, counter, err)
	}
	stop()
	<-stopped
	// Output:
	// 1 1 <nil>
	// 2 2 <nil>
	// 3 3 <nil>
}

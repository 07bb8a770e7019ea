package group_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/group"
)

func ExampleJoin() {
	ctx, leave := context.WithCancel(context.Background())
	nc, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for _, order := range []string{"shoes", "hat"} {
		if _, err := c.Append(ctx, &client.Request{Payload: []byte(order)}); err != nil {
			log.Fatal(err)
		}
	}
	// Each process that sends mails runs this; together they send them all.
	err = group.Join(ctx, c, "mailer", func(_ context.Context, tx *client.Transaction) error {
		fmt.Printf("mail about transaction %d: %s\n", tx.Txid, tx.Payload)
		if tx.Txid == 2 {
			leave()
		}
		return nil
	}, group.Options{Lease: time.Second})
	fmt.Println(err)
	// Output:
	// mail about transaction 1: shoes
	// mail about transaction 2: hat
	// context canceled
}

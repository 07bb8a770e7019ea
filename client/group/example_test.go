package group_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/group"
)

func ExampleJoin() {
	ctx, leave := context.WithCancel(context.Background())
	l, err := cantustest.Open(ctx, cantustest.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	c, err := l.Client(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
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

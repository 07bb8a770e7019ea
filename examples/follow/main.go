// Follow prints every transaction of a partition, from the first one on and
// then as they commit:
//
//	go run ./examples/follow nats://127.0.0.1:4222 0
//
// It is the smallest follower. To continue where it stopped, a follower stores
// the last txid that it handled, in its database (package sqlview) or in the
// log (package group), and passes it in place of the 0 here.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	url, partition, err := arguments(os.Args[1:])
	if err == nil {
		err = follow(ctx, url, partition, os.Stdout)
	}
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func arguments(args []string) (url string, partition int, err error) {
	if len(args) == 2 {
		partition, err = strconv.Atoi(args[1])
	}
	if len(args) != 2 || err != nil || partition < 0 {
		return "", 0, errors.New("usage: follow URL PARTITION, such as: follow nats://127.0.0.1:4222 0")
	}
	return args[0], partition, nil
}

func follow(ctx context.Context, url string, partition int, w io.Writer) error {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Follow(ctx, client.Positions{partition: 0}, func(_ context.Context, tx *client.Transaction) error {
		_, err := fmt.Fprintf(w, "%d %s %s\n", tx.Txid, tx.Kind, tx.Payload)
		return err
	}, client.FollowOptions{})
}

// Transact adds to a counter in the log, and prints its new value:
//
//	go run ./examples/transact nats://127.0.0.1:4222 visits 1
//
// It is the smallest transaction. However many run concurrently, no addition is
// lost.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	url, counter, amount, err := arguments(os.Args[1:])
	if err == nil {
		err = add(ctx, url, counter, amount, os.Stdout)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func arguments(args []string) (url, counter string, amount int, err error) {
	if len(args) == 3 {
		amount, err = strconv.Atoi(args[2])
	}
	if len(args) != 3 || err != nil {
		return "", "", 0, errors.New("usage: transact URL COUNTER AMOUNT, such as: transact nats://127.0.0.1:4222 visits 1")
	}
	return args[0], args[1], amount, nil
}

// counters is the local view: the value of every counter in the log.
type counters struct {
	mu  sync.Mutex
	all map[string]int
}

// counted is the transaction's payload: a counter and its new value.
type counted struct {
	Counter string `json:"counter"`
	Value   int    `json:"value"`
}

func (c *counters) apply(_ context.Context, tx *client.Transaction) error {
	var e counted
	if err := json.Unmarshal(tx.Payload, &e); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[e.Counter] = e.Value
	return nil
}

func (c *counters) get(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[name]
}

func add(ctx context.Context, url, name string, amount int, w io.Writer) (err error) {
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

	// The view follows the log. A service runs it for as long as it lives.
	view := &counters{all: map[string]int{}}
	follower, err := c.NewFollower(client.Positions{0: 0}, view.apply, client.FollowOptions{Kinds: []string{"count"}})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	followed := make(chan error, 1)
	go func() { followed <- follower.Run(running) }()
	defer func() {
		stop()
		if failed := <-followed; !errors.Is(failed, context.Canceled) {
			err = errors.Join(err, failed)
		}
	}()

	transactor, err := client.NewTransactor(c, follower, client.TransactorOptions{WaitApplied: true, MaxAttempts: 10_000})
	if err != nil {
		return err
	}
	// At first the view is empty. The conflict says how far it has to follow.
	value := 0
	_, err = transactor.Transact(ctx, 0, func(req *client.Request) error {
		value = view.get(name) + amount
		data, err := json.Marshal(counted{name, value})
		if err != nil {
			return err
		}
		req.WriteLock("counter." + subjects.Token(name))
		req.Set("count", data)
		return nil
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, name, value)
	return err
}

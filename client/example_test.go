package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// exampleClient returns a client of the node at url.
func exampleClient() (c *client.Client, done func()) {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	if c, err = client.New(nc, client.Options{}); err != nil {
		log.Fatal(err)
	}
	return c, func() {
		if err := c.Close(); err != nil {
			log.Print(err)
		}
		nc.Close()
	}
}

func Example() {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()

	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	receipt, err := c.Append(ctx, &client.Request{
		Payload:       []byte(`{"balance":90}`),
		WriteLocks:    []string{"account.42"},
		HighWaterMark: 0,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("committed as", receipt.Txid)

	err = c.Follow(ctx, client.Positions{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		fmt.Printf("%d: %s\n", tx.Txid, tx.Payload)
		stop() // enough for an example
		return nil
	}, client.FollowOptions{})
	fmt.Println(err)
	// Output:
	// committed as 1
	// 1: {"balance":90}
	// context canceled
}

func ExampleClient_Append() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()

	req := client.Request{Payload: []byte(`{"balance":90}`), HighWaterMark: 0, WriteLocks: []string{"account.42"}}
	r, err := c.Append(ctx, &req)
	fmt.Println(r.Txid, err)

	// The same mark again: since then account.42 was written.
	_, err = c.Append(ctx, &req)
	var conflict *client.ConflictError
	if errors.As(err, &conflict) {
		fmt.Println(conflict.Lock, "was written by", conflict.Txid)
	}
	// Output:
	// 1 <nil>
	// account.42 was written by 1
}

func ExampleClient_AppendAtomic() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()

	book := func(room, table string) {
		booking := new(client.AtomicBatch) // computed at mark 0: the log is empty
		booking.Add("room-booked", []byte(room)).WriteLock("room." + room)
		booking.Add("table-booked", []byte(table)).WriteLock("table." + table)
		r, err := c.AppendAtomic(ctx, booking)
		var conflict *client.ConflictError
		if errors.As(err, &conflict) {
			fmt.Println("nothing is booked:", conflict.Lock, "is taken")
			return
		}
		fmt.Println(r.First, "to", r.Last, err)
	}
	book("12", "7")
	book("14", "7")
	// Output:
	// 1 to 2 <nil>
	// nothing is booked: table.7 is taken
}

func ExampleClient_Follow() {
	c, done := exampleClient()
	defer done()
	for _, word := range []string{"one", "two", "three"} {
		if _, err := c.Append(context.Background(), &client.Request{Payload: []byte(word)}); err != nil {
			log.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	err := c.Follow(ctx, client.Positions{0: 0}, func(_ context.Context, tx *client.Transaction) error {
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

func ExampleTransactor_Transact() {
	c, done := exampleClient()
	defer done()
	ctx, stop := context.WithCancel(context.Background())

	counter := 0 // the local state; written by the follower alone
	follower, err := c.NewFollower(client.Positions{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		_, err := fmt.Sscan(string(tx.Payload), &counter)
		return err
	}, client.FollowOptions{})
	if err != nil {
		log.Fatal(err)
	}
	stopped := make(chan error)
	go func() { stopped <- follower.Run(ctx) }()

	transactor, err := client.NewTransactor(c, follower, client.TransactorOptions{WaitApplied: true})
	if err != nil {
		log.Fatal(err)
	}
	for range 3 {
		r, err := transactor.Transact(ctx, 0, func(req *client.Request) error {
			req.WriteLock("counter")
			req.Set("count", fmt.Append(nil, counter+1))
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

func ExampleClient_AppendAsync() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()

	var futures []*client.Future
	for i := range 3 { // they share a batch
		f, err := c.AppendAsync(ctx, &client.Request{Payload: fmt.Append(nil, i)})
		if err != nil {
			log.Fatal(err)
		}
		futures = append(futures, f)
	}
	for _, f := range futures {
		r, err := f.Wait(ctx)
		fmt.Println(r.Txid, err)
	}
	// Output:
	// 1 <nil>
	// 2 <nil>
	// 3 <nil>
}

// A writer of one hot name does not wait for its receipts. It computes each
// transaction on the state that the ones before it make.
func ExampleSession() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()
	counter, mark := 0, uint64(0) // the state, and how far the log is in it
	count := func(s *client.Session) (*client.Future, error) {
		counter++
		return s.Append(ctx, &client.Request{Payload: fmt.Append(nil, counter), WriteLocks: []string{"counter"}, HighWaterMark: mark})
	}

	var last *client.Future
	for s := c.NewSession(0); counter < 1000; {
		f, err := count(s)
		if err != nil {
			log.Fatal(err)
		}
		last = f
	}
	r, err := last.Wait(ctx) // all before it are committed too
	fmt.Println(r.Txid, err)

	// Somebody else sets the counter. What is computed without that is refused,
	// and the session ends.
	s := c.NewSession(0)
	mark = r.Txid
	if _, err := c.Append(ctx, &client.Request{Payload: []byte("5000"), WriteLocks: []string{"counter"}, HighWaterMark: mark}); err != nil {
		log.Fatal(err)
	}
	last, err = count(s)
	if err != nil {
		log.Fatal(err)
	}
	_, err = last.Wait(ctx)
	var conflict *client.ConflictError
	if errors.As(err, &conflict) {
		tx, err := c.Get(ctx, 0, conflict.Txid) // in a program its view applies the log
		if err != nil {
			log.Fatal(err)
		}
		if _, err := fmt.Sscan(string(tx.Payload), &counter); err != nil {
			log.Fatal(err)
		}
		mark = tx.Txid
		last, err = count(c.NewSession(0))
		if err != nil {
			log.Fatal(err)
		}
		r, err = last.Wait(ctx)
		fmt.Println(r.Txid, counter, err)
	}
	// Output:
	// 1000 <nil>
	// 1002 5001 <nil>
}

func ExampleClient_All() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()
	for _, kind := range []string{"pay", "noise", "pay"} {
		if _, err := c.Append(ctx, &client.Request{Kind: kind}); err != nil {
			log.Fatal(err)
		}
	}
	for tx, err := range c.All(ctx, 0, 0, client.FollowOptions{Kinds: []string{"pay"}}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(tx.Txid, tx.Kind)
		if tx.Txid == 3 {
			break
		}
	}
	// Output:
	// 1 pay
	// 3 pay
}

// A room is booked unless it is taken. The decision needs no local state: the
// transactions of the room are read, and with them the mark that the write lock
// is checked against.
func ExampleClient_Query() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()
	book := func(who string) error {
		room, err := c.Query(ctx, 0, client.Query{Items: []subjects.QueryItem{{Kinds: []string{"booked"}, Locks: []string{"room.12"}}}})
		if err != nil {
			return err
		}
		if len(room.Transactions) > 0 {
			return fmt.Errorf("taken by %s", room.Transactions[0].Payload)
		}
		_, err = c.Append(ctx, &client.Request{
			Kind: "booked", WriteLocks: []string{"room.12"}, HighWaterMark: room.HighWaterMark, Payload: []byte(who),
		})
		return err
	}
	fmt.Println(book("ann"))
	fmt.Println(book("bob"))
	// Output:
	// <nil>
	// taken by ann
}

func ExampleFollower_Progress() {
	c, done := exampleClient()
	defer done()
	ctx, stop := context.WithCancel(context.Background())
	if _, err := c.Append(ctx, &client.Request{}); err != nil {
		log.Fatal(err)
	}
	f, err := c.NewFollower(client.Positions{0: 0}, func(context.Context, *client.Transaction) error { return nil }, client.FollowOptions{})
	if err != nil {
		log.Fatal(err)
	}
	stopped := make(chan error)
	go func() { stopped <- f.Run(ctx) }()
	if err := f.Wait(ctx, 0, 1); err != nil {
		log.Fatal(err)
	}
	p := f.Progress(0)
	fmt.Println("applied", p.Applied, "lag", p.Lag(), "trouble", p.Err)
	stop()
	<-stopped
	// Output:
	// applied 1 lag 0 trouble <nil>
}

func ExampleCursor() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()
	for range 5 {
		if _, err := c.Append(ctx, &client.Request{}); err != nil {
			log.Fatal(err)
		}
	}
	cursor, err := c.Cursor(0, "billing")
	if err != nil {
		log.Fatal(err)
	}
	at, err := cursor.Move(ctx, 3, 0)
	fmt.Println(at.Txid, err)
	_, err = cursor.Move(ctx, 4, 0) // as if nobody had moved it
	var elsewhere *client.CursorMismatchError
	if errors.As(err, &elsewhere) {
		fmt.Println("it stands at", elsewhere.Position.Txid)
	}
	// Output:
	// 3 <nil>
	// it stands at 3
}

// A consumer counts the bytes of each order, and appends what it has counted to
// the partition that it reads. The count and the consumer's position commit
// together, so that each order is counted once.
func ExampleCursor_Give() {
	c, done := exampleClient()
	defer done()
	ctx := context.Background()
	for _, order := range []string{"ten nails", "one hammer"} {
		if _, err := c.Append(ctx, &client.Request{Kind: "order", Payload: []byte(order)}); err != nil {
			log.Fatal(err)
		}
	}

	cursor, err := c.Cursor(0, "counter")
	if err != nil {
		log.Fatal(err)
	}
	at, err := cursor.Get(ctx)
	if err != nil {
		log.Fatal(err)
	}
	session := c.NewSession(0)
	if at, err = cursor.Give(ctx, session, at); err != nil {
		log.Fatal(err) // a *client.CursorMismatchError: another instance was faster
	}

	following, stop := context.WithCancel(ctx)
	defer stop()
	err = c.Follow(following, client.Positions{0: at.Txid}, func(ctx context.Context, tx *client.Transaction) error {
		count, err := session.Append(ctx, &client.Request{
			Kind: "count", Payload: strconv.AppendInt(nil, int64(len(tx.Payload)), 10), HighWaterMark: at.HighWaterMark,
			Move: subjects.Move{Cursor: "counter", Txid: tx.Txid},
		})
		if err != nil {
			return err
		}
		_, err = count.Wait(ctx) // or later: a session needs no answer to go on
		if tx.Txid == at.HighWaterMark {
			stop() // here the example ends
		}
		return err
	}, client.FollowOptions{Kinds: []string{"order"}})
	if !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
	at, err = cursor.Get(ctx)
	fmt.Println("counted up to", at.Txid, err)
	// Output:
	// counted up to 2 <nil>
}

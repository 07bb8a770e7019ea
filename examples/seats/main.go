// Seats sells the seats of a show. A booking is for several seats, and gets all
// of them or none: each seat is a transaction of its own, found by its name,
// and those of a booking commit together.
//
//	go run ./examples/seats nats://127.0.0.1:4222 book hamlet alice A1 A2
//	go run ./examples/seats nats://127.0.0.1:4222 release hamlet alice A2
//	go run ./examples/seats nats://127.0.0.1:4222 owner hamlet A1
//
// It has no database. A booking reads what happened to its seats, and is
// appended unless something else happened to one of them by then.
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
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// maxSeats is how many seats a booking has at most: a condition has as many
// items.
const maxSeats = subjects.MaxUnless

// The refusals.
var (
	errTaken     = errors.New("not all of the seats are free")
	errNotTheirs = errors.New("not all of the seats are theirs")
	errUsage     = errors.New("usage: seats URL book|release SHOW NAME SEAT…, with 16 seats at most, or: seats URL owner SHOW SEAT")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, w io.Writer) error {
	if len(args) < 4 {
		return errUsage
	}
	nc, err := nats.Connect(args[0], nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	switch show, rest := args[2], args[3:]; {
	case args[1] == "book" && len(rest) > 1 && len(rest) <= maxSeats+1:
		return book(ctx, c, w, show, rest[0], rest[1:])
	case args[1] == "release" && len(rest) > 1 && len(rest) <= maxSeats+1:
		return release(ctx, c, w, show, rest[0], rest[1:])
	case args[1] == "owner" && len(rest) == 1:
		return owner(ctx, c, w, show, rest[0])
	}
	return errUsage
}

// event is the payload of each transaction.
type event struct {
	Seat string `json:"seat"`
	Name string `json:"name"` // of the person
}

// seatLock returns the name of a seat, which may be any text.
func seatLock(show, seat string) string {
	return "show." + subjects.Token(show) + "." + subjects.Token(seat)
}

// seats returns a query for what happened to some seats.
func seats(show string, names []string) (query []subjects.QueryItem) {
	for _, seat := range names {
		query = append(query, subjects.QueryItem{Kinds: []string{"booked", "released"}, Locks: []string{seatLock(show, seat)}})
	}
	return query
}

// owners maps seats to those that have booked them.
type owners map[string]string

func (o owners) after(tx *client.Transaction) (owners, error) {
	var e event
	if err := json.Unmarshal(tx.Payload, &e); err != nil {
		return o, err
	}
	if o == nil {
		o = owners{}
	}
	if delete(o, e.Seat); tx.Kind == "booked" {
		o[e.Seat] = e.Name
	}
	return o, nil
}

// book books all of the seats, or none.
func book(ctx context.Context, c *client.Client, w io.Writer, show, name string, names []string) error {
	return change(ctx, c, w, "booked", show, name, names, func(o owners) error {
		if taken := slices.DeleteFunc(slices.Clone(names), func(seat string) bool { return o[seat] == "" }); len(taken) > 0 {
			return fmt.Errorf("%w: %s", errTaken, strings.Join(taken, ", "))
		}
		return nil
	})
}

// release gives seats back that a person has booked, all of them or none.
func release(ctx context.Context, c *client.Client, w io.Writer, show, name string, names []string) error {
	return change(ctx, c, w, "released", show, name, names, func(o owners) error {
		if others := slices.DeleteFunc(slices.Clone(names), func(seat string) bool { return o[seat] == name }); len(others) > 0 {
			return fmt.Errorf("%w: %s", errNotTheirs, strings.Join(others, ", "))
		}
		return nil
	})
}

// change appends a transaction of a kind for each of some seats, if check
// permits it.
func change(ctx context.Context, c *client.Client, w io.Writer, kind, show, name string, names []string, check func(owners) error) error {
	slices.Sort(names)
	names = slices.Compact(names)
	receipt, err := client.DecideAtomic(ctx, c, seats(show, names), owners.after, func(o owners, b *client.AtomicBatch) error {
		if err := check(o); err != nil {
			return err
		}
		for _, seat := range names {
			data, err := json.Marshal(event{Seat: seat, Name: name})
			if err != nil {
				return err
			}
			b.Add(kind, data).AppendLock(seatLock(show, seat))
		}
		return nil
	}, client.DecideOptions{MaxAttempts: 10_000})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s: %s (transactions %d to %d)\n", kind, strings.Join(names, ", "), receipt.First, receipt.Last)
	return err
}

// owner prints the person that has a seat.
func owner(ctx context.Context, c *client.Client, w io.Writer, show, seat string) error {
	found, err := c.Query(ctx, 0, client.Query{Items: seats(show, []string{seat}), NewestFirst: true, Max: 1})
	if err != nil {
		return err
	}
	var o owners
	for _, tx := range found.Transactions {
		if o, err = o.after(tx); err != nil {
			return err
		}
	}
	if o[seat] == "" {
		_, err = fmt.Fprintln(w, "nobody")
	} else {
		_, err = fmt.Fprintln(w, o[seat])
	}
	return err
}

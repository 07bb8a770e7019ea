package cantustest_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// In a test, use New in place of Open and Close.
func Example() {
	ctx := context.Background()
	l, err := cantustest.Open(ctx, cantustest.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	l.FailNext(2, cantustest.Append, cantustest.RefuseAs(subjects.Busy))
	l.FailNext(1, cantustest.Append, cantustest.LoseAnswer())
	l.FailNext(1, cantustest.Append, cantustest.NoResponders())
	l.FailNext(1, cantustest.Append, cantustest.Repeat())

	opts := client.Options{AttemptTimeout: 100 * time.Millisecond}
	c, err := l.Client(opts)
	if err != nil {
		log.Fatal(err)
	}
	r, err := c.Append(ctx, &client.Request{Payload: []byte("hello")})
	fmt.Println(r.Txid, err)
	all, err := l.Transactions(ctx, 0)
	fmt.Println(len(all), err)
	// Output:
	// 1 <nil>
	// 1 <nil>
}

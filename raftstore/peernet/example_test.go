package peernet_test

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/cantuslog/cantus/raftstore/peernet"
)

// The node n1 dials n2, which serves the connection.
func Example() {
	addresses := map[string]string{}
	open := func(node string) *peernet.Network {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		addresses[node] = listener.Addr().String()
		n, err := peernet.New(peernet.Options{
			Node: node, Cluster: "9f2c", Key: make([]byte, 32), Listener: listener, // use a secret key
			Resolve: func(node string) (string, error) { return addresses[node], nil },
		})
		if err != nil {
			panic(err)
		}
		return n
	}
	n1, n2 := open("n1"), open("n2")
	defer n1.Close()
	defer n2.Close()
	n2.Handle(peernet.Fetch, peernet.Handler{Serve: func(c *peernet.Conn) {
		defer c.Close()
		fmt.Fprintf(c, "group %d for %s", c.Group(), c.Peer())
	}})
	n2.Serve()

	c, err := n1.Dial(context.Background(), "n2", peernet.Fetch, 7)
	if err != nil {
		panic(err)
	}
	defer c.Close()
	answer, err := io.ReadAll(c)
	fmt.Println(string(answer), err)
	// Output: group 7 for n1 <nil>
}

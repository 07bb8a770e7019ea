package raftstore_test

import (
	"fmt"
	"net"

	"github.com/cantuslog/cantus/raftstore"
)

func ExampleNetwork() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	network, err := raftstore.NewNetwork(raftstore.NetworkOptions{
		Node: "n1", Cluster: "9f2c", Key: make([]byte, 32), Listener: listener, // use a secret key
		Resolve: func(node string) (string, error) { return node + ".example.com:4250", nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer network.Close()
	// Open(Options{Node: "n1", Voters: []string{"n1", "n2", "n3"}, Network:
	// network, ID: 0, …})
	fmt.Println(network.Addr().Network())
	// Output: tcp
}

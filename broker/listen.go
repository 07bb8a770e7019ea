package broker

import (
	"fmt"
	"net"
	"os"
)

// listenRaft takes the replication port, whose address the hellos tell.
func (n *Node) listenRaft() (err error) {
	if !n.opts.clustered() {
		return nil
	}
	address := n.opts.Raft
	if address == "" {
		host, _, err := net.SplitHostPort(n.opts.ClusterListen)
		if err != nil {
			return fmt.Errorf("cluster address: %q is not host:port, such as 127.0.0.1:6222", n.opts.ClusterListen)
		}
		address = net.JoinHostPort(host, "0")
	}
	if n.listener, err = net.Listen("tcp", address); err != nil {
		return fmt.Errorf("listen for replication: %w", err)
	}
	n.raftAddr, err = advertised(n.opts.RaftAdvertise, n.listener.Addr())
	return err
}

// advertised gives the address at which other nodes reach a listener: what
// the operator says, or the address itself; for a listener on all interfaces,
// the machine's name.
func advertised(said string, addr net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(addr.String())
	if said != "" || err != nil {
		return said, err
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("replication listens on all interfaces: say how others reach it: %w", err)
		}
	}
	return net.JoinHostPort(host, port), nil
}

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
	p, err := n.opts.raftPort()
	if err != nil {
		return err
	}
	if n.listener, err = p.listen(); err != nil {
		return err
	}
	n.raftAddr, err = advertised(n.opts.RaftAdvertise, n.listener.Addr())
	return err
}

// raftPort is the port for replication.
func (o Options) raftPort() (port, error) {
	if o.RaftListen != "" {
		return port{o.RaftListen, "--raft"}, nil
	}
	host, _, err := net.SplitHostPort(o.ClusterListen)
	if err != nil {
		return port{}, fmt.Errorf("cluster address: %q is not host:port, such as 127.0.0.1:6222", o.ClusterListen)
	}
	return port{net.JoinHostPort(host, "0"), "--raft"}, nil
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

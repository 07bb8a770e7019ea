package broker

import (
	"fmt"
	"net"
	"os"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/broker/internal/ports"
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
	if n.listener, err = p.Listen(); err != nil {
		return err
	}
	n.raftAddr, err = advertised(n.opts.RaftAdvertise, n.listener.Addr())
	return err
}

// raftPort is the port for replication.
func (o Options) raftPort() (ports.Port, error) {
	if o.RaftListen != "" {
		return ports.Port{Address: o.RaftListen, ChosenBy: "--raft"}, nil
	}
	host, _, err := net.SplitHostPort(o.ClusterListen)
	if err != nil {
		return ports.Port{}, fmt.Errorf("cluster address: %q is not host:port, such as 127.0.0.1:6222", o.ClusterListen)
	}
	return ports.Port{Address: net.JoinHostPort(host, "0"), ChosenBy: "--raft"}, nil
}

// advertised returns the address at which other nodes reach a listener: what
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

// httpPort is the port for health and metrics.
func (o Options) httpPort() ports.Port { return ports.Port{Address: o.HTTPListen, ChosenBy: "--http"} }

// rehearse returns what would end the start of a node after its directory was
// founded, as far as that can be known before: the NATS configuration, and the
// ports. A try that fails leaves no directory behind that holds what was wrong in it.
func rehearse(o Options) error {
	if o.ClusterSecret != "" {
		o.routePassword = routePassword(tokenSecret(o.ClusterSecret), o.Cluster)
	}
	if err := natsserver.Check(o.natsServer()); err != nil {
		return err
	}
	var all []ports.Port
	if o.clustered() {
		raft, err := o.raftPort()
		if err != nil {
			return err
		}
		all = append(all, raft)
	}
	if o.HTTPListen != "" {
		all = append(all, o.httpPort())
	}
	return ports.Try(all, nil)
}

package broker

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/broker/internal/ports"
)

// listenRaft opens the replication port. It returns the address that other
// nodes dial.
func listenRaft(o Options) (l net.Listener, address string, err error) {
	if o.environment != nil {
		if l, err = o.environment.listen(); err != nil {
			return nil, "", err
		}
		return l, l.Addr().String(), nil
	}
	p, err := o.raftPort()
	if err != nil {
		return nil, "", err
	}
	if l, err = p.Listen(); err != nil {
		return nil, "", err
	}
	address, err = advertised(o.RaftAdvertise, l.Addr())
	return l, address, err
}

// dialRaft returns the function that dials other nodes for replication, nil for
// the usual one.
func (o Options) dialRaft() func(ctx context.Context, network, address string) (net.Conn, error) {
	if o.environment == nil {
		return nil
	}
	return o.environment.dial
}

// raftPort returns the port for replication.
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

// advertised returns the address at which other nodes reach a listener: the
// configured one, or the listener's own, with the machine's name if it listens
// on all interfaces.
func advertised(configured string, addr net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(addr.String())
	if configured != "" || err != nil {
		return configured, err
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("replication listens on all interfaces: say how others reach it: %w", err)
		}
	}
	return net.JoinHostPort(host, port), nil
}

// httpPort returns the port for health and metrics.
func (o Options) httpPort() ports.Port { return ports.Port{Address: o.HTTPListen, ChosenBy: "--http"} }

// checkStart returns an error that would end a node's start after its directory
// is written, as far as it can be known before: a bad NATS configuration, or a
// port in use. Otherwise a failed start would leave a directory with the wrong
// options in it.
func checkStart(o Options) error {
	if o.environment != nil {
		return nil
	}
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

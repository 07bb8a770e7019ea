package natsserver

import (
	"errors"
	"net"
	"strconv"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cantuslog/cantus/broker/internal/ports"
)

// tryNATSPorts returns an error if the NATS server can't open one of its ports.
// The server's own error does not name the option that chose the port.
func tryNATSPorts(opts *server.Options, o Options) error {
	const file = "the NATS configuration"
	chosenBy := func(flag, address, host string, n int) string {
		if h, p, err := splitAddress(address); err != nil || h != host || p != n {
			return file
		}
		return flag
	}
	var all []ports.Port
	add := func(by, host string, n int) {
		if n > 0 { // 0 means no port, a negative number any free one
			all = append(all, ports.Port{Address: net.JoinHostPort(host, strconv.Itoa(n)), ChosenBy: by})
		}
	}
	if !opts.DontListen {
		add(chosenBy("--listen", o.ClientListen, opts.Host, opts.Port), opts.Host, opts.Port)
	}
	add(chosenBy("--cluster", o.ClusterListen, opts.Cluster.Host, opts.Cluster.Port), opts.Cluster.Host, opts.Cluster.Port)
	add(file, opts.Websocket.Host, opts.Websocket.Port)
	add(file, opts.LeafNode.Host, opts.LeafNode.Port)
	add(file, opts.MQTT.Host, opts.MQTT.Port)
	add(file, opts.Gateway.Host, opts.Gateway.Port)
	add(file, opts.HTTPHost, opts.HTTPPort)
	add(file, opts.HTTPHost, opts.HTTPSPort)
	return ports.Try(all, ErrNotReady)
}

// Check returns an error if a server with these options could not start because
// of its configuration or its ports.
func Check(o Options) error {
	access, err := newAccess(o)
	if err != nil {
		return err
	}
	opts, _, err := (&Server{access: access}).prepare(o, defaultName(o))
	if err != nil {
		return err
	}
	return errors.Join(checkAccount(opts, o), tryNATSPorts(opts, o))
}

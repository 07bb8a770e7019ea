package natsserver

import (
	"errors"
	"net"
	"strconv"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cantuslog/cantus/broker/internal/ports"
)

// tryNATSPorts returns an error if the NATS server can't have one of its ports. The
// server itself says less.
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
		if n > 0 { // any other is none, or a free one
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

// Check returns what would keep a server with these options from starting, as far
// as that can be known before: the configuration, and the ports.
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

package natsserver

import (
	"errors"
	"fmt"
	"net"
	"slices"
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
	opts, all := checkConfig(o)
	if len(all) > 0 {
		return errors.Join(all...)
	}
	return tryNATSPorts(opts, o)
}

// CheckConfig returns an error for each mistake in the configuration of a
// server with these options. It opens no port.
func CheckConfig(o Options) []error {
	_, all := checkConfig(o)
	return all
}

// CertificatesOf returns when the certificates expire that the ports of a
// server with these options show; none if the configuration has a mistake.
func CertificatesOf(o Options) []Certificate {
	access, err := newAccess(o)
	if err != nil {
		return nil
	}
	opts, _, err := (&Server{access: access}).prepare(o, defaultName(o))
	if opts == nil || err != nil {
		return nil
	}
	return certificatesOf(opts)
}

func checkConfig(o Options) (*server.Options, []error) {
	access, err := newAccess(o)
	if err != nil {
		return nil, []error{err}
	}
	opts, _, err := (&Server{access: access}).prepare(o, defaultName(o))
	if opts == nil {
		return nil, []error{err}
	}
	all := slices.DeleteFunc(append(split(err), checkAccount(opts, o)), func(err error) bool { return err == nil })
	if len(all) > 0 || usersByJWT(opts) { // with JWTs, a new server writes to its resolver's directory
		return opts, all
	}
	ns, err := server.NewServer(opts.Clone())
	if err != nil {
		return opts, []error{fmt.Errorf("NATS server: %w", err)}
	}
	ns.Shutdown()
	return opts, nil
}

// split returns the errors that [errors.Join] has joined.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && err.Error() == errors.Join(joined.Unwrap()...).Error() {
		var all []error
		for _, err := range joined.Unwrap() {
			all = append(all, split(err)...)
		}
		return all
	}
	return []error{err}
}

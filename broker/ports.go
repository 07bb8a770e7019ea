package broker

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
)

// port is one that the node is to listen on, and what chose it.
type port struct{ address, chosenBy string }

// listenError is the error for a port that the node can't have. It is of kind, if
// that is not nil.
type listenError struct {
	port
	kind, err error
}

func (e *listenError) Error() string {
	if !errors.Is(e.err, syscall.EADDRINUSE) {
		return fmt.Sprintf("can't listen on %s (%s): %v", e.address, e.chosenBy, e.err)
	}
	off := ""
	if e.chosenBy == "--http" {
		off = ", or off"
	}
	return fmt.Sprintf("%s is taken: stop what listens there, or give %s another port%s", e.address, e.chosenBy, off)
}

func (e *listenError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// listen takes a port.
func (p port) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		return nil, &listenError{port: p, err: err}
	}
	return l, nil
}

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
	var all []port
	add := func(by, host string, n int) {
		if n > 0 { // any other is none, or a free one
			all = append(all, port{net.JoinHostPort(host, strconv.Itoa(n)), by})
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
	return tryPorts(all, ErrNATSNotReady)
}

// tryPorts takes and releases ports. Its error is of kind too.
func tryPorts(all []port, kind error) error {
	for _, p := range all {
		l, err := p.listen()
		var failed *listenError
		if errors.As(err, &failed) {
			failed.kind = kind
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// httpPort is the port for health and metrics.
func (o Options) httpPort() port { return port{o.HTTPListen, "--http"} }

// rehearse returns what would end the start of a node after its directory was
// founded, as far as that can be known before: the NATS configuration, and the
// ports. A try that fails leaves no directory behind that holds what was wrong in it.
func (n *Node) rehearse() error {
	o := n.opts
	if o.ClusterSecret != "" {
		o.routePassword = routePassword(tokenSecret(o.ClusterSecret), o.Cluster)
	}
	access, err := newAccess(o)
	if err != nil {
		return err
	}
	s := &natsServer{access: access}
	opts, _, err := s.prepare(o, defaultName(o))
	if err != nil {
		return err
	}
	if err := errors.Join(checkAccount(opts, o), tryNATSPorts(opts, o)); err != nil {
		return err
	}
	var all []port
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
	return tryPorts(all, nil)
}

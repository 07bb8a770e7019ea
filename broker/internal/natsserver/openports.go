package natsserver

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// routeUserName is the user name with which nodes that share a token connect to
// each other's route ports.
const routeUserName = "cantus"

// Anyone is the OpenPort.To of a port that asks for nothing.
const Anyone = "anyone"

// OpenPort describes, for the log, a port that accepts connections.
type OpenPort struct {
	What    string // the kind of its connections, such as "clients"
	Address string
	To      string // whom it lets in; begins with Anyone if it asks for nothing
	Wire    string // whether the connections are encrypted
	// certificate is set if it asks each client for a certificate.
	certificate bool
}

// The connections of a port, for OpenPort.Wire.
const (
	OverTLS     = "over TLS"
	Unencrypted = "unencrypted"
	eitherWay   = "over TLS or unencrypted"
)

// The ports that need more than their name, for OpenPort.What.
const (
	clientPort  = "clients"
	routePort   = "routes"
	monitorPort = "NATS monitoring"
)

// String describes the port in the node's log.
func (p OpenPort) String() string {
	to := p.To
	if rest, anyone := strings.CutPrefix(to, Anyone); anyone {
		to = Anyone + " that reaches it" + rest
		if host, _, err := net.SplitHostPort(p.Address); err == nil && IsLoopback(host) {
			to = Anyone + " on this machine" + rest
		}
	}
	return fmt.Sprintf("%s on %s (%s, %s)", p.What, p.Address, to, p.Wire)
}

// open reports whether a port can be used by anyone from another machine.
func (p OpenPort) open() bool {
	host, _, err := net.SplitHostPort(p.Address)
	return strings.HasPrefix(p.To, Anyone) && (err != nil || !IsLoopback(host))
}

// openPortsOf returns the ports that a server with these options opens. It is
// called before the node adds users of its own to the options.
func openPortsOf(opts *server.Options, o Options) (all []OpenPort, err error) {
	users, err := usersOf(opts)
	if err != nil {
		return nil, err
	}
	add := func(what, host string, n int, to, wire string) {
		if n != 0 {
			all = append(all, OpenPort{What: what, Address: net.JoinHostPort(host, strconv.Itoa(max(n, 0))), To: to, Wire: wire})
		}
	}
	if !opts.DontListen {
		plain := opts.TLSConfig == nil || opts.AllowNonTLS
		add(clientPort, opts.Host, opts.Port, admitted(users, opts.NoAuthUser, opts.TLSConfig, plain), wire(opts.TLSConfig, plain))
		all[len(all)-1].certificate = !plain && verifiesCertificates(opts.TLSConfig)
	}
	if o.clustered() {
		add(routePort, opts.Cluster.Host, opts.Cluster.Port, serversOf(&opts.Cluster, o), wire(opts.Cluster.TLSConfig, opts.Cluster.TLSConfig == nil))
	}
	ws := &opts.Websocket
	add("websockets", ws.Host, ws.Port, admitted(users, cmp.Or(ws.NoAuthUser, opts.NoAuthUser), ws.TLSConfig, ws.NoTLS), wire(ws.TLSConfig, ws.NoTLS))
	mqtt := &opts.MQTT
	add("MQTT", mqtt.Host, mqtt.Port, admitted(users, cmp.Or(mqtt.NoAuthUser, opts.NoAuthUser), mqtt.TLSConfig, mqtt.TLSConfig == nil), wire(mqtt.TLSConfig, mqtt.TLSConfig == nil))
	leaf := &opts.LeafNode
	leaves, asUser := users, opts.NoAuthUser
	if leaf.Username != "" || leaf.Nkey != "" || len(leaf.Users) > 0 {
		leaves, asUser = "servers with a user of the leafnodes block", ""
	}
	add("leaf nodes", leaf.Host, leaf.Port, admitted(leaves, asUser, leaf.TLSConfig, leaf.TLSConfig == nil), wire(leaf.TLSConfig, leaf.TLSConfig == nil))
	if g := &opts.Gateway; g.Name != "" {
		clusters := Anyone
		if g.Username != "" || g.Password != "" {
			clusters = "servers with the configured password"
		}
		add("gateways", g.Host, g.Port, admitted(clusters, "", g.TLSConfig, g.TLSConfig == nil), wire(g.TLSConfig, g.TLSConfig == nil))
	}
	add(monitorPort, opts.HTTPHost, opts.HTTPPort, Anyone, Unencrypted)
	add(monitorPort, opts.HTTPHost, opts.HTTPSPort, Anyone, OverTLS)
	add("NATS profiles", opts.Host, opts.ProfPort, Anyone, Unencrypted)
	return all, nil
}

// usersOf describes whom the NATS configuration lets in, apart from what
// certificates do.
func usersOf(opts *server.Options) (string, error) {
	switch {
	case usersByJWT(opts):
		return "users of the NATS operator", nil
	case len(opts.Users) > 0 || len(opts.Nkeys) > 0 || opts.Username != "" || opts.Password != "" || opts.AuthCallout != nil:
		// The users may all be the system account's, which others don't need.
		if anonymous, err := admitsAnonymous(opts); anonymous || err != nil {
			return Anyone, err
		}
		return "users of the NATS configuration", nil
	case opts.Authorization != "":
		return "holders of the NATS token", nil
	}
	return Anyone, nil
}

// admitted describes whom a port lets in. users is what usersOf returns,
// asUser the user that clients are if they name none, and plain reports whether
// the port takes connections without TLS.
func admitted(users, asUser string, config *tls.Config, plain bool) string {
	if asUser != "" {
		users = Anyone + ", as the NATS user " + asUser
	}
	switch {
	case plain || !verifiesCertificates(config):
		return users
	case strings.HasPrefix(users, Anyone):
		return "holders of a certificate" + strings.TrimPrefix(users, Anyone)
	}
	return users + " with a certificate"
}

// serversOf describes whom the route port lets in. The server asks routes for a
// certificate whenever they use TLS.
func serversOf(c *server.ClusterOpts, o Options) string {
	to := Anyone
	switch {
	case c.Username == routeUserName && c.Password == o.RoutePassword && o.RoutePassword != "":
		to = "holders of the cluster's token"
	case c.Username != "" || c.Password != "":
		to = "servers with the configured password"
	}
	return admitted(to, "", c.TLSConfig, c.TLSConfig == nil)
}

func wire(config *tls.Config, plain bool) string {
	switch {
	case config == nil:
		return Unencrypted
	case plain:
		return eitherWay
	}
	return OverTLS
}

func verifiesCertificates(c *tls.Config) bool {
	return c != nil && c.ClientAuth == tls.RequireAndVerifyClientCert
}

// IsLoopback reports whether a port that is opened on host can only be reached
// from this machine.
func IsLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkOpen returns an error for each port that would be open without
// authentication, unless it is a loopback port or Options.Insecure is set.
// Monitoring shows no messages, so it may be open.
func checkOpen(all []OpenPort, o Options) error {
	var errs []error
	for _, p := range all {
		if o.Insecure || !p.open() || p.What == monitorPort {
			continue
		}
		switch at := onPort(p.Address); p.What {
		case routePort:
			errs = append(errs, fmt.Errorf("%w: the route port %s would be open to anyone: give every node the same token (--cluster-secret-file), "+
				"or certificates by the NATS configuration (cluster { tls { verify: true } }), or say --insecure", ErrOptions, at))
		case clientPort:
			errs = append(errs, fmt.Errorf("%w: the client port %s would be open to %s: give the NATS configuration users or certificates "+
				"(--nats-config), or listen on 127.0.0.1, or say --insecure", ErrOptions, at, p.To))
		default:
			errs = append(errs, fmt.Errorf("%w: the port for %s %s would be open to %s: give the NATS configuration users or certificates, "+
				"or that port a host (127.0.0.1), or say --insecure", ErrOptions, p.What, at, p.To))
		}
	}
	return errors.Join(errs...)
}

// onPort describes where a port is opened.
func onPort(address string) string {
	host, _, _ := net.SplitHostPort(address)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Sprintf("on every interface (%s)", address)
	}
	return "on " + address
}

package natsserver

import (
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// routeUserName is the user name with which nodes that share a token connect to each
// other's route ports.
const routeUserName = "cantus"

// openTo describes, for the log, which clients each port of the NATS server accepts.
type openTo struct{ clients, routes string }

func openToOf(opts *server.Options, o Options) openTo {
	d := openTo{clients: "anyone", routes: "anyone"}
	if asksClients(opts) {
		d.clients = "whoever the NATS configuration lets in"
	}
	switch {
	case opts.Cluster.Username == routeUserName && opts.Cluster.Password == o.RoutePassword && o.RoutePassword != "":
		d.routes = "holders of the cluster's token"
	case opts.Cluster.Username != "" || opts.Cluster.Password != "":
		d.routes = "servers with the configured password"
	case verifies(opts.Cluster.TLSConfig):
		d.routes = "servers with a certificate"
	}
	return d
}

// asksClients reports whether the NATS configuration asks clients for anything.
func asksClients(opts *server.Options) bool {
	return len(opts.Users) > 0 || len(opts.Nkeys) > 0 || opts.Username != "" || opts.Password != "" || opts.Authorization != "" ||
		len(opts.TrustedOperators) > 0 || len(opts.TrustedKeys) > 0 || opts.AuthCallout != nil || opts.TLSVerify || opts.TLSMap
}

func verifies(c *tls.Config) bool { return c != nil && c.ClientAuth == tls.RequireAndVerifyClientCert }

// IsLoopback reports whether only this machine reaches a host that is listened on.
func IsLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkOpen refuses to open a port without authentication, unless it is a loopback
// port or the operator asks for it.
func checkOpen(opts *server.Options, o Options) error {
	d := openToOf(opts, o)
	switch {
	case o.Insecure:
	case o.clustered() && d.routes == "anyone" && !IsLoopback(opts.Cluster.Host):
		return fmt.Errorf("%w: the route port %s would be open to anyone: give every node the same token (--cluster-secret-file), "+
			"or certificates by the NATS configuration (cluster { tls { verify: true } }), or say --insecure", ErrOptions, onPort(opts.Cluster.Host, opts.Cluster.Port))
	case !opts.DontListen && d.clients == "anyone" && !IsLoopback(opts.Host):
		return fmt.Errorf("%w: the client port %s would be open to anyone: give the NATS configuration users or certificates "+
			"(--nats-config), or listen on 127.0.0.1, or say --insecure", ErrOptions, onPort(opts.Host, opts.Port))
	}
	return nil
}

// onPort says where a port is opened.
func onPort(host string, n int) string {
	address := net.JoinHostPort(host, strconv.Itoa(max(n, 0)))
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Sprintf("on every interface (%s)", address)
	}
	return "on " + address
}

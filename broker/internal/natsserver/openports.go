package natsserver

import (
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

// openTo describes, for the log, which connections the client port and the
// route port accept.
type openTo struct{ clients, routes string }

func openToOf(opts *server.Options, o Options) openTo {
	d := openTo{clients: "anyone", routes: "anyone"}
	if authenticatesClients(opts) {
		d.clients = "whoever the NATS configuration lets in"
	}
	switch {
	case opts.Cluster.Username == routeUserName && opts.Cluster.Password == o.RoutePassword && o.RoutePassword != "":
		d.routes = "holders of the cluster's token"
	case opts.Cluster.Username != "" || opts.Cluster.Password != "":
		d.routes = "servers with the configured password"
	case verifiesCertificates(opts.Cluster.TLSConfig):
		d.routes = "servers with a certificate"
	}
	return d
}

// authenticatesClients reports whether the NATS configuration requires clients
// to authenticate.
func authenticatesClients(opts *server.Options) bool {
	return len(opts.Users) > 0 || len(opts.Nkeys) > 0 || opts.Username != "" || opts.Password != "" || opts.Authorization != "" ||
		len(opts.TrustedOperators) > 0 || len(opts.TrustedKeys) > 0 || opts.AuthCallout != nil || opts.TLSVerify || opts.TLSMap
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
func checkOpen(opts *server.Options, o Options) error {
	if o.Insecure {
		return nil
	}
	d := openToOf(opts, o)
	var routes, clients error
	if o.clustered() && d.routes == "anyone" && !IsLoopback(opts.Cluster.Host) {
		routes = fmt.Errorf("%w: the route port %s would be open to anyone: give every node the same token (--cluster-secret-file), "+
			"or certificates by the NATS configuration (cluster { tls { verify: true } }), or say --insecure", ErrOptions, onPort(opts.Cluster.Host, opts.Cluster.Port))
	}
	if !opts.DontListen && d.clients == "anyone" && !IsLoopback(opts.Host) {
		clients = fmt.Errorf("%w: the client port %s would be open to anyone: give the NATS configuration users or certificates "+
			"(--nats-config), or listen on 127.0.0.1, or say --insecure", ErrOptions, onPort(opts.Host, opts.Port))
	}
	return errors.Join(routes, clients)
}

// onPort describes where a port is opened.
func onPort(host string, n int) string {
	address := net.JoinHostPort(host, strconv.Itoa(max(n, 0)))
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Sprintf("on every interface (%s)", address)
	}
	return "on " + address
}

package broker

import (
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cantuslog/cantus/wal"
)

// routeUserName is whom nodes with a token are to each other's route ports.
const routeUserName = "cantus"

// routePassword returns the password of route ports that goes with a token. It
// can't depend on the cluster's id: a node that founds or joins one does not know
// it yet. Without a token there is none, or such a node could not come.
func routePassword(s wal.Secret, cluster string) string {
	if !s.Token {
		return ""
	}
	return hex.EncodeToString(deriveKey(s.Key, cluster, "routes"))
}

// doors say who is let in at the ports of the NATS server.
type doors struct{ clients, routes string }

func doorsOf(opts *server.Options, o Options) doors {
	d := doors{clients: "anyone", routes: "anyone"}
	if asksClients(opts) {
		d.clients = "whoever the NATS configuration lets in"
	}
	switch {
	case opts.Cluster.Username == routeUserName && opts.Cluster.Password == o.routePassword && o.routePassword != "":
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

// isLoopback reports whether only this machine reaches a host that is listened on.
func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkDoors refuses to open a port to whoever reaches it, unless that is on this
// machine or the operator says so.
func checkDoors(opts *server.Options, o Options) error {
	d := doorsOf(opts, o)
	switch {
	case o.Insecure:
	case o.clustered() && d.routes == "anyone" && !isLoopback(opts.Cluster.Host):
		return fmt.Errorf("%w: the route port %s would be open to anyone: give every node the same token (--cluster-secret-file), "+
			"or certificates by the NATS configuration (cluster { tls { verify: true } }), or say --insecure", ErrOptions, where(opts.Cluster.Host, opts.Cluster.Port))
	case !opts.DontListen && d.clients == "anyone" && !isLoopback(opts.Host):
		return fmt.Errorf("%w: the client port %s would be open to anyone: give the NATS configuration users or certificates "+
			"(--nats-config), or listen on 127.0.0.1, or say --insecure", ErrOptions, where(opts.Host, opts.Port))
	}
	return nil
}

// where says where a port is opened.
func where(host string, n int) string {
	address := net.JoinHostPort(host, strconv.Itoa(max(n, 0)))
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Sprintf("on every interface (%s)", address)
	}
	return "on " + address
}

// Doors says in a line which ports are open, and to whom.
func (n *Node) Doors() string {
	var all []string
	door := func(what, address, who string) {
		if host, _, err := net.SplitHostPort(address); err == nil && who == "anyone" {
			who = "anyone that reaches it"
			if isLoopback(host) {
				who = "anyone on this machine"
			}
		}
		all = append(all, fmt.Sprintf("%s on %s (%s)", what, address, who))
	}
	if a := n.nats.Addr(); a != nil {
		door("clients", a.String(), n.nats.doors.Load().clients)
	}
	if a := n.nats.ClusterAddr(); a != nil {
		door("routes", a.String(), n.nats.doors.Load().routes)
	}
	if n.network != nil {
		who := "members with the cluster's secret"
		if n.nats.clusterTLS != nil {
			who += " and a certificate"
		}
		door("replication", n.network.Addr().String(), who)
	}
	if n.httpAddr != "" {
		door("http", n.httpAddr, "anyone")
	}
	if len(all) == 0 {
		return "no port"
	}
	return strings.Join(all, "; ")
}

package broker

import (
	"fmt"
	"net"
	"strings"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
)

// Doors says in a line which ports are open, and to whom.
func (n *Node) Doors() string {
	var all []string
	clients, routes := n.nats.OpenTo()
	door := func(what, address, who string) {
		if host, _, err := net.SplitHostPort(address); err == nil && who == "anyone" {
			who = "anyone that reaches it"
			if natsserver.IsLoopback(host) {
				who = "anyone on this machine"
			}
		}
		all = append(all, fmt.Sprintf("%s on %s (%s)", what, address, who))
	}
	if a := n.nats.Addr(); a != nil {
		door("clients", a.String(), clients)
	}
	if a := n.nats.ClusterAddr(); a != nil {
		door("routes", a.String(), routes)
	}
	if n.network != nil {
		who := "members with the cluster's secret"
		if n.nats.ClusterTLS() != nil {
			who += " and a certificate"
		}
		door("replication", n.network.Addr().String(), who)
	}
	if n.http != nil {
		door("http", n.http.addr, "anyone")
	}
	if len(all) == 0 {
		return "no port"
	}
	return strings.Join(all, "; ")
}

package broker

import (
	"fmt"
	"net"
	"strings"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/raftstore"
)

// openPorts are the open ports of a node.
type openPorts struct {
	server      portServer
	replication *raftstore.Network // nil on a standalone node
	http        string             // address, "" if it is not open
}

// String describes in one line which ports are open, and to whom.
func (p openPorts) String() string {
	var all []string
	add := func(what, address, who string) {
		if host, _, err := net.SplitHostPort(address); err == nil && who == "anyone" {
			who = "anyone that reaches it"
			if natsserver.IsLoopback(host) {
				who = "anyone on this machine"
			}
		}
		all = append(all, fmt.Sprintf("%s on %s (%s)", what, address, who))
	}
	clients, routes := p.server.OpenTo()
	if a := p.server.Addr(); a != nil {
		add("clients", a.String(), clients)
	}
	if a := p.server.ClusterAddr(); a != nil {
		add("routes", a.String(), routes)
	}
	if p.replication != nil {
		who := "members with the cluster's secret"
		if p.server.ClusterTLS() != nil {
			who += " and a certificate"
		}
		add("replication", p.replication.Addr().String(), who)
	}
	if p.http != "" {
		add("http", p.http, "anyone")
	}
	if len(all) == 0 {
		return "no port"
	}
	return strings.Join(all, "; ")
}

package broker

import (
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

// String describes in one line which ports are open, to whom, and whether the
// connections are encrypted.
func (p openPorts) String() string {
	all := p.server.OpenPorts()
	if p.replication != nil {
		port := natsserver.OpenPort{
			What: "replication", Address: p.replication.Addr().String(),
			To: "members with the cluster's secret", Wire: natsserver.Unencrypted,
		}
		if p.server.ClusterTLS() != nil {
			port.To, port.Wire = port.To+" and a certificate", natsserver.OverTLS
		}
		all = append(all, port)
	}
	if p.http != "" {
		all = append(all, natsserver.OpenPort{What: "http", Address: p.http, To: natsserver.Anyone, Wire: natsserver.Unencrypted})
	}
	if len(all) == 0 {
		return "no port"
	}
	var texts []string
	for _, port := range all {
		texts = append(texts, port.String())
	}
	return strings.Join(texts, "; ")
}

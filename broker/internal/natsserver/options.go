package natsserver

// Options are the options of a node that concern its NATS server.
type Options struct {
	Name, Cluster, Prefix       string
	ClientListen, ClusterListen string
	Routes                      []string
	ConfigFile                  string // a configuration of nats-server
	Account, Credentials        string
	Insecure                    bool
	// RoutePassword authenticates the servers of the cluster's nodes to each
	// other. If it is "", they need no password.
	RoutePassword string
}

// clustered reports whether the server is one of several.
func (o Options) clustered() bool { return o.ClusterListen != "" || len(o.Routes) > 0 }

package natsserver

// Options are what the server needs of a node's options.
type Options struct {
	Name, Cluster, Prefix       string
	ClientListen, ClusterListen string
	Routes                      []string
	ConfigFile                  string // of nats-server
	Account, Credentials        string
	Insecure                    bool
	// RoutePassword is what servers of the cluster's nodes prove themselves with
	// to each other, "" if nothing is asked of them.
	RoutePassword string
}

// clustered reports whether the server is to be one of several.
func (o Options) clustered() bool { return o.ClusterListen != "" || len(o.Routes) > 0 }

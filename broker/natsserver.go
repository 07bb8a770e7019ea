package broker

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/subjects"
)

// natsServer is the NATS server that a node runs: a [natsserver.Server], or
// that of a simulation.
type natsServer interface {
	natsInfo
	watchedServer
	pacedServer
	connectedServer
	portServer

	AppUser() natslink.User
	Routed(node, id string) bool // whether there is a route to a node's server
	ConfigDigest() string
	NoLogin() string // why nobody can log in within the process, "" if clients can
	Stats() natsserver.Stats
	Reload(o natsserver.Options, partitions int, setTLS func(*tls.Config) (restore func(), err error)) error
	ClientURL() string
	Shutdown()
	WaitForShutdown()
}

// connectedServer is what the node's own connections need of the server.
type connectedServer interface {
	nats.InProcessConnProvider
	NodeUser() natslink.User
	CurrentUser() nats.Option
	Subscriptions(client uint64) (map[int]bool, error)
	MaxReply() int64
	SetLinks(links ...*natslink.Link)
}

// watchedServer is what decides whether the server lets the node serve.
type watchedServer interface {
	MapKeys(names subjects.Names, partitions int) error
	UnmapKeys(names subjects.Names)
	RemapKeys() error
	Shadowed(partitions int) (what string, keys bool, err error)
	Configured() bool
	Reloaded() <-chan struct{}
}

// pacedServer is what the pacer needs to know of the server.
type pacedServer interface {
	AccountName() string
	MaxPending() int64
	MayHaveInterest(subject string) bool
	Subscribed(subject string) bool
	Behind(far int64) natsserver.SlowConns
}

// portServer describes the server's ports.
type portServer interface {
	Addr() net.Addr
	OpenPorts() []natsserver.OpenPort
	ClusterTLS() *tls.Config
	Certificates() []natsserver.Certificate
	CertificateChanges() int
}

// environment is what a node has around it, instead of the machine's ports, in
// a simulation.
type environment struct {
	startNATS func(o natsserver.Options) (natsServer, error)
	// listen opens the replication port, and dial a connection to another
	// node's.
	listen func() (net.Listener, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	now    func() time.Time // the node's clock
}

// clock returns the clock for the times of transactions.
func (o Options) clock() func() time.Time {
	if o.environment != nil {
		return o.environment.now
	}
	return time.Now
}

// startNATS starts the node's NATS server.
func (o Options) startNATS(ctx context.Context, partitions int) (natsServer, error) {
	if o.environment != nil {
		return o.environment.startNATS(o.natsServer())
	}
	return natsserver.Start(ctx, o.natsServer(), partitions, o.Logger)
}

package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/wal"
)

// Check returns an error for each mistake in opts for which [Open] would refuse
// them. It reads the NATS configuration with the files that it names, and the
// cluster's secret in the data directory dir. It opens no port and writes
// nothing, so that a node may run on the directory meanwhile. Whether ports are
// free, and whether the directory is that of this node, only Open finds out.
func Check(dir string, opts Options) (all []error) {
	opts.fill()
	all = opts.refusals()
	secret, err := wal.ReadSecret(dir) // what else is wrong with a directory, Open says
	if errors.Is(err, fs.ErrNotExist) && opts.ClusterSecret != "" {
		secret = tokenSecret(opts.ClusterSecret)
	}
	opts.routePassword = routePassword(secret, opts.Cluster)
	all = append(all, opts.profileRefusal()...)
	if opts.ClusterListen == "" && opts.clustered() {
		return all // the server can't be configured without the address
	}
	return append(all, natsserver.CheckConfig(opts.natsServer())...)
}

// profileRefusal returns an error for profiles that others could read. A name
// is looked up only when the port is opened.
func (o Options) profileRefusal() []error {
	host, _, err := net.SplitHostPort(o.HTTPListen)
	if !o.Profiles || err != nil || natsserver.IsLoopback(host) || host != "" && net.ParseIP(host) == nil {
		return nil
	}
	return []error{profilesRefused(o.HTTPListen)}
}

func profilesRefused(address string) error {
	return fmt.Errorf("%w: profiles are served on loopback only, and HTTP is on %s: use 127.0.0.1, or leave profiles off", ErrOptions, address)
}

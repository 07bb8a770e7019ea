package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/wal"
)

// Check returns an error for each mistake in opts for which [Open] would refuse
// them. It reads the NATS configuration with the files that it names, and the
// cluster's secret in the data directory dir. It opens no port and writes
// nothing, so that a node may run on the directory meanwhile. Whether ports are
// free, and whether the directory is that of this node, only Open finds out.
func Check(dir string, opts Options) (all []error) {
	opts.fillFrom(dir)
	all = append(opts.refusals(), opts.profileRefusal()...)
	if opts.ClusterListen == "" && opts.clustered() {
		return all // the server can't be configured without the address
	}
	return append(all, natsserver.CheckConfig(opts.natsServer())...)
}

// fillFrom sets defaults, and what the data directory adds to the options.
func (o *Options) fillFrom(dir string) {
	o.fill()
	secret, err := wal.ReadSecret(dir) // what else is wrong with a directory, Open says
	if errors.Is(err, fs.ErrNotExist) && o.ClusterSecret != "" {
		secret = tokenSecret(o.ClusterSecret)
	}
	o.routePassword = routePassword(secret, o.Cluster)
}

// CertificateExpiry returns when the certificates expire that a node with these
// options and the data directory dir shows, by ports such as "client"; those of
// "cluster" are for replication too. Like [Check] it reads the configuration
// and opens nothing. What Check refuses has no certificates.
func CertificateExpiry(dir string, opts Options) map[string]time.Time {
	if len(Check(dir, opts)) > 0 {
		return nil
	}
	opts.fillFrom(dir)
	all := map[string]time.Time{}
	for _, c := range natsserver.CertificatesOf(opts.natsServer()) {
		all[c.Port] = c.Expires
	}
	return all
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

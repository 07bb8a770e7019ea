package natsserver

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// Server is the embedded NATS server.
type Server struct {
	*server.Server
	log     *slog.Logger
	names   subjects.Names
	account *server.Account // that the nodes' subjects live in
	access  *access
	rights  atomic.Pointer[rights]
	openTo  atomic.Pointer[openTo]
	// leafAccount is the account of leaf nodes that connect without a name.
	leafAccount atomic.Pointer[server.Account]
	// payloadLimit is the server's max_payload. The account of a connection may
	// allow less, which the node's own links are told.
	payloadLimit atomic.Int64
	links        atomic.Pointer[[]*natslink.Link]
	maxPending   atomic.Int64
	maxReply     atomic.Int64
	// watchInterest says that the account's subscriptions show whether anybody
	// wants a feed message. Gateways hide theirs.
	watchInterest bool
	configured    atomic.Bool
	reloaded      chan struct{}                 // capacity 1
	changed       atomic.Pointer[chan struct{}] // closed when limits change, and replaced
	clusterTLS    *tls.Config
}

// Start starts the embedded server and makes the account ready: append
// by key is mapped to partitions by the server itself, unless their number is
// not known yet (0).
func Start(ctx context.Context, o Options, partitions int, log *slog.Logger) (*Server, error) {
	access, err := newAccess(o)
	if err != nil {
		return nil, err
	}
	s := &Server{log: log, names: subjects.Names{Prefix: o.Prefix}, access: access, reloaded: make(chan struct{}, 1)}
	s.configured.Store(o.ConfigFile != "")
	opts, rights, err := s.prepare(o, defaultName(o))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(checkAccount(opts, o), tryNATSPorts(opts, o)); err != nil {
		return nil, err
	}
	if rights.how == anybody || rights.how == byToken {
		opts.CustomClientAuthentication = newDoor(s, access)
	}
	s.rights.Store(&rights)
	s.logGaps()
	s.setLimits(opts)
	s.watchInterest = opts.Gateway.Name == ""
	s.Server, err = startServer(ctx, opts, log, func(ns *server.Server) (err error) {
		if err := s.setLeafAccount(ns, opts); err != nil {
			return err
		}
		if s.account, err = findAccount(ns, o.Account); err != nil || partitions == 0 {
			return err
		}
		return mapKeys(s.account, s.names, partitions)
	})
	if err != nil {
		return nil, err
	}
	s.clusterTLS = opts.Cluster.TLSConfig
	return s, nil
}

// ServerName is what a node's server is called, but for what makes it unique.
func ServerName(node, id string) string { return node + "-" + id[:min(8, len(id))] }

// Routed reports whether the server of a node is connected as a route.
func (s *Server) Routed(node, id string) bool {
	all, err := s.Routez(&server.RoutezOptions{})
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all.Routes, func(r *server.RouteInfo) bool {
		return strings.HasPrefix(r.RemoteName, ServerName(node, id)+"-")
	})
}

// prepare returns the server's options, checked, with the node's own users, and
// what the node has made of them.
func (s *Server) prepare(o Options, name string) (*server.Options, rights, error) {
	opts, err := natsOptions(o, name)
	if err != nil {
		return nil, rights{}, err
	}
	d := openToOf(opts, o)
	s.openTo.Store(&d)
	r, err := s.access.apply(opts, o)
	if err != nil {
		return nil, rights{}, err
	}
	return opts, r, checkNATSOptions(opts)
}

// logGaps logs whom the node can't keep off its subjects, and whom it keeps off
// though that was hardly meant: everybody, where an account is missing.
func (s *Server) logGaps() {
	if s.rights.Load().mute {
		s.log.Warn(`leaf nodes can't send requests: none of the account's users has allowed_connection_types: ["LEAFNODE"]`)
	}
	if others := s.rights.Load().others; len(others) > 0 {
		s.log.Warn("no user of the NATS configuration is in the account that the subjects live in (the global one): give --account, one of " +
			strings.Join(others, ", "))
	}
	if gaps := s.rights.Load().gaps; len(gaps) > 0 {
		s.log.Warn("the node can't add permissions for everybody that its NATS server lets in: see Permissions in subjects.md",
			"not_for", strings.Join(gaps, ", "))
	}
}

// setLeafAccount stores the account of leaf nodes that connect without a user.
func (s *Server) setLeafAccount(ns *server.Server, opts *server.Options) error {
	account, err := findAccount(ns, opts.LeafNode.Account)
	if err == nil {
		s.leafAccount.Store(account)
	}
	return err
}

// mapKeys has an account map appends by key to partitions.
func mapKeys(account *server.Account, names subjects.Names, partitions int) error {
	to := fmt.Sprintf("%s.append.{{partition(%d,1)}}.{{wildcard(1)}}", names.Prefix, partitions)
	if err := account.AddMapping(names.AppendKey("*"), to); err != nil {
		return fmt.Errorf("map %s: %w", names.AppendKey("*"), err)
	}
	return nil
}

// serverStart is how long a server may take until it accepts clients. It is
// generous because JetStream, where it is on, recovers its streams first.
const serverStart = 30 * time.Second

// startServer starts a NATS server, after prepare has done what must come
// before, and returns once it accepts clients.
func startServer(ctx context.Context, opts *server.Options, log *slog.Logger, prepare func(*server.Server) error) (*server.Server, error) {
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("NATS server: %w", err)
	}
	logger := serverLogger{log, make(chan string, 1), &loglimit.Repeats{}}
	ns.SetLoggerV2(logger, false, false, false)
	if err := prepare(ns); err != nil {
		ns.Shutdown()
		return nil, err
	}
	ns.Start()
	for deadline := time.Now().Add(serverStart); !ns.ReadyForConnections(50 * time.Millisecond); {
		select {
		case text := <-logger.fatal:
			err = fmt.Errorf("%w: %s", ErrNotReady, text)
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", ErrNotReady, ctx.Err())
		default:
			if time.Now().After(deadline) {
				err = fmt.Errorf("%w after %v", ErrNotReady, serverStart)
			}
		}
		if err != nil {
			ns.Shutdown()
			ns.WaitForShutdown()
			return nil, err
		}
	}
	return ns, nil
}

// configError puts what the NATS server finds wrong with a file, one a line, into one
// line.
func configError(file string, err error) error {
	if found := strings.TrimSpace(err.Error()); found != err.Error() {
		return fmt.Errorf("NATS configuration %s: %s", file, strings.ReplaceAll(found, "\n", "; "))
	}
	return fmt.Errorf("NATS configuration %s: %w", file, err)
}

// defaultName is what the server is called if no file says it.
func defaultName(o Options) string {
	if o.clustered() { // servers of one name don't connect: a node is to be told that its name is taken
		return o.Name + "-" + rand.Text()[:8]
	}
	return o.Name
}

// natsOptions are the operator's configuration file, or our defaults.
func natsOptions(o Options, name string) (*server.Options, error) {
	opts := &server.Options{}
	if o.ConfigFile != "" {
		if err := opts.ProcessConfigFile(o.ConfigFile); err != nil {
			return nil, configError(o.ConfigFile, err)
		}
	}
	switch {
	case o.ClientListen != "":
		host, port, err := splitAddress(o.ClientListen)
		if err != nil {
			return nil, fmt.Errorf("listen address: %w", err)
		}
		if opts.Host == "" && opts.Port == 0 { // the file goes first
			opts.Host, opts.Port = host, port
		}
	case o.ConfigFile == "" && o.clustered(): // the server routes only if it listens
		opts.Host, opts.Port = "127.0.0.1", server.RANDOM_PORT
	case o.ConfigFile == "":
		opts.DontListen = true
	}
	if opts.Port == 0 && !opts.DontListen {
		opts.Port = server.DEFAULT_PORT
	}
	opts.ServerName = cmp.Or(opts.ServerName, name)
	opts.MaxPayload = cmp.Or(opts.MaxPayload, server.MAX_PAYLOAD_SIZE)
	opts.MaxControlLine = cmp.Or(opts.MaxControlLine, server.MAX_CONTROL_LINE_SIZE)
	if err := routeOptions(opts, o); err != nil {
		return nil, err
	}
	if err := checkOpen(opts, o); err != nil {
		return nil, err
	}
	opts.ReconnectErrorReports = cmp.Or(opts.ReconnectErrorReports, 60)
	opts.NoSigs = true // the program's, not the server's
	// A slow subscriber of the feed loses messages and reads them again; with
	// the stall it would hold up everybody's answers.
	opts.NoFastProducerStall = true
	return opts, nil
}

// A node that hangs must not swallow requests for long: its routes are given
// up after about four seconds. Those of a dead one end at once.
const (
	routePing    = time.Second
	routePingMax = 3
)

// routeOptions adds what makes the server one of several.
func routeOptions(opts *server.Options, o Options) error {
	if !o.clustered() {
		return nil
	}
	host, port, err := splitAddress(o.ClusterListen)
	if err != nil {
		return fmt.Errorf("cluster address: %w", err)
	}
	c := &opts.Cluster
	if c.Host == "" && c.Port == 0 { // the file goes first
		c.Host, c.Port = host, port
	}
	c.Name = cmp.Or(c.Name, o.Cluster)
	if o.RoutePassword != "" && c.Username == "" && c.Password == "" {
		c.Username, c.Password = routeUserName, o.RoutePassword
		for _, u := range opts.Routes { // of the file
			if u.User == nil {
				u.User = routeUser(c)
			}
		}
	}
	c.PingInterval = cmp.Or(c.PingInterval, routePing)
	c.MaxPingsOut = cmp.Or(c.MaxPingsOut, routePingMax)
	for _, r := range o.Routes {
		if _, _, err := net.SplitHostPort(r); err != nil {
			return fmt.Errorf("route: %q is not host:port, such as 127.0.0.1:6222", r)
		}
		opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats-route", Host: r, User: routeUser(c)})
	}
	return nil
}

// routeUser is whom the server is to its peers, where routes need a user.
func routeUser(c *server.ClusterOpts) *url.Userinfo {
	if c.Username == "" {
		return nil
	}
	return url.UserPassword(c.Username, c.Password)
}

func splitAddress(address string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port, such as 127.0.0.1:4222", address)
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%q: the port is a number from 0 (any free one) to 65535", address)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

func findAccount(ns *server.Server, name string) (*server.Account, error) {
	if name == "" {
		return ns.GlobalAccount(), nil
	}
	a, err := ns.LookupAccount(name)
	if err != nil {
		return nil, fmt.Errorf("NATS account %q: %w", name, err)
	}
	return a, nil
}

// Wanted reports whether anybody subscribes to subject.
func (s *Server) Wanted(subject string) bool {
	return !s.watchInterest || s.account.SubscriptionInterest(subject)
}

// Interested reports whether a subscription to subject is known. One on another
// node may have ended a short while ago.
func (s *Server) Interested(subject string) bool { return s.account.SubscriptionInterest(subject) }

// AccountName is the name of the account that the nodes' subjects live in.
func (s *Server) AccountName() string { return s.account.GetName() }

// NodeUser is the user that the node itself connects as.
func (s *Server) NodeUser() natslink.User { return s.rights.Load().node }

// AppUser is the user of the application that embeds the node.
func (s *Server) AppUser() natslink.User { return s.rights.Load().app }

// ConfigDigest returns a digest of the configuration and the files that it
// includes, "" without a configuration.
func (s *Server) ConfigDigest() string { return s.rights.Load().digest }

// ClusterTLS is what routes are secured with, nil if they are not.
func (s *Server) ClusterTLS() *tls.Config { return s.clusterTLS }

// Configured reports whether the server has a configuration file.
func (s *Server) Configured() bool { return s.configured.Load() }

// Reloaded receives a value after a reload.
func (s *Server) Reloaded() <-chan struct{} { return s.reloaded }

// SetLinks tells the server which connections are the node's own. Their limits
// follow those of the server.
func (s *Server) SetLinks(links ...*natslink.Link) { s.links.Store(&links) }

// OpenTo says who is let in at the ports for clients and for routes.
func (s *Server) OpenTo() (clients, routes string) {
	to := s.openTo.Load()
	return to.clients, to.routes
}

// MapKeys has the account map appends by key to partitions.
func (s *Server) MapKeys(partitions int) error { return mapKeys(s.account, s.names, partitions) }

// Subscribed reports whether one of this server's own connections subscribes to a
// subject.
func (s *Server) Subscribed(subject string) bool {
	c, err := s.Connz(&server.ConnzOptions{Account: s.AccountName(), FilterSubject: subject, Limit: 1})
	return err == nil && c.NumConns > 0
}

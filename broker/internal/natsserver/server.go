package natsserver

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	account *server.Account // of the nodes' subjects
	keyed   keyMappings
	access  *access
	rights  atomic.Pointer[rights]
	open    atomic.Pointer[[]OpenPort]
	// certificates are those that the ports show.
	certificates       atomic.Pointer[[]Certificate]
	certificateChanges atomic.Int64
	// leafAccount is the account of leaf nodes that connect without a user
	// name.
	leafAccount atomic.Pointer[server.Account]
	// payloadLimit is the server's max_payload. The account of a connection may
	// have a lower limit, which the server sends to the node's links.
	payloadLimit atomic.Int64
	links        atomic.Pointer[[]*natslink.Link]
	maxPending   atomic.Int64
	maxReply     atomic.Int64
	// watchInterest is set if the server knows all subscriptions to the feed.
	// It does not know those behind gateways.
	watchInterest bool
	configured    atomic.Bool
	reloaded      chan struct{}                 // capacity 1
	changed       atomic.Pointer[chan struct{}] // closed when limits change, and replaced
	clusterTLS    *tls.Config
}

// Start starts the embedded server. It returns when the server accepts clients.
// The account of the nodes' subjects then maps appends by key to partitions,
// unless partitions, their number, is 0, which means that it is not known yet.
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
	if rights.how == byNothing || rights.how == byToken {
		opts.CustomClientAuthentication = newAuthenticator(s, access)
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
		return s.MapKeys(s.names, partitions)
	})
	if err != nil {
		return nil, err
	}
	s.clusterTLS = opts.Cluster.TLSConfig
	return s, nil
}

// ServerName returns the name of a node's server without its random suffix.
func ServerName(node, id string) string { return node + "-" + id[:min(8, len(id))] }

// Routed reports whether this server has a route to the server of a node.
func (s *Server) Routed(node, id string) bool {
	all, err := s.Routez(&server.RoutezOptions{})
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all.Routes, func(r *server.RouteInfo) bool {
		return strings.HasPrefix(r.RemoteName, ServerName(node, id)+"-")
	})
}

// prepare returns the server's options, checked and with the node's users
// added, and the rights that result. Its error joins all mistakes; the options
// are nil if they could not even be read.
func (s *Server) prepare(o Options, name string) (*server.Options, rights, error) {
	opts, err := natsOptions(o, name)
	if err != nil {
		return nil, rights{}, err
	}
	open, err := openPortsOf(opts, o) // before users are added
	if err != nil {
		return nil, rights{}, err
	}
	shown := certificatesOf(opts)
	s.open.Store(&open)
	s.certificates.Store(&shown)
	r, err := s.access.apply(opts, o)
	return opts, r, errors.Join(checkOpen(open, o), err, checkNATSOptions(opts))
}

// logGaps logs which connections have more rights than they should, and which
// have fewer than the configuration probably intends.
func (s *Server) logGaps() {
	if s.rights.Load().mutedLeaves {
		s.log.Warn(`leaf nodes can't send requests: none of the account's users has allowed_connection_types: ["LEAFNODE"]`)
	}
	if others := s.rights.Load().otherAccounts; len(others) > 0 {
		s.log.Warn("no user of the NATS configuration is in the account that the subjects live in (the global one): give --account, one of " +
			strings.Join(others, ", "))
	}
	if gaps := s.rights.Load().gaps; len(gaps) > 0 {
		s.log.Warn("the node can't add permissions for everybody that its NATS server lets in: see Permissions in subjects.md",
			"not_for", strings.Join(gaps, ", "))
	}
}

// setLeafAccount sets leafAccount.
func (s *Server) setLeafAccount(ns *server.Server, opts *server.Options) error {
	account, err := findAccount(ns, opts.LeafNode.Account)
	if err == nil {
		s.leafAccount.Store(account)
	}
	return err
}

// mapKeys adds a subject mapping from appends by key to partitions to an
// account.
func mapKeys(account *server.Account, names subjects.Names, partitions int) error {
	to := fmt.Sprintf("%s.append.{{partition(%d,1)}}.{{wildcard(1)}}", names.Prefix, partitions)
	if err := account.AddMapping(names.AppendKey("*"), to); err != nil {
		return fmt.Errorf("map %s: %w", names.AppendKey("*"), err)
	}
	return nil
}

// startTimeout is how long a server may take until it accepts clients. It is
// long, because JetStream, if enabled, first recovers its streams.
const startTimeout = 30 * time.Second

// startServer creates a NATS server, calls prepare, and starts the server. It
// returns when the server accepts clients.
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
	for deadline := time.Now().Add(startTimeout); !ns.ReadyForConnections(50 * time.Millisecond); {
		select {
		case text := <-logger.fatal:
			err = fmt.Errorf("%w: %s", ErrNotReady, text)
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", ErrNotReady, ctx.Err())
		default:
			if time.Now().After(deadline) {
				err = fmt.Errorf("%w after %v", ErrNotReady, startTimeout)
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

// configError wraps an error of the NATS server about a configuration file. It
// joins the lines of one that has several.
func configError(file string, err error) error {
	if found := strings.TrimSpace(err.Error()); found != err.Error() {
		return fmt.Errorf("NATS configuration %s: %s", file, strings.ReplaceAll(found, "\n", "; "))
	}
	return fmt.Errorf("NATS configuration %s: %w", file, err)
}

// defaultName returns the server's name for a configuration that sets none.
func defaultName(o Options) string {
	// Servers with the same name don't connect to each other. With a random
	// suffix they do, and a node whose name is taken learns of that.
	if o.clustered() {
		return o.Name + "-" + rand.Text()[:8]
	}
	return o.Name
}

// natsOptions returns the server's options: those of the configuration file,
// then those of the node, then the defaults.
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
		if opts.Host == "" && opts.Port == 0 { // the file takes precedence
			opts.Host, opts.Port = host, port
		}
	case o.ConfigFile == "" && o.clustered(): // without a client port, the server has no routes
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
	opts.ReconnectErrorReports = cmp.Or(opts.ReconnectErrorReports, 60)
	opts.NoSigs = true // the program handles signals, not the server
	// The server would slow a producer down for a slow subscriber. But the node
	// also sends everyone's replies, and a slow subscriber of the feed can read
	// the messages that it misses.
	opts.NoFastProducerStall = true
	// The replies' subjects are matched once each: a shared cache of results
	// would be filled with them, under a lock, and emptied again.
	opts.NoSublistCache = true
	return opts, nil
}

// A node that hangs must not receive requests for long, so its routes are
// closed after about four seconds. The routes of a dead process close at once.
const (
	routePing    = time.Second
	routePingMax = 3
)

// routeOptions sets the options of the server's routes, if it is one of
// several.
func routeOptions(opts *server.Options, o Options) error {
	if !o.clustered() {
		return nil
	}
	host, port, err := splitAddress(o.ClusterListen)
	if err != nil {
		return fmt.Errorf("cluster address: %w", err)
	}
	c := &opts.Cluster
	if c.Host == "" && c.Port == 0 { // the file takes precedence
		c.Host, c.Port = host, port
	}
	c.Name = cmp.Or(c.Name, o.Cluster)
	if o.RoutePassword != "" && c.Username == "" && c.Password == "" {
		c.Username, c.Password = routeUserName, o.RoutePassword
		for _, u := range opts.Routes { // those of the file
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

// routeUser returns the user with which the server connects to its peers, nil
// if routes need none.
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

// MayHaveInterest reports whether there may be a subscription to subject.
func (s *Server) MayHaveInterest(subject string) bool {
	return !s.watchInterest || s.account.SubscriptionInterest(subject)
}

// HasInterest reports whether the server knows a subscription to subject. One
// on another node may have ended a moment ago.
func (s *Server) HasInterest(subject string) bool { return s.account.SubscriptionInterest(subject) }

// AccountName returns the name of the account of the nodes' subjects.
func (s *Server) AccountName() string { return s.account.GetName() }

// NodeUser returns the user as which the node itself connects.
func (s *Server) NodeUser() natslink.User { return s.rights.Load().node }

// AppUser returns the user of the application that embeds the node.
func (s *Server) AppUser() natslink.User { return s.rights.Load().app }

// ConfigDigest returns a digest of the configuration and the files that it
// includes, "" without a configuration.
func (s *Server) ConfigDigest() string { return s.rights.Load().digest }

// ClusterTLS returns the TLS configuration of the routes, nil if they don't use
// TLS.
func (s *Server) ClusterTLS() *tls.Config { return s.clusterTLS }

// Configured reports whether the server has a configuration file.
func (s *Server) Configured() bool { return s.configured.Load() }

// Reloaded receives a value after a reload.
func (s *Server) Reloaded() <-chan struct{} { return s.reloaded }

// SetLinks sets the node's own connections. The server passes changes of its
// limits to them.
func (s *Server) SetLinks(links ...*natslink.Link) { s.links.Store(&links) }

// OpenPorts returns the ports that are open.
func (s *Server) OpenPorts() []OpenPort {
	all := slices.Clone(*s.open.Load())
	for i := range all { // the configuration may say "any free port"
		var at net.Addr
		switch all[i].What {
		case clientPort:
			at = s.Addr()
		case routePort:
			if a := s.ClusterAddr(); a != nil {
				at = a
			}
		case monitorPort:
			if a := s.MonitorAddr(); a != nil {
				at = a
			}
		}
		if at != nil {
			all[i].Address = at.String()
		}
	}
	return all
}

// NoLogin returns why a connection within the process may not stand for one of
// the client port, "" if it may: there is no such port, or it asks for a
// certificate, which the connection could not show.
func (s *Server) NoLogin() string {
	for _, p := range *s.open.Load() {
		if p.What != clientPort {
			continue
		}
		if p.certificate {
			return "the client port asks for a certificate"
		}
		return ""
	}
	return "there is no client port"
}

// keyMappings are the mappings from appends by key: of the cluster, and of its
// namespaces.
type keyMappings struct {
	mu         sync.Mutex
	partitions map[subjects.Names]int
}

// all returns a copy.
func (k *keyMappings) all() map[subjects.Names]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := map[subjects.Names]int{}
	maps.Copy(all, k.partitions)
	return all
}

// has reports whether a subject is one from which appends by key are mapped.
func (k *keyMappings) has(source string) bool {
	for names := range k.all() {
		if names.AppendKey("*") == source {
			return true
		}
	}
	return false
}

// MapKeys adds a subject mapping from appends by key to partitions to the
// account of the nodes' subjects: under the names of the cluster, or of a
// namespace. A reload keeps it.
func (s *Server) MapKeys(names subjects.Names, partitions int) error {
	s.keyed.mu.Lock()
	defer s.keyed.mu.Unlock()
	if s.keyed.partitions == nil {
		s.keyed.partitions = map[subjects.Names]int{}
	}
	s.keyed.partitions[names] = partitions
	return mapKeys(s.account, names, partitions)
}

// RemapKeys adds the mappings of MapKeys again: an account that is replaced
// loses them.
func (s *Server) RemapKeys() error {
	s.keyed.mu.Lock()
	defer s.keyed.mu.Unlock()
	var err error
	for names, partitions := range s.keyed.partitions {
		err = errors.Join(err, mapKeys(s.account, names, partitions))
	}
	return err
}

// UnmapKeys removes the mapping of MapKeys.
func (s *Server) UnmapKeys(names subjects.Names) {
	s.keyed.mu.Lock()
	defer s.keyed.mu.Unlock()
	delete(s.keyed.partitions, names)
	s.account.RemoveMapping(names.AppendKey("*"))
}

// Subscribed reports whether a connection to this server, not to another one of
// the cluster, subscribes to a subject.
func (s *Server) Subscribed(subject string) bool {
	c, err := s.Connz(&server.ConnzOptions{Account: s.AccountName(), FilterSubject: subject, Limit: 1})
	return err == nil && c.NumConns > 0
}

package broker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
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

// natsServer is the embedded NATS server and what the node needs to know of
// it.
type natsServer struct {
	*server.Server
	account *server.Account // that the node's subjects live in
	access  *access
	rights  atomic.Pointer[rights]
	// leafAccount is where leaf nodes come to that need no name.
	leafAccount atomic.Pointer[server.Account]
	// most is the server's max_payload. A connection's account may allow less,
	// which the node's own connections, own, are told.
	most atomic.Int64
	own  atomic.Pointer[[]*natslink.Link]
	// maxPending is how many bytes the server lets a connection be behind.
	maxPending atomic.Int64
	// maxReply is the longest reply subject that an answer of the node fits.
	maxReply atomic.Int64
	// watchInterest says that the account's subscriptions tell whether
	// anybody wants a feed message. Gateways hide theirs.
	watchInterest bool
	// configured says that the server has a configuration file, and reloaded that it
	// was read anew.
	configured atomic.Bool
	reloaded   chan struct{} // capacity 1
	// changed is closed when limits change, and replaced.
	changed atomic.Pointer[chan struct{}]
	doors   atomic.Pointer[doors]
	// clusterTLS is what routes are secured with, nil if they are not.
	clusterTLS *tls.Config
}

// feedRoom is what a feed message may have beside a transaction's own bytes.
const feedRoom = 1024

// startNATS starts the embedded server and makes the account ready: append
// by key is mapped to partitions by the server itself, unless their number is
// not known yet (0).
func startNATS(ctx context.Context, o Options, partitions int, log *slog.Logger) (*natsServer, error) {
	access, err := newAccess(o)
	if err != nil {
		return nil, err
	}
	s := &natsServer{access: access, reloaded: make(chan struct{}, 1)}
	s.configured.Store(o.NATSConfig != "")
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
	s.sayGaps(log)
	s.setLimits(opts)
	s.watchInterest = opts.Gateway.Name == ""
	s.Server, err = startServer(ctx, opts, log, func(ns *server.Server) (err error) {
		if err := s.setLeafAccount(ns, opts); err != nil {
			return err
		}
		if s.account, err = findAccount(ns, o.Account); err != nil || partitions == 0 {
			return err
		}
		return mapKeys(s.account, subjects.Names{Prefix: o.Prefix}, partitions)
	})
	if err != nil {
		return nil, err
	}
	s.clusterTLS = opts.Cluster.TLSConfig
	return s, nil
}

// serverName is what a node's server is called, but for what makes it unique.
func serverName(node, id string) string { return node + "-" + id[:min(8, len(id))] }

// routed reports whether the server of a node is connected as a route.
func (s *natsServer) routed(node, id string) bool {
	all, err := s.Routez(&server.RoutezOptions{})
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all.Routes, func(r *server.RouteInfo) bool {
		return strings.HasPrefix(r.RemoteName, serverName(node, id)+"-")
	})
}

// prepare returns the server's options, checked, with the node's own users, and
// what the node has made of them.
func (s *natsServer) prepare(o Options, name string) (*server.Options, rights, error) {
	opts, err := natsOptions(o, name)
	if err != nil {
		return nil, rights{}, err
	}
	d := doorsOf(opts, o)
	s.doors.Store(&d)
	r, err := s.access.apply(opts, o)
	if err != nil {
		return nil, rights{}, err
	}
	return opts, r, checkNATSOptions(opts)
}

// sayGaps logs whom the node can't keep off its subjects, and whom it keeps off
// though that was hardly meant: everybody, where an account is missing.
func (s *natsServer) sayGaps(log *slog.Logger) {
	if s.rights.Load().mute {
		log.Warn(`leaf nodes can't send requests: none of the account's users has allowed_connection_types: ["LEAFNODE"]`)
	}
	if others := s.rights.Load().others; len(others) > 0 {
		log.Warn("no user of the NATS configuration is in the account that the subjects live in (the global one): give --account, one of " +
			strings.Join(others, ", "))
	}
	if gaps := s.rights.Load().gaps; len(gaps) > 0 {
		log.Warn("the node can't add permissions for everybody that its NATS server lets in: see Permissions in subjects.md",
			"not_for", strings.Join(gaps, ", "))
	}
}

// setLeafAccount remembers the account that leaf nodes without a name come to.
func (s *natsServer) setLeafAccount(ns *server.Server, opts *server.Options) error {
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
	logger := natsLogger{log, make(chan string, 1), &loglimit.Repeats{}}
	ns.SetLoggerV2(logger, false, false, false)
	if err := prepare(ns); err != nil {
		ns.Shutdown()
		return nil, err
	}
	ns.Start()
	for deadline := time.Now().Add(serverStart); !ns.ReadyForConnections(50 * time.Millisecond); {
		select {
		case text := <-logger.fatal:
			err = fmt.Errorf("%w: %s", ErrNATSNotReady, text)
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", ErrNATSNotReady, ctx.Err())
		default:
			if time.Now().After(deadline) {
				err = fmt.Errorf("%w after %v", ErrNATSNotReady, serverStart)
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
	if o.NATSConfig != "" {
		if err := opts.ProcessConfigFile(o.NATSConfig); err != nil {
			return nil, configError(o.NATSConfig, err)
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
	case o.NATSConfig == "" && o.clustered(): // the server routes only if it listens
		opts.Host, opts.Port = "127.0.0.1", server.RANDOM_PORT
	case o.NATSConfig == "":
		opts.DontListen = true
	}
	if opts.Port == 0 && !opts.DontListen {
		opts.Port = server.DEFAULT_PORT
	}
	set(&opts.ServerName, name)
	set(&opts.MaxPayload, server.MAX_PAYLOAD_SIZE)
	set(&opts.MaxControlLine, server.MAX_CONTROL_LINE_SIZE)
	if err := routeOptions(opts, o); err != nil {
		return nil, err
	}
	if err := checkDoors(opts, o); err != nil {
		return nil, err
	}
	set(&opts.ReconnectErrorReports, 60)
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
	set(&c.Name, o.Cluster)
	if o.routePassword != "" && c.Username == "" && c.Password == "" {
		c.Username, c.Password = routeUserName, o.routePassword
		for _, u := range opts.Routes { // of the file
			if u.User == nil {
				u.User = routeUser(c)
			}
		}
	}
	set(&c.PingInterval, routePing)
	set(&c.MaxPingsOut, routePingMax)
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

// wanted tells whether anybody subscribes to subject.
func (s *natsServer) wanted(subject string) bool {
	return !s.watchInterest || s.account.SubscriptionInterest(subject)
}

// interest tells whether anybody is known to subscribe to subject, which for a
// while after a subscription on another node ended may be one who does no more.
func (s *natsServer) interest(subject string) bool { return s.account.SubscriptionInterest(subject) }

// natsLogger passes the server's log on, and what it could not start for.
type natsLogger struct {
	log     *slog.Logger
	fatal   chan string // the first only
	repeats *loglimit.Repeats
}

func (l natsLogger) Noticef(format string, v ...any) {
	l.log.Debug("nats: " + fmt.Sprintf(format, v...))
}
func (l natsLogger) Warnf(format string, v ...any)  { l.warn(fmt.Sprintf(format, v...)) }
func (l natsLogger) Errorf(format string, v ...any) { l.warn(fmt.Sprintf(format, v...)) }

// numbers are what differs in a text that is said again and again: ports, and
// counts of connections and attempts.
var numbers = regexp.MustCompile(`[: ][0-9]+`)

// Of routes between nodes whose tokens differ: what the one that dials is told,
// and what the one that refuses says.
var (
	routeRefused = regexp.MustCompile(`^(\S+:\d+) - rid:\d+ .*Route Error 'Authorization Violation'`)
	routeRefuses = regexp.MustCompile(`^(\S+:\d+) - rid:\d+ - authentication error`)
)

// routeHint says what the NATS server's text about a route means for a node, ""
// for other texts.
func routeHint(text string) string {
	const means = "it has another token, or none (--cluster-secret-file)"
	if m := routeRefused.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf(": %s refuses this node: %s", m[1], means)
	}
	if m := routeRefuses.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf(": this node refuses the one at %s: %s", m[1], means)
	}
	return ""
}

// warn logs a text, and the same one again once in a while: the server tries a
// route that is away, and says so, every second.
func (l natsLogger) warn(text string) {
	ok, withheld := l.repeats.Allow(numbers.ReplaceAllString(text, "#"), time.Now())
	text += routeHint(text)
	switch {
	case !ok:
	case withheld > 0:
		l.log.Warn("nats: "+text, "not_logged_before", withheld)
	default:
		l.log.Warn("nats: " + text)
	}
}

func (l natsLogger) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}
func (l natsLogger) Debugf(string, ...any) {}
func (l natsLogger) Tracef(string, ...any) {}

package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Options configures a node. The zero value is a node for embedding: it opens
// no port, and every option has its default.
type Options struct {
	// Name is the node's name in its cluster, one NATS token. Default "n1".
	Name string
	// Cluster is the cluster's name, one NATS token. It is stored in the data
	// directory and must not change. Default "cantus".
	Cluster string
	// Partitions is the number of partitions, 1 to 1,024. It is stored in the
	// data directory and must not change. Default: what the directory has, or 4
	// for a new one.
	Partitions int
	// Prefix begins every subject. Default "cantus".
	Prefix string

	// ClientListen is the host:port for NATS clients; port 0 takes a free one.
	// Empty opens no port, or in a cluster one on loopback: clients use
	// [Node.Conn].
	ClientListen string
	// HTTPListen is the host:port for health and metrics; port 0 takes a free
	// one. It needs no password: keep it off public networks. Empty opens none.
	HTTPListen string
	// Profiles serves the profiles of runtime/pprof below /debug/pprof/ on
	// HTTPListen, which must then be on loopback. They show the process's
	// memory.
	Profiles bool
	// HTTPHandler answers the requests on HTTPListen that are neither for
	// health nor metrics nor profiles. The context of a request ends when the
	// node stops. Answers that take long set their own deadlines. Default: such
	// requests are not found.
	HTTPHandler http.Handler
	// NATSConfig is a nats-server configuration file. It takes precedence over
	// ClientListen. A port in it without a host is open on every interface.
	NATSConfig string
	// Account is the NATS account of the node's subjects, if NATSConfig defines
	// accounts. Default: the server's global account.
	Account string
	// Credentials is a NATS credentials file for the node's own connections. It
	// is needed if NATSConfig has operators and accounts as JWTs.
	Credentials string

	// ClusterListen is the host:port of the NATS route port, through which the
	// nodes of a cluster find each other. Routes are the route ports of other
	// nodes: one is enough, NATS gossips the rest. If both are empty, the node
	// is standalone.
	ClusterListen string
	Routes        []string
	// RaftListen is the host:port for replication; port 0 takes a free one.
	// Default: the host of ClusterListen and a free port. RaftAdvertise is the
	// address that the other nodes dial, if it differs from RaftListen.
	RaftListen, RaftAdvertise string
	// Bootstrap names the nodes that found the cluster, this one among them. It
	// must be the same on each of them, and is used only while the data
	// directory is new. If it is empty, the node waits until an operator adds
	// it to a cluster.
	Bootstrap []string
	// ClusterSecret is a token of at least 32 characters, which every node of
	// the cluster has and which is kept secret: with it the nodes prove to each
	// other that they belong to the cluster. Without it the founders make a
	// secret of their own, and trust each other on first use. Either is stored
	// in the data directory, so that later starts need no token.
	ClusterSecret string
	// Insecure allows ports that are open to anyone that reaches them. Without
	// it a node refuses to listen, except on loopback, for clients that need no
	// credentials, and for routes without ClusterSecret, a password or
	// certificates.
	Insecure bool
	// Replicas is the number of voters of each partition, 1, 3 or 5. It is
	// fixed when the cluster is founded. Partitions have fewer while there are
	// fewer nodes. Default 3.
	Replicas int
	// Standby makes a node that is added follow every partition without a vote.
	Standby bool
	// ElectionTimeout is how long a follower waits for its leader before it
	// campaigns, and how long an election may take before the next. A shorter
	// timeout means shorter pauses when a leader dies, and more needless
	// elections on slow networks. Default 500 ms.
	ElectionTimeout time.Duration
	// CatchUpRate bounds, in bytes a second, what the node sends to replicas
	// that are far behind. A lower rate leaves more of the processors and the
	// disk to new transactions. Default 16 MiB.
	CatchUpRate int64

	// MaxLocks is the capacity of each partition's lock table, in locks of
	// about 100 bytes of memory, and 260 if a session recorded it. Default
	// 1,000,000.
	MaxLocks int
	// MsgIDWindow is how long a message id is remembered. WholeLog has it
	// remembered as long as the log has its transaction, which needs the index;
	// trims keep transactions for 2 minutes at least then. Default WholeLog, or
	// 2 minutes with NoIndex.
	MsgIDWindow time.Duration
	// MaxMsgIDs is how many message ids, the newest ones, each partition has in
	// memory at most, at about 100 bytes each. With WholeLog, older ones are
	// looked up in the log, and take another 3 to 12 bytes of memory; otherwise
	// they are forgotten. Default 1,000,000.
	MaxMsgIDs int
	// QueueBytes bounds the requests that wait for a partition; beyond it,
	// requests are refused as busy. A message, which may be a batch, counts its
	// headers and payload, and 256 bytes more. A message larger than the bound
	// is accepted if none waits. Default 32 MiB.
	QueueBytes int
	// CacheBytes bounds the newest entries that the whole node keeps in memory
	// for reads. Default 64 MiB.
	CacheBytes int
	// MinFreeBytes is the free disk space, in bytes, below which appends are
	// refused as storage_full. Default 256 MiB.
	MinFreeBytes int64

	// ScrubRate is how many bytes a second the node reads from its disk to find
	// damage there. A higher rate finds it sooner, and takes more of the disk
	// and of a processor. Negative for never. Default 2 MiB.
	ScrubRate int64
	// ScrubInterval is the least time between the starts of two scrubs: a
	// small log is not read all the time. Default 1 hour.
	ScrubInterval time.Duration

	// NoIndex has the node keep no index of the kinds, locks and message ids of
	// transactions. Reads by these names then go through the log.
	NoIndex bool

	// Archive has what was trimmed off the cluster's logs: reads of older
	// transactions are answered from it. Default: they are refused.
	Archive Archive

	// RetentionInterval is the least time between two trims of a partition by
	// its retention policy. Default 1 minute.
	RetentionInterval time.Duration

	// TracerProvider receives spans of the appends whose traceparent header says
	// that their trace is sampled: see docs/traces.md. If it is slow, spans are
	// dropped. Default: none are made.
	TracerProvider trace.TracerProvider
	// TraceRatio is the share of the appends without a traceparent for which
	// the node begins a trace, 0 to 1. It needs TracerProvider. Default 0.
	TraceRatio float64
	// SpansLost, if not nil, returns how many spans TracerProvider has lost. The
	// metric cantus_spans_dropped_total includes them.
	SpansLost func() uint64

	// Logger receives the node's log. Default: it is discarded.
	Logger *slog.Logger
	// Version is the program's semantic version, which info, discovery and
	// announcements show. Default "0.0.0-dev".
	Version string

	// Tests set these. In store, Identity, TailBytes and Logger are ignored.
	store     wal.Options
	freeSpace func(dir string) (int64, error)
	// routePassword is the password of route ports that derives from the token.
	routePassword string
	protocol      int
	records       int // see recordsVersion
	// pointEvery replaces the constant if it is not 0.
	pointEvery uint64
	// trimming is called before each step of trimming a log.
	trimming func(step string)
	// reroute returns the address at which another node is dialed for
	// replication, given the one that it has announced.
	reroute func(node, address string) string
	// environment replaces the machine's network if it is not nil.
	environment *environment
}

// state returns the options of each partition's state.
func (o Options) state() stateOptions {
	return stateOptions{
		locks:      lockmgr.Options{Locks: o.MaxLocks, IDs: o.MaxMsgIDs, IDWindow: o.leastIDWindow(), IDsInLog: o.MsgIDWindow == WholeLog},
		pointEvery: o.pointEvery,
	}
}

// WholeLog is a time longer than any that a log may have transactions of: see
// Options.MsgIDWindow.
const WholeLog time.Duration = math.MaxInt64

// defaultIDWindow is how long a message id is remembered at least by default.
const defaultIDWindow = 2 * time.Minute

// leastIDWindow is how long a message id is remembered at least, although its
// transaction might be trimmed.
func (o Options) leastIDWindow() time.Duration {
	if o.MsgIDWindow == WholeLog {
		return defaultIDWindow
	}
	return o.MsgIDWindow
}

// natsServer returns the options of the embedded NATS server.
func (o Options) natsServer() natsserver.Options {
	return natsserver.Options{
		Name: o.Name, Cluster: o.Cluster, Prefix: o.Prefix, ClientListen: o.ClientListen, ClusterListen: o.ClusterListen, Routes: o.Routes,
		ConfigFile: o.NATSConfig, Account: o.Account, Credentials: o.Credentials, Insecure: o.Insecure, RoutePassword: o.routePassword,
	}
}

// clustered reports whether the node belongs to a cluster, or waits to.
func (o Options) clustered() bool { return o.ClusterListen != "" || len(o.Routes) > 0 }

const defaultPartitions = 4

// withDefaults returns the options with defaults for zero values, or an error
// if one is out of range.
func (o Options) withDefaults() (Options, error) {
	o.fill()
	if all := o.refusals(); len(all) > 0 {
		return o, all[0]
	}
	return o, nil
}

// fill sets defaults for zero values.
func (o *Options) fill() {
	set(&o.Name, "n1")
	set(&o.Cluster, "cantus")
	set(&o.Prefix, subjects.DefaultPrefix)
	set(&o.MaxLocks, 1_000_000)
	set(&o.MaxMsgIDs, 1_000_000)
	if o.NoIndex {
		set(&o.MsgIDWindow, defaultIDWindow)
	}
	set(&o.MsgIDWindow, WholeLog)
	set(&o.QueueBytes, 32<<20)
	set(&o.CacheBytes, 64<<20)
	set(&o.MinFreeBytes, 256<<20)
	set(&o.ScrubRate, 2<<20)
	set(&o.ScrubInterval, time.Hour)
	set(&o.RetentionInterval, time.Minute)
	set(&o.Version, "0.0.0-dev")
	set(&o.Replicas, 3)
	set(&o.ElectionTimeout, 500*time.Millisecond)
	set(&o.CatchUpRate, 16<<20)
	set(&o.protocol, protocolVersion)
	set(&o.records, recordsVersion)
	if o.freeSpace == nil {
		o.freeSpace = wal.FreeSpace
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// refusals returns an error for each option that can't be right, whatever the
// data directory and the NATS configuration hold.
func (o Options) refusals() (all []error) {
	refuse := func(err error) {
		if err != nil {
			all = append(all, fmt.Errorf("%w: %w", ErrOptions, err))
		}
	}
	if err := subjects.CheckKind(o.Name); err != nil {
		refuse(fmt.Errorf("node name: %w", err))
	}
	if err := subjects.CheckKind(o.Cluster); err != nil {
		refuse(fmt.Errorf("cluster name: %w", err))
	}
	refuse(subjects.CheckPrefix(o.Prefix))
	refuse(subjects.CheckVersion(o.Version))
	if !(o.TraceRatio >= 0 && o.TraceRatio <= 1) { // NaN included
		refuse(fmt.Errorf("trace ratio is %v: 0 to 1 is allowed", o.TraceRatio))
	}
	if o.NoIndex && o.MsgIDWindow == WholeLog {
		refuse(errors.New("message ids of the whole log can't be looked up without the index: keep it, or give a time (--msg-id-window), such as 2m"))
	}
	for _, err := range o.clusterRefusals() {
		refuse(err)
	}
	for _, r := range ranges {
		if v := r.value(&o); v < r.Least || v > r.Most {
			refuse(fmt.Errorf("%s is %v: %v to %v is allowed", r.what, r.show(v), r.show(r.Least), r.show(r.Most)))
		}
	}
	return all
}

// clusterRefusals returns what is wrong with the options for a cluster.
func (o Options) clusterRefusals() (all []error) {
	refuse := func(format string, args ...any) { all = append(all, fmt.Errorf(format, args...)) }
	if o.ClusterSecret != "" && len(o.ClusterSecret) < minToken {
		refuse("the cluster secret has %d characters: at least %d are needed, such as \"openssl rand -hex 32\" prints", len(o.ClusterSecret), minToken)
	}
	if o.Replicas != 1 && o.Replicas != 3 && o.Replicas != 5 {
		refuse("replicas is %d: 1, 3 or 5 are allowed", o.Replicas)
	}
	if !o.clustered() {
		if len(o.Bootstrap) > 1 || len(o.Bootstrap) == 1 && o.Bootstrap[0] != o.Name {
			refuse("bootstrap names %s, and there is no address to find the others at: give a cluster address (--cluster) and routes (--routes)", strings.Join(o.Bootstrap, ","))
		}
		if o.Standby {
			refuse("a standby follows other nodes: give a cluster address (--cluster) and routes (--routes)")
		}
		return all
	}
	if o.ClusterListen == "" {
		refuse("routes need a cluster address of the node's own (--cluster), such as 127.0.0.1:6222")
	}
	if len(o.Bootstrap) == 0 {
		return all
	}
	if o.Standby {
		refuse("a standby does not found a cluster: start it without --bootstrap")
	}
	for i, name := range o.Bootstrap {
		if err := subjects.CheckKind(name); err != nil {
			refuse("bootstrap: %w", err)
		}
		if slices.Contains(o.Bootstrap[:i], name) {
			refuse("bootstrap names %q twice", name)
		}
	}
	if !slices.Contains(o.Bootstrap, o.Name) {
		refuse("bootstrap names %s, and not this node, %q", strings.Join(o.Bootstrap, ","), o.Name)
	}
	return all
}

// set sets a zero option to its default.
func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

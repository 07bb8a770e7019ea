package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cmd/internal/hangup"
	"github.com/cantuslog/cantus/internal/invariant"
)

type serveCmd struct{ serveFlags }

// serveFlags are the settings of a node.
type serveFlags struct {
	Config string `placeholder:"FILE" env:"CANTUS_CONFIG" help:"YAML file of these flags, such as \"partitions: 8\" or \"routes: [a:6222, b:6222]\". The command line and the environment take precedence."`

	Name        token          `placeholder:"NAME" default:"n1" env:"CANTUS_NAME" help:"The node's name in its cluster."`
	ClusterName token          `placeholder:"NAME" default:"cantus" env:"CANTUS_CLUSTER_NAME" help:"The cluster's name; fixed when the data directory is founded."`
	Data        string         `placeholder:"DIR" default:"./cantus-data" env:"CANTUS_DATA" type:"path" help:"Data directory; created if missing."`
	Partitions  partitionCount `placeholder:"N" env:"CANTUS_PARTITIONS" help:"Number of partitions, 1 to 1024; fixed when the data directory is founded. [default 4 in a new directory, what it has in an old one]"`
	Archive     string         `placeholder:"DIR|URL" env:"CANTUS_ARCHIVE" help:"Backup of this cluster: reads of transactions that were trimmed are answered from it. As --to of \"cantus backup\"."`
	Prefix      prefix         `placeholder:"PREFIX" default:"cantus" env:"CANTUS_PREFIX" help:"What every subject begins with."`

	Listen      listenAddr   `placeholder:"HOST:PORT" default:"127.0.0.1:4222" env:"CANTUS_LISTEN" help:"Where NATS clients connect; port 0 takes a free one."`
	HTTP        optionalAddr `name:"http" placeholder:"HOST:PORT" default:"127.0.0.1:8222" env:"CANTUS_HTTP" help:"Where /healthz, /livez, /readyz and /metrics are; port 0 takes a free one; off for none."`
	Page        string       `enum:"off,status,full" placeholder:"WHAT" default:"status" env:"CANTUS_PAGE" help:"A page on --http for people: status shows nodes, partitions and rates to everybody that reaches the port; full also shows transactions, to users of the NATS server that log in, or to everybody if it asks for nothing, and --http must be on loopback; off for none."`
	Pprof       bool         `env:"CANTUS_PPROF" help:"Serve Go profiles on /debug/pprof too; --http must be on loopback."`
	NATSConfig  string       `name:"nats-config" placeholder:"FILE" env:"CANTUS_NATS_CONFIG" type:"existingfile" help:"nats-server configuration for TLS, accounts, websocket, leaf nodes and the rest; it takes precedence over --listen, and a port in it without a host is open on every interface."`
	Account     string       `placeholder:"NAME" env:"CANTUS_ACCOUNT" help:"NATS account that the subjects live in, where --nats-config has accounts. [default the global account]"`
	Credentials string       `placeholder:"FILE" env:"CANTUS_CREDENTIALS" type:"existingfile" help:"NATS credentials for the node's own connections, where --nats-config has operators."`

	ClusterListen   listenAddr   `group:"cluster" name:"cluster" placeholder:"HOST:PORT" env:"CANTUS_CLUSTER" help:"NATS route port, where the other nodes connect."`
	Routes          addresses    `group:"cluster" placeholder:"HOST:PORT,…" env:"CANTUS_ROUTES" help:"Route ports of other nodes, separated by commas; one is enough, NATS gossips the rest."`
	Raft            listenAddr   `group:"cluster" placeholder:"HOST:PORT" env:"CANTUS_RAFT" help:"Replication port; the other nodes learn it over NATS. [default the host of --cluster and a free port]"`
	RaftAdvertise   dialAddr     `group:"cluster" placeholder:"HOST:PORT" env:"CANTUS_RAFT_ADVERTISE" help:"What the other nodes dial, where it differs from --raft."`
	Bootstrap       nodeNames    `group:"cluster" placeholder:"NAME,…" env:"CANTUS_BOOTSTRAP" help:"The founding nodes, the same on each of them; used only while the data directory is new. Without it a new node waits to be added."`
	ClusterSecret   string       `group:"cluster" hidden:"" placeholder:"TOKEN" env:"CANTUS_CLUSTER_SECRET" help:"The token itself; on a command line others on the machine can read it."`
	SecretFile      string       `group:"cluster" name:"cluster-secret-file" placeholder:"FILE" env:"CANTUS_CLUSTER_SECRET_FILE" type:"existingfile" help:"File with a token of at least 32 characters, the same on every node: they prove with it that they belong together. Needed only until the data directory is founded, which keeps it. CANTUS_CLUSTER_SECRET takes the token itself."`
	Insecure        bool         `group:"cluster" env:"CANTUS_INSECURE" help:"Open the client port and the route port to whoever reaches them: without it they listen on loopback only, unless --nats-config asks clients for something, and nodes share a token, a password or certificates."`
	Replicas        replicaCount `group:"cluster" placeholder:"N" default:"3" env:"CANTUS_REPLICAS" help:"Replicas of a partition, 1, 3 or 5, or as many as there are nodes; fixed when the cluster is founded."`
	Standby         bool         `group:"cluster" env:"CANTUS_STANDBY" help:"Once added, follow every partition without a vote."`
	ElectionTimeout duration     `group:"cluster" placeholder:"TIME" default:"500ms" env:"CANTUS_ELECTION_TIMEOUT" help:"How long a follower hears nothing from its leader before it stands for election."`
	CatchUpRate     byteSize     `group:"cluster" placeholder:"SIZE" default:"16MiB" env:"CANTUS_CATCH_UP_RATE" help:"Bytes a second that are sent, at most, to replicas that are far behind."`

	Locks       count    `group:"limits" placeholder:"N" default:"1000000" env:"CANTUS_LOCKS" help:"Recorded locks that a partition knows exactly; about 100 bytes of memory each, and 260 if a session recorded them."`
	MsgIDWindow idWindow `group:"limits" name:"msg-id-window" placeholder:"TIME" env:"CANTUS_MSG_ID_WINDOW" help:"How long a message id is remembered: log for as long as its transaction is kept, or a time such as 2m. [default log, 2m without an index]"`
	MsgIDs      count    `group:"limits" name:"msg-ids" placeholder:"N" default:"1000000" env:"CANTUS_MSG_IDS" help:"Message ids that a partition has in memory, the newest ones; about 100 bytes each. Older ones are looked up in the log, or forgotten if --msg-id-window is a time."`
	QueueSize   byteSize `group:"limits" placeholder:"SIZE" default:"32MiB" env:"CANTUS_QUEUE_SIZE" help:"Requests that wait in front of a partition; beyond it they are refused as busy."`
	TailSize    byteSize `group:"limits" placeholder:"SIZE" default:"64MiB" env:"CANTUS_TAIL_SIZE" help:"Newest entries kept in memory for reads, for the whole node."`
	Reserve     byteSize `group:"limits" placeholder:"SIZE" default:"256MiB" env:"CANTUS_RESERVE" help:"Free disk space under which appends are refused as storage_full. What the next start needs, 70 MiB and more, is kept free in any case."`

	ScrubRate     scrubRate `group:"limits" placeholder:"SIZE" default:"2MiB" env:"CANTUS_SCRUB_RATE" help:"Bytes a second that are read from the disk to find damage there; off for none."`
	ScrubInterval duration  `group:"limits" placeholder:"TIME" default:"1h" env:"CANTUS_SCRUB_INTERVAL" help:"The least time between two readings of everything."`

	Index string `group:"limits" enum:"on,off" placeholder:"on|off" default:"on" env:"CANTUS_INDEX" help:"Keep an index of the kinds, locks and message ids of transactions, with which reads by these names are fast; some 10 to 30 bytes of disk for each name."`

	RetentionInterval duration `group:"limits" placeholder:"TIME" default:"1m" env:"CANTUS_RETENTION_INTERVAL" help:"The least time between two trims of a partition by its retention policy."`

	LogLevel  string `group:"log" enum:"debug,info,warn,error" placeholder:"LEVEL" default:"info" env:"CANTUS_LOG_LEVEL" help:"Lowest level to log, on standard error."`
	LogFormat string `group:"log" enum:"text,json" placeholder:"FORMAT" default:"text" env:"CANTUS_LOG_FORMAT" help:"Form of the log."`

	Traces     collectorURL `group:"traces" placeholder:"URL" env:"CANTUS_TRACES" help:"OpenTelemetry collector, such as http://127.0.0.1:4318, that gets spans of the appends whose traceparent is sampled, by OTLP over HTTP; the path is /v1/traces if the URL has none."`
	TraceRatio share        `group:"traces" placeholder:"SHARE" default:"0" env:"CANTUS_TRACE_RATIO" help:"Share of the appends without a traceparent for which the node begins a trace, 0 to 1; needs --traces."`

	file configFile // the one that was read
}

func (*serveCmd) Help() string {
	return `Prints one line on standard output once it serves, "cantus: ready" and its addresses; logs on standard error.
SIGINT and SIGTERM stop it cleanly, a second one at once. SIGHUP has it read --config and --nats-config again, with the
certificates: connections go on, and what can't change while it runs is named in the log.

A flag may also be an environment variable, named in brackets, or a key of the --config file; the command line takes precedence
over the environment, and that over the file. Sizes take units: 64MiB, 1GiB, 500MB. "cantus config check" says what is wrong with
all of them, and docs/configuration.md describes each.

Examples:

  cantus serve
  cantus serve --data /var/lib/cantus --listen :4222 --nats-config users.conf --partitions 16
  cantus serve --name n1 --cluster 10.0.0.1:6222 --raft 10.0.0.1:7222 --routes 10.0.0.2:6222,10.0.0.3:6222 \
    --listen 10.0.0.1:4222 --nats-config users.conf --bootstrap n1,n2,n3 --cluster-secret-file token
  CANTUS_LOG_FORMAT=json cantus serve --config cantus.yaml`
}

// BeforeReset reads the environment and the configuration file. Kong calls it
// after it has parsed the command line and before it fills in other flags.
func (c *serveCmd) BeforeReset(ctx *kong.Context) (err error) {
	c.file, err = readSettings(ctx, "")
	return err
}

// Run runs a node until ctx is cancelled, which stops it cleanly, or until the
// node stops by itself, which is a failure.
func (c *serveCmd) Run(ctx context.Context, p *program, parsed *kong.Context) error {
	hangups := hangup.Signals()
	if err := c.refusals(ctx).err(); err != nil {
		return err
	}
	opts, err := c.options()
	if err != nil {
		return err
	}
	var level slog.LevelVar
	setLevel(&level, c.LogLevel)
	opts.Logger = newLogger(p.errOut, &level, c.LogFormat)
	opts.Logger.Info("starting", "version", opts.Version, "node", opts.Name, "data", c.Data)
	for _, text := range c.readable() {
		opts.Logger.Warn(text)
	}
	closeOthers, err := c.openOthers(ctx, &opts)
	if err != nil {
		return err
	}
	defer closeOthers()
	defer invariant.OnViolation(invariant.Log(opts.Logger))()
	source := c.newPage(&opts)
	manager := newServiceManager(opts.Logger)
	manager.tell("STATUS=starting: a new node of a cluster waits for the others")
	node, err := broker.Open(ctx, c.Data, opts)
	if err != nil {
		if ctx.Err() != nil {
			opts.Logger.Info("stopped by a signal before it served")
			return nil //nolint:nilerr // a stop that was asked for is no failure
		}
		return p.ended(c.Data, err)
	}
	defer source.attach(node, opts.Logger)()
	opts.Logger.Info("open: " + node.OpenPorts())
	if _, err := fmt.Fprintln(p.out, readyLine(node.ClientURL(), node.HTTPAddr())); err != nil {
		opts.Logger.Warn("ready line not written", "err", err)
	}
	manager.ready("serving")
	defer manager.watch(node.Probe)()
	running := valuesOf(parsed.Selected().Flags)
	for stopped := false; !stopped; {
		select {
		case <-ctx.Done():
			opts.Logger.Info("stopping because of a signal")
			manager.stopping()
			err := node.Close()
			opts.Logger.Info("stopped")
			return err
		case <-hangups:
			manager.reloading()
			manager.ready(p.reload(node, running, &level, opts.Logger))
		case <-node.Done():
			stopped = true
		}
	}
	manager.stopping()
	err = node.Err()
	if closed := node.Close(); err == nil {
		return closed
	}
	return p.ended(c.Data, err)
}

// openOthers opens what the node uses beside its directory: the archive, and
// the collector of its spans.
func (c *serveFlags) openOthers(ctx context.Context, opts *broker.Options) (end func(), err error) {
	closeArchive := func() {}
	if c.Archive != "" {
		a, err := openArchive(ctx, c.Archive, opts.Logger)
		if err != nil {
			return nil, err
		}
		opts.Archive, closeArchive = a, func() { _ = a.Close() } // it was only read
	}
	endTraces, err := c.sendTraces(ctx, opts)
	if err != nil {
		closeArchive()
		return nil, err
	}
	return func() {
		endTraces()
		closeArchive()
	}, nil
}

// ended returns the program's error after a node has stopped by itself or has
// failed to start. A node that was removed has not failed: an operator asked
// for that.
func (p *program) ended(dir string, err error) error {
	switch {
	case errors.Is(err, broker.ErrInUse):
		return inUse(dir)
	case errors.Is(err, broker.ErrRemoved):
		p.note("this node was removed from its cluster and stops; its data directory is not needed any more")
		return nil
	case errors.Is(err, broker.ErrDamaged):
		return fmt.Errorf("%w: remove a node of a cluster and add it again with an empty directory; for a standalone node, restore a copy of the directory (\"cantus verify\" says whether one is whole), or save what is left: %s", err, leftIn(dir))
	}
	return err
}

// inUse is the error for a data directory that another process has open.
func inUse(dir string) error { return fmt.Errorf("%s is in use by a running node: stop it first", dir) }

// secret returns the cluster's token, "" if none is given.
func (c *serveFlags) secret() (string, error) {
	if c.SecretFile == "" {
		return c.ClusterSecret, nil
	}
	if c.ClusterSecret != "" {
		return "", errors.New("the cluster's token is given twice: by --cluster-secret-file and by CANTUS_CLUSTER_SECRET")
	}
	b, err := readBounded(c.SecretFile)
	if err != nil {
		return "", fmt.Errorf("--cluster-secret-file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("--cluster-secret-file %s is empty", c.SecretFile)
	}
	return token, nil
}

// options returns the node's options without its logger.
func (c *serveFlags) options() (broker.Options, error) {
	secret, err := c.secret()
	return broker.Options{
		Name:            string(c.Name),
		Cluster:         string(c.ClusterName),
		Partitions:      int(c.Partitions),
		Prefix:          string(c.Prefix),
		ClientListen:    string(c.Listen),
		HTTPListen:      string(c.HTTP),
		Profiles:        c.Pprof,
		NATSConfig:      c.NATSConfig,
		Account:         c.Account,
		Credentials:     c.Credentials,
		ClusterListen:   string(c.ClusterListen),
		Routes:          c.Routes,
		RaftListen:      string(c.Raft),
		RaftAdvertise:   string(c.RaftAdvertise),
		Bootstrap:       c.Bootstrap,
		ClusterSecret:   secret,
		Insecure:        c.Insecure,
		Replicas:        int(c.Replicas),
		Standby:         c.Standby,
		ElectionTimeout: time.Duration(c.ElectionTimeout),
		CatchUpRate:     int64(c.CatchUpRate),
		MaxLocks:        int(c.Locks),
		MaxMsgIDs:       int(c.MsgIDs),
		MsgIDWindow:     time.Duration(c.MsgIDWindow),
		QueueBytes:      int(c.QueueSize),
		CacheBytes:      int(c.TailSize),
		MinFreeBytes:    int64(c.Reserve),
		ScrubRate:       int64(c.ScrubRate),
		ScrubInterval:   time.Duration(c.ScrubInterval),
		NoIndex:         c.Index == "off",

		RetentionInterval: time.Duration(c.RetentionInterval),
		TraceRatio:        float64(c.TraceRatio),
		Version:           buildVersion(),
	}, err
}

// readyLine is the line that serve prints once it serves; programs wait for it.
func readyLine(nats, http string) string {
	var b strings.Builder
	b.WriteString("cantus: ready")
	if nats != "" {
		b.WriteString(" nats=" + nats)
	}
	if http != "" {
		b.WriteString(" http=http://" + http)
	}
	return b.String()
}

func newLogger(w io.Writer, level slog.Leveler, format string) *slog.Logger {
	opts := slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == "not_logged_before" && a.Value.String() == "0" {
			return slog.Attr{} // nothing is left out: not worth a word
		}
		return a
	}}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, &opts))
	}
	return slog.New(slog.NewTextHandler(w, &opts))
}

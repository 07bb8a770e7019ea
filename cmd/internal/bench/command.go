package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// Command is the flags of `cantus bench`; kong fills it.
type Command struct {
	Workload string `arg:"" optional:"" default:"append" enum:"append,read,fill,startup" help:"append: single appends; read: catch-up reads; fill: batch messages; startup: time until a node is ready again."`

	Server     string `placeholder:"URL" help:"A running node to measure. [default: bench starts one of its own]"`
	Prefix     string `placeholder:"PREFIX" default:"cantus" help:"What the node's subjects begin with."`
	Data       string `placeholder:"DIR" type:"path" help:"Data directory of the node that bench starts; it is kept. [default: a temporary one]"`
	Dir        string `placeholder:"DIR" type:"path" help:"Where temporary data directories are made. [default: the system's]"`
	Partitions int    `placeholder:"N" default:"1" help:"Partitions to use."`

	Vs       []string `placeholder:"PEER" enum:"jetstream" help:"Measure this too, in turns with Cantus: jetstream, of the nats-server that is linked in, one replica, on file storage."`
	VsSync   []string `placeholder:"SYNC" enum:"default,always" default:"default,always" help:"The peer's sync_interval: default, which syncs every two minutes, and always, which syncs before it answers. Reads are measured with default only."`
	VsClient string   `placeholder:"CLIENT" enum:"auto,plain,go,pull,push" default:"auto" help:"How the peer is talked to: plain requests or go, its Go client; for reads its pull or push ordered consumer; auto tries what there is and takes the quicker."`

	Conns    int `placeholder:"N" help:"Connections. [default 8 for append, 1 for read, 2 for fill]"`
	InFlight int `placeholder:"N" help:"Requests in flight on each connection. [default 256 for append, 2 for read, 4 for fill]"`
	Size     int `placeholder:"BYTES" default:"256" help:"Payload of a transaction."`
	Locks    int `placeholder:"N" default:"1" help:"Write locks of a transaction; 0 appends without condition."`
	Keys     int `placeholder:"N" default:"1000000" help:"Keys that locks are taken from, at random."`

	Duration time.Duration `placeholder:"TIME" default:"10s" help:"How long a round is measured."`
	Count    int64         `placeholder:"N" help:"End a round after so many transactions instead, without warm-up."`
	WarmUp   time.Duration `placeholder:"TIME" default:"2s" help:"How long a round runs before it is measured."`
	Rounds   int           `placeholder:"N" default:"3" help:"Rounds; contestants take turns."`

	Fill        int64 `placeholder:"N" default:"-1" help:"Transactions to append in batches before anything is measured. [default 0 for append, 1000000 for others]"`
	Batch       int   `placeholder:"N" default:"1000" help:"Transactions in a batch message."`
	UniqueLocks bool  `help:"Give each filled transaction an append lock of its own."`
	ReadMax     int   `placeholder:"N" default:"16000" help:"Transactions that a read asks for; the more, the quicker a catch-up."`
	ReadBytes   int   `placeholder:"BYTES" default:"8388608" help:"Bytes that a read asks for."`

	JSON bool `name:"json" help:"Print the report as JSON."`

	// What bench starts itself with, for a peer or a node with a profile.
	Profile        string `hidden:"" placeholder:"FILE" type:"path" help:"Write a CPU profile of the node."`
	ServeJetstream string `hidden:"" placeholder:"DIR" type:"path"`
	ServeNode      string `hidden:"" placeholder:"DIR" type:"path"`
	SyncAlways     bool   `hidden:""`
}

// Run measures what the flags say and prints the report on out, and a line
// for each second on errOut. It returns ErrFlags before it has done anything
// if they make no sense. Cancelling ctx ends it early, without a report;
// servers that it started have ended when it returns.
func (c *Command) Run(ctx context.Context, out, errOut io.Writer) error {
	switch {
	case c.ServeJetstream != "":
		return c.serveJetstream(ctx, out)
	case c.ServeNode != "":
		return c.serveNode(ctx, out)
	}
	w, err := c.workload()
	if err != nil {
		return err
	}
	if err := subjects.CheckPrefix(c.Prefix); err != nil {
		return fmt.Errorf("%w: %w", ErrFlags, err)
	}
	// The load shares the processors with what it measures: collect garbage
	// less often, there is little of it that stays.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	s := &sitting{Command: c, workload: w, names: subjects.Names{Prefix: c.Prefix}, out: out, errOut: errOut}
	defer s.close()
	return s.run(ctx)
}

// serveJetstream is the peer's process.
func (c *Command) serveJetstream(ctx context.Context, out io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	peer, err := broker.RunNATS(ctx, broker.NATSOptions{
		JetStream: true, StoreDir: c.ServeJetstream, SyncAlways: c.SyncAlways,
	})
	if err != nil {
		return err
	}
	defer peer.Close()
	fmt.Fprintln(out, "jetstream: ready", peer.ClientURL())
	<-ctx.Done()
	return nil
}

// serveNode is a node's process where a profile of it is wanted; otherwise
// `cantus serve` is.
func (c *Command) serveNode(ctx context.Context, out io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	node, err := broker.Open(ctx, c.ServeNode, broker.Options{
		Partitions: c.Partitions, Prefix: c.Prefix, Listen: "127.0.0.1:0",
	})
	if err != nil {
		return err
	}
	file, err := os.Create(c.Profile)
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	fmt.Fprintln(out, "cantus: ready", node.ClientURL())
	select {
	case <-ctx.Done():
	case <-node.Done():
	}
	pprof.StopCPUProfile()
	if err := file.Close(); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return node.Close()
}

// startNode starts a Cantus node of its own process on a data directory.
func (s *sitting) startNode(ctx context.Context, dir string) (*server, error) {
	args := []string{
		"serve", "--data", dir, "--listen", "127.0.0.1:0", "--http", "off", "--prefix", s.Prefix,
		"--partitions", fmt.Sprint(s.workload.Partitions), "--log-level", "warn",
	}
	if s.Profile != "" {
		args = []string{
			"bench", "--serve-node", dir, "--profile", s.Profile, "--prefix", s.Prefix,
			"--partitions", fmt.Sprint(s.workload.Partitions),
		}
	}
	srv, err := startServer(ctx, "cantus", args...)
	if err == nil {
		s.servers = append(s.servers, srv)
	}
	return srv, err
}

func (s *sitting) startJetstream(ctx context.Context, sync, dir string) (*server, error) {
	args := []string{"bench", "--serve-jetstream", dir}
	if sync == "always" {
		args = append(args, "--sync-always")
	}
	srv, err := startServer(ctx, "jetstream "+sync, args...)
	if err == nil {
		s.servers = append(s.servers, srv)
	}
	return srv, err
}

// tempDir makes a directory that is removed at the end.
func (s *sitting) tempDir(name string) (string, error) {
	if s.temp == "" {
		dir, err := os.MkdirTemp(s.Dir, "cantus-bench-")
		if err != nil {
			return "", fmt.Errorf("temporary directory: %w", err)
		}
		s.temp = dir
	}
	dir := filepath.Join(s.temp, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("temporary directory: %w", err)
	}
	return dir, nil
}

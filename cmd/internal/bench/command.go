package bench

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Command is the flags of `cantus bench`; kong fills it.
type Command struct {
	Workload string `arg:"" optional:"" default:"append" enum:"append,batch,read,tail,get,mixed,failover,fill,startup" help:"append: single appends; batch: batch messages; read: catch-up reads; tail: from an append to its readers; get: random lookups; mixed: appends and lookups; failover: the pause when a leader dies; fill: batch messages until the partition has as many as asked for; startup: time until a node is ready again."`

	Nodes      int      `placeholder:"N" default:"1" help:"Nodes that bench starts, 1, 3 or 5, each a process of its own on loopback; as many servers of a peer, with 3 replicas where there are 3 or 5."`
	Server     []string `placeholder:"URL" help:"A running cluster to measure; several nodes separated by commas. [default: bench starts its own]"`
	Prefix     string   `placeholder:"PREFIX" default:"cantus" help:"What the nodes' subjects begin with."`
	Data       string   `placeholder:"DIR" type:"path" help:"Data directory of the node that bench starts; it is kept. Several nodes have n1, n2 … in it. [default: a temporary one]"`
	Dir        string   `placeholder:"DIR" type:"path" help:"Where temporary data directories are made. [default: the system's]"`
	Partitions int      `placeholder:"N" default:"1" help:"Partitions to use; a peer has as many streams."`
	Client     string   `placeholder:"CLIENT" enum:"plain,go" default:"plain" help:"The client for Cantus: plain requests, or go, the Go client; for append, read and tail."`

	Vs       []string `placeholder:"PEER" enum:"jetstream" help:"Measure this too, in turns with Cantus: jetstream, of the nats-server that is linked in, on file storage."`
	VsSync   []string `placeholder:"SYNC" enum:"default,always" default:"default,always" help:"The peer's sync_interval: default, which syncs every two minutes, and always, which syncs before it answers. Reads are measured with default only."`
	VsClient string   `placeholder:"CLIENT" enum:"auto,plain,go,pull,push" default:"auto" help:"The client for the peer: plain requests or go, its Go client; for reads its pull or push ordered consumer; auto measures each and uses the fastest."`

	Conns    int     `placeholder:"N" help:"Connections, spread over the nodes; the first goes to the leader's. [default 8; 1 for read and tail, 2 for batch and fill]"`
	InFlight int     `placeholder:"N" help:"Requests in flight on each connection; with --rate no more than this. [default 256; 2 for read, 4 for batch and fill, 1 for tail; 16384 with --rate]"`
	Rate     float64 `placeholder:"N" help:"Requests a second over all connections, evenly spaced; latency counts from when a request was due. [default: as fast as answers come]"`
	Size     int     `placeholder:"BYTES" default:"256" help:"Payload of a transaction."`
	Locks    int     `placeholder:"N" default:"1" help:"Write locks of a transaction; 0 appends without condition."`
	Keys     int     `placeholder:"N" default:"1000000" help:"Keys that locks are taken from."`
	Skew     float64 `placeholder:"S" help:"How uneven keys are taken: key number i with a weight of 1/i^S; 0 takes all alike, 0.99 is the YCSB benchmark's."`
	Gets     int     `placeholder:"PERCENT" default:"50" help:"Share of lookups in mixed."`
	Readers  int     `placeholder:"N" default:"1" help:"Readers of each partition in tail."`

	Duration time.Duration `placeholder:"TIME" default:"10s" help:"How long a round is measured."`
	Count    int64         `placeholder:"N" help:"End a round after this many transactions instead, without warm-up."`
	WarmUp   time.Duration `placeholder:"TIME" default:"2s" help:"How long a round runs before it is measured."`
	Rounds   int           `placeholder:"N" default:"3" help:"Rounds; systems take turns."`

	SweepInFlight []int     `placeholder:"N,…" help:"Measure with each of these in flight on a connection."`
	SweepRate     []float64 `placeholder:"N,…" help:"Measure at each of these rates."`
	SVG           string    `name:"svg" placeholder:"FILE" type:"path" help:"Draw throughput against latency over a sweep. [sweep if none is given: 1,4,16,64,256 in flight]"`

	Kills  int           `placeholder:"N" default:"5" help:"How often failover ends the leader."`
	Signal string        `placeholder:"SIGNAL" enum:"KILL,TERM" default:"KILL" help:"How failover ends the leader: KILL as a crash would, TERM as an operator would."`
	Pause  time.Duration `placeholder:"TIME" default:"2s" help:"How long failover waits between a node's return and the next kill."`

	Keep        int64 `placeholder:"BYTES" help:"Trim Cantus's partitions to about this many bytes each before every round. [default: nothing is trimmed]"`
	Fill        int64 `placeholder:"N" default:"-1" help:"Transactions to append in batches before anything is measured. [default 1000000 for read, get, fill and startup, 100000 for mixed, 0 for others]"`
	Batch       int   `placeholder:"N" default:"1000" help:"Transactions in a batch message."`
	UniqueLocks bool  `help:"Give each filled transaction an append lock of its own."`
	ReadMax     int   `placeholder:"N" default:"16000" help:"Transactions that a read asks for; the more, the quicker a catch-up."`
	ReadBytes   int   `placeholder:"BYTES" default:"8388608" help:"Bytes that a read asks for."`

	JSON bool `name:"json" help:"Print the report as JSON."`

	Profile string `hidden:"" placeholder:"FILE" type:"path" help:"Write a CPU profile of the node."`
	// Arguments of the processes that bench starts: see children.go.
	ServeJetstream string `hidden:"" placeholder:"DIR" type:"path"`
	ServeNode      string `hidden:"" placeholder:"DIR" type:"path"`
	ServeConfig    string `hidden:"" placeholder:"FILE" type:"path"`
	ServeListen    string `hidden:"" placeholder:"HOST:PORT" default:"127.0.0.1:0"`
	SyncAlways     bool   `hidden:""`
}

// Run measures what the flags say, and prints the report to out and a line for
// each second to errOut. If the flags are invalid it does nothing and returns
// ErrFlags. If ctx is cancelled it returns early, without a report. The servers
// that it started have ended when it returns.
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
	// The load shares the processors with the servers: collect garbage less
	// often. Little memory stays in use.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	s := &benchRun{Command: c, workload: w, names: subjects.Names{Prefix: c.Prefix}, out: out, errOut: errOut}
	defer s.close()
	return s.run(ctx)
}

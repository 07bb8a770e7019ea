package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/subjects"
)

type mirrorCmd struct {
	Run     mirrorRunCmd     `cmd:"" default:"withargs" help:"Follow another cluster: what \"cantus mirror --from\" does."`
	Promote mirrorPromoteCmd `cmd:"" help:"Make a mirror's partitions ordinary ones, which take appends."`
}

func (*mirrorCmd) Help() string {
	return `"cantus mirror --from" follows the other cluster: "cantus mirror run --help" lists its flags. docs/mirror.md explains the rest.

Examples:

  cantus mirror --from nats://old:4222 --to nats://new:4222
  cantus mirror promote --server nats://new:4222`
}

type mirrorRunCmd struct {
	mirrorSource

	To         string       `placeholder:"URL,…" help:"NATS servers of this cluster: the same as --server."`
	Once       bool         `help:"End when the mirror is level with the source. [default: go on until interrupted]"`
	Cursor     token        `placeholder:"NAME" env:"CANTUS_MIRROR_CURSOR" help:"Move this cursor of each partition at the source to what the mirror has, for retention policies there."`
	Partitions []partition  `name:"partition" placeholder:"P" help:"Only this partition; repeatable. [default: all]"`
	HTTP       optionalAddr `name:"http" placeholder:"HOST:PORT" default:"off" env:"CANTUS_MIRROR_HTTP" help:"Where /healthz and /metrics are; port 0 takes a free one."`
	JSON       bool         `name:"json" help:"Print a JSON object for each partition at the end."`
	Quiet      bool         `short:"q" help:"No progress on standard error."`

	connection
}

// mirrorSource holds the flags by which a mirror finds its source.
type mirrorSource struct {
	From string `group:"source" required:"" placeholder:"URL,…" env:"CANTUS_MIRROR_FROM" help:"NATS servers of the source, separated by commas. The user there needs the role backup."`

	natsFlags `prefix:"from-" group:"source" envprefix:"CANTUS_MIRROR_FROM_"`
}

// connection returns the flags as those of a connection.
func (s *mirrorSource) connection(timeout duration) *connection {
	return &connection{Server: s.From, Timeout: timeout, natsFlags: s.natsFlags}
}

func (*mirrorRunCmd) Help() string {
	return `Follows the partitions of another cluster, the source, into this one, which begins empty and has as many partitions and any
number of nodes: the same transaction ids, times, message ids, cursors and digests. It goes on until interrupted, and may be
killed at any time, like the nodes on both sides: the next one goes on from what the mirror has.

A mirror is read and followed like its source. It takes no appends and no cursors but the source's until it is promoted:
"cantus mirror promote".

If the source is trimmed by a policy, it can keep what the mirror has not got yet: name a cursor there ("cantus retention set
--cursor NAME"), and here with --cursor. It is this mirror's; give each mirror its own.

Examples:

  cantus mirror --from nats://old:4222 --to nats://new:4222
  cantus mirror --from nats://old:4222 --http 127.0.0.1:8224
  cantus mirror --from nats://old:4222 --once
  cantus mirror promote

Exit status: 0 interrupted, or level with --once; 1 if the source's log is not the one that is mirrored, 3 if a partition here is
not empty, or was promoted; 4 if nothing is reached.`
}

// mirrorResult is the output of --json for a partition.
type mirrorResult struct {
	Partition    int     `json:"partition"`
	LastTxid     uint64  `json:"last_txid"`
	Digest       string  `json:"digest"`
	Behind       uint64  `json:"behind"`       // transactions, when the source was last heard
	Transactions uint64  `json:"transactions"` // by this run
	Bytes        int64   `json:"bytes"`
	Seconds      float64 `json:"seconds"`

	level bool // it has all that the source has, with the same digest
}

// Run mirrors until ctx ends, or until the mirror is level.
func (c *mirrorRunCmd) Run(ctx context.Context, p *program) error {
	if c.To != "" {
		c.Server = c.To
	}
	source, err := c.mirrorSource.connection(c.Timeout).open(ctx, "mirror source")
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	defer source.close()
	target, err := c.open(ctx, "mirror")
	if err != nil {
		return err
	}
	defer target.close()
	cluster, self, partitions, err := c.check(ctx, source, target)
	if err != nil {
		return err
	}
	if err := compareMirrored(ctx, p, source, target, partitions); err != nil {
		return err
	}
	if err := errors.Join(source.watchLeaders(), target.watchLeaders()); err != nil {
		return err
	}
	metrics := newMirrorMetrics(partitions)
	stop, err := serveMetrics(metrics.registry, string(c.HTTP), p)
	if err != nil {
		return usagef("--http: %w", err)
	}
	defer stop()
	return c.mirror(ctx, p, func(n int) *logMirror {
		m := &logMirror{
			source: newBackupSource(source), cluster: cluster, self: self, cursor: string(c.Cursor), once: c.Once, note: p.note, quiet: c.Quiet, metrics: metrics,
		}
		m.source.cursor = m.cursor
		m.loader = loader{conn: target, partition: n, moved: m.arrived}
		return m
	}, partitions)
}

// mirror mirrors partitions until ctx ends, one fails, or all are level.
func (c *mirrorRunCmd) mirror(ctx context.Context, p *program, open func(partition int) *logMirror, partitions []int) error {
	interrupted := ctx
	group, ctx := errgroup.WithContext(ctx)
	var printing sync.Mutex
	for _, n := range partitions {
		group.Go(func() error {
			began := time.Now()
			m := open(n)
			err := m.run(ctx)
			if interrupted.Err() != nil {
				err = nil
			}
			printing.Lock()
			defer printing.Unlock()
			if m.begun && err == nil {
				if err := c.print(p, m.result(time.Since(began))); err != nil {
					return err
				}
			}
			return err
		})
	}
	return group.Wait()
}

// compareMirrored compares the namespaces of the two clusters. A partition
// without a leader does not keep the mirror from its work.
func compareMirrored(ctx context.Context, p *program, source, target *natsConn, partitions []int) error {
	had, err := source.belongings(ctx, partitions)
	if err != nil {
		p.note("--from: whether both have the same namespaces is not known: %v", err)
		return nil
	}
	has, err := target.belongings(ctx, partitions)
	if err != nil {
		p.note("whether both have the same namespaces is not known: %v", err)
		return nil
	}
	return compareNamespaces(p, "the source", had, partitions, has)
}

// check compares the two clusters, and returns their ids and the partitions to
// mirror.
func (c *mirrorRunCmd) check(ctx context.Context, source, target *natsConn) (cluster, self string, partitions []int, err error) {
	from, err := newBackupSource(source).info(ctx)
	if err != nil {
		return "", "", nil, fmt.Errorf("--from: %w", err)
	}
	to, err := newBackupSource(target).info(ctx)
	switch {
	case err != nil:
		return "", "", nil, err
	case from.Namespace != "":
		return "", "", nil, fmt.Errorf("--from: %w", source.checkWhole(from))
	case to.Namespace != "":
		return "", "", nil, target.checkWhole(to)
	case from.ID == "" || to.ID == "":
		return "", "", nil, failf(exitFailed, "the nodes are of a version that has no mirrors: upgrade them first")
	case from.ID == to.ID:
		return "", "", nil, usagef("--from and --to lead to the same cluster, %s: a mirror is another one", from.ID)
	case from.Partitions != to.Partitions:
		return "", "", nil, usagef("this cluster has %s, and the source has %d: keys would lead elsewhere; found one with --partitions %d",
			plural(to.Partitions, "partition"), from.Partitions, from.Partitions)
	}
	for _, n := range c.Partitions {
		if int(n) >= from.Partitions {
			return "", "", nil, usagef("partition %d does not exist: the clusters have %d (0 to %d)", n, from.Partitions, from.Partitions-1)
		}
		partitions = append(partitions, int(n))
	}
	if len(c.Partitions) == 0 {
		for n := range from.Partitions {
			partitions = append(partitions, n)
		}
	}
	slices.Sort(partitions)
	partitions = slices.Compact(partitions)
	err = checkUnused(ctx, target, partitions, func(info subjects.PartitionInfo) bool {
		return info.MirrorOf != "" || hasPast(info, from.ID) // what is wrong with these is said when they are mirrored
	})
	if err != nil {
		return "", "", nil, fmt.Errorf("--to: %w", err)
	}
	return from.ID, to.ID, partitions, nil
}

func (c *mirrorRunCmd) print(p *program, r mirrorResult) error {
	if c.JSON {
		return json.NewEncoder(p.out).Encode(r)
	}
	state := "level with the source"
	switch {
	case r.Behind > 0:
		state = plural(int(r.Behind), "transaction") + " behind the source"
	case !r.level:
		state = "its end not compared with the source yet"
	}
	_, err := fmt.Fprintf(p.out, "partition %d: mirrored up to txid %d, %s, digest %.12s; %s in %v\n", r.Partition, r.LastTxid, state, r.Digest,
		plural(int(r.Transactions), "transaction"), time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond))
	return err
}

type mirrorPromoteCmd struct {
	Partitions []partition `name:"partition" placeholder:"P" help:"Only this partition; repeatable. [default: all]"`
	JSON       bool        `name:"json" help:"Print a JSON object for each partition."`

	connection
}

func (*mirrorPromoteCmd) Help() string {
	return `Ends the mirror: its partitions take appends and cursors from now on, and the source's id is in their history. A consumer that
has applied no more than the mirror goes on here; one that has applied more at the source is told so, and stops. The source
is not asked, and need not be there. To lose nothing, stop the writers there and run "cantus mirror --once" first.

Partitions that were promoted before, or are no mirrors, are left as they are.

Example:

  cantus mirror promote --server nats://new:4222

Exit status: 3 if a partition is not a mirror, 4 if one has no leader: start it again then.`
}

// promoteResult is the output of --json for a partition.
type promoteResult struct {
	Partition int    `json:"partition"`
	LastTxid  uint64 `json:"last_txid"`
	Digest    string `json:"digest,omitempty"` // there; missing if it was promoted before
	Source    string `json:"source"`
}

func (d promoteResult) String() string {
	if d.Digest == "" {
		return fmt.Sprintf("promoted before: it has cluster %s up to txid %d", d.Source, d.LastTxid)
	}
	return fmt.Sprintf("promoted, and takes appends: it has cluster %s up to txid %d, digest %.12s", d.Source, d.LastTxid, d.Digest)
}

// Run promotes a mirror.
func (c *mirrorPromoteCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "mirror promote")
	if err != nil {
		return err
	}
	defer l.close()
	ask := newBackupSource(l)
	info, err := ask.info(ctx)
	if err == nil {
		err = l.checkWhole(info)
	}
	if err != nil {
		return err
	}
	partitions := c.Partitions
	if len(partitions) == 0 {
		for n := range info.Partitions {
			partitions = append(partitions, partition(n))
		}
	}
	var none []error // of partitions that are no mirrors; the others are promoted nevertheless
	for _, n := range partitions {
		if int(n) >= info.Partitions {
			return usagef("partition %d does not exist: this cluster has %d (0 to %d)", n, info.Partitions, info.Partitions-1)
		}
		var done promoteResult
		// While a mirror runs, the partition may move on between the two requests.
		err := ask.again(ctx, func() (_ bool, err error) {
			done, err = promote(ctx, l, int(n))
			return false, err
		})
		if errors.Is(err, errNoMirror) {
			none = append(none, fmt.Errorf("partition %d is not promoted: %w", n, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("partition %d is not promoted: %w", n, l.explain(err))
		}
		if c.JSON {
			err = json.NewEncoder(p.out).Encode(done)
		} else {
			_, err = fmt.Fprintf(p.out, "partition %d: %v\n", n, done)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(none...)
}

var errNoMirror = failf(exitConflict, "it is not a mirror")

// promote ends the mirror of a partition, unless that has been done.
func promote(ctx context.Context, l *natsConn, n int) (promoteResult, error) {
	var info subjects.PartitionInfo
	if err := l.ask(ctx, l.names.PartitionInfo(n), nil, &info); err != nil {
		return promoteResult{}, err
	}
	past := len(info.History)
	switch {
	case info.Promoted && past > 0:
		last := info.History[past-1]
		return promoteResult{n, last.LastTxid, "", last.Cluster}, nil
	case info.MirrorOf == "":
		return promoteResult{}, errNoMirror
	}
	l2 := loader{conn: l, partition: n, moved: func() {}}
	err := l2.step(ctx, subjects.RestoreRequest{End: &subjects.RestoreEnd{
		Txid: info.HighWaterMark, Digest: info.Digest,
		History: append(info.History, subjects.PastCluster{Cluster: info.MirrorOf, LastTxid: info.HighWaterMark}),
	}})
	if exitStatus(err) == exitConflict {
		err = failf(exitUnavailable, "%w; the source is still mirrored", err)
	}
	return promoteResult{n, info.HighWaterMark, info.Digest, info.MirrorOf}, err
}

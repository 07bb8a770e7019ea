package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

func (s *benchRun) systems(ctx context.Context) ([]*system, error) {
	keys := newPool("k", s.workload.Keys, s.workload.Skew)
	own, err := s.cantus(ctx, keys)
	if err != nil {
		return nil, err
	}
	all := []*system{own}
	if !slices.Contains(s.Vs, "jetstream") {
		return all, nil
	}
	syncs := s.VsSync
	if k := s.workload.Kind; k == readLoad || k == getLoad {
		syncs = []string{"default"} // how data was synced does not matter to reads
	}
	for _, sync := range syncs {
		c, err := s.startJetstream(ctx, sync)
		if err != nil {
			return nil, err
		}
		peers, err := s.jetstream(ctx, c, sync, keys)
		if err != nil {
			return nil, err
		}
		all = append(all, peers...)
	}
	return all, nil
}

// cantusCluster returns the cluster to measure: that of --server, or one that
// it starts.
func (s *benchRun) cantusCluster(ctx context.Context) (*cluster, error) {
	if len(s.Server) > 0 {
		c := &cluster{name: "cantus"}
		for _, url := range s.Server {
			c.nodes = append(c.nodes, &server{name: "cantus", url: url})
		}
		return c, nil
	}
	dir := s.Data
	if dir == "" {
		var err error
		if dir, err = s.tempDir("cantus"); err != nil {
			return nil, err
		}
	}
	args, err := s.nodeArgs(dir)
	if err != nil {
		return nil, err
	}
	c, err := s.startCluster(ctx, "cantus", dir, args)
	if err != nil {
		return nil, err
	}
	c.leader = func(ctx context.Context) (string, error) {
		infos, err := partitionInfos(ctx, c.url(0), s.names, 1)
		if err != nil {
			return "", err
		}
		return infos[0].Leader, nil
	}
	return c, nil
}

// cantus returns Cantus as a system.
func (s *benchRun) cantus(ctx context.Context, keys pool) (*system, error) {
	cl, err := s.cantusCluster(ctx)
	if err != nil {
		return nil, err
	}
	w := s.workload
	c := &system{cluster: cl, settings: "synced on a majority of replicas before an answer; default settings"}
	if w.Kind == fillLoad {
		// The fill itself is measured.
		w.limits = w.fillLimits()
		c.clients = []driver{s.fillClient()}
		return c, nil
	}
	if w.Fill > 0 {
		if err := s.fill(ctx, cl); err != nil {
			return nil, err
		}
	}
	if w.Kind == readLoad {
		return c, s.cantusReadClient(ctx, c)
	}
	var marks []uint64
	c.prepare = func(ctx context.Context) (err error) {
		if w.Keep > 0 {
			if err := trimTo(ctx, cl.url(0), s.names, w); err != nil {
				return err
			}
		}
		marks, err = highWaterMarks(ctx, cl.url(0), s.names, w.Partitions)
		if w.Kind != getLoad && w.Kind != mixedLoad {
			return err
		}
		if p := slices.Index(marks, 0); err == nil && p >= 0 {
			return nothingToRead(p)
		}
		return err
	}
	if s.Client == "go" {
		c.clients = []driver{{name: "the Go client", worker: func(at workerConfig) (worker, error) {
			return newGoAppend(at, w, s.Prefix, keys, marks)
		}}}
	} else {
		c.clients = []driver{{name: "plain requests", worker: func(at workerConfig) (worker, error) {
			return newPlainWorker(at, s.cantusTraffic(keys, marks, at.conn))
		}}}
	}
	if w.Kind == tailLoad {
		cl := &c.clients[0]
		cl.readers = w.Readers
		cl.reader = func(at workerConfig) (reader, error) { return newFeedReader(at, s.names, w.Partitions) }
		if cl.name += ", readers on the feed"; s.Client == "go" {
			cl.name = "the Go client, readers with Follow"
			cl.reader = func(at workerConfig) (reader, error) { return newFollowReader(at, s.Prefix, marks) }
		}
	}
	return c, nil
}

func nothingToRead(partition int) error {
	return fmt.Errorf("%w: partition %d has nothing to read: --fill gives it something", ErrFlags, partition)
}

func (s *benchRun) cantusTraffic(keys pool, marks []uint64, conn int) traffic {
	w := s.workload
	switch w.Kind {
	case batchLoad:
		return newCantusBatch(w, s.names, keys, marks, conn)
	case getLoad:
		return newCantusGet(w, s.names, marks, conn)
	case mixedLoad:
		return &mixed{
			appends: newCantusAppend(w, s.names, keys, marks, conn), lookups: newCantusGet(w, s.names, marks, conn),
			percent: w.Gets, rng: newRand(conn),
		}
	}
	return newCantusAppend(w, s.names, keys, marks, conn)
}

func (s *benchRun) cantusReadClient(ctx context.Context, c *system) error {
	w := s.workload
	infos, err := partitionInfos(ctx, c.url(0), s.names, w.Partitions)
	if err != nil {
		return err
	}
	for p := range infos {
		if infos[p].HighWaterMark == 0 {
			return nothingToRead(p)
		}
	}
	if s.Client == "go" {
		c.clients = []driver{{name: "the Go client's Follow", worker: func(at workerConfig) (worker, error) {
			return newFollowCatchUp(at, s.Prefix, infos[at.conn%w.Partitions])
		}}}
		return nil
	}
	c.clients = []driver{{name: "plain requests", worker: func(at workerConfig) (worker, error) {
		p := at.conn % w.Partitions
		first := max(infos[p].FirstTxid, 1)
		return newPlainWorker(at, newCantusRead(w, s.names, p, first, infos[p].HighWaterMark))
	}}}
	return nil
}

func (s *benchRun) fillClient() driver {
	s.filled++
	run := strconv.FormatInt(time.Now().UnixNano(), 36) + strconv.Itoa(s.filled)
	return driver{name: "batch messages", worker: func(at workerConfig) (worker, error) {
		return newPlainWorker(at, newCantusFill(s.workload, s.names, at.conn, run))
	}}
}

// fill appends the transactions that must be there before anything is measured.
func (s *benchRun) fill(ctx context.Context, cl *cluster) error {
	// The number is rounded down to whole batches.
	t := task{"fill", 2, loadLevel{InFlight: max(4, s.workload.Partitions)}, 0, s.workload.fillLimits()}
	sample, err := measure(ctx, t, &system{cluster: cl}, s.fillClient(), s.errOut)
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	s.note("filled with %d transactions at %.0f/s; a node at %d MB resident, %d MB of them anonymous",
		sample.Done, sample.Rate, sample.RSS>>20, sample.Anon>>20)
	return nil
}

// jetstream returns JetStream, with a sync setting, as one or more systems. For
// appends these are plain publishes; publishes with a condition, which are
// closest to a write lock; and, with several locks, atomic batches with a
// condition for each.
func (s *benchRun) jetstream(ctx context.Context, c *cluster, sync string, keys pool) ([]*system, error) {
	w := s.workload
	plain, expected := streamKind{name: "plain"}, streamKind{name: "expected", expected: true}
	atomic := streamKind{name: "atomic", expected: w.Locks > 0, atomic: true}
	var kinds []streamKind
	switch w.Kind {
	case readLoad:
		peer, err := s.streamRead(ctx, c, sync)
		return []*system{peer}, err
	case getLoad:
		kinds = []streamKind{{name: "plain", direct: true}}
	case mixedLoad:
		plain.direct, expected.direct = true, true
		fallthrough
	case tailLoad:
		kinds = []streamKind{plain}
		if w.Locks > 0 {
			kinds = []streamKind{expected}
		}
	case batchLoad:
		atomic.expected = false
		kinds = []streamKind{atomic}
	default:
		switch kinds = []streamKind{plain}; {
		case w.Locks == 1:
			kinds = append(kinds, expected)
		case w.Locks > 1:
			kinds = append(kinds, expected, atomic)
		}
	}
	var all []*system
	for _, kind := range kinds {
		peer, err := s.streamSystem(ctx, c, kind, sync, keys)
		if err != nil {
			return nil, err
		}
		all = append(all, peer)
	}
	return all, nil
}

// streamSystem returns streams of a kind as a system.
func (s *benchRun) streamSystem(ctx context.Context, c *cluster, kind streamKind, sync string, keys pool) (*system, error) {
	w := s.workload
	st, err := s.openStreams(ctx, c, kind, keys)
	if err != nil {
		return nil, err
	}
	own := *c
	own.name += " " + kind.name
	own.leader = streamLeader(&own, st)
	peer := &system{cluster: &own, settings: peerSettings(w.Nodes, sync)}
	var last []uint64
	if kind.direct {
		if last, err = s.fillStreams(ctx, peer, st); err != nil {
			return nil, err
		}
	}
	peer.clients = s.streamClients(st, kind, last)
	return peer, nil
}

func (s *benchRun) streamTraffic(st *streams, kind streamKind, last []uint64, conn int) traffic {
	w := s.workload
	switch {
	case kind.atomic:
		return newStreamAtomic(st, w, conn)
	case w.Kind == getLoad:
		return newStreamGet(st, last, conn)
	case w.Kind == mixedLoad:
		return &mixed{
			appends: newStreamAppend(st, w, conn), lookups: newStreamGet(st, last, conn),
			percent: w.Gets, rng: newRand(conn),
		}
	}
	return newStreamAppend(st, w, conn)
}

func (s *benchRun) streamClients(st *streams, kind streamKind, last []uint64) []driver {
	w := s.workload
	plain := driver{name: "plain requests", worker: func(at workerConfig) (worker, error) {
		return newPlainWorker(at, s.streamTraffic(st, kind, last, at.conn))
	}}
	if kind.atomic || kind.direct {
		// nats.go has no call for atomic batches, and for lookups only one that
		// waits for each answer.
		return []driver{plain}
	}
	golang := driver{name: "js.PublishMsgAsync", worker: func(at workerConfig) (worker, error) {
		return newAsyncWorker(at, newStreamAppend(st, w, at.conn))
	}}
	if len(w.Levels) == 1 && w.Levels[0].InFlight == 1 {
		golang = driver{name: "js.PublishMsg", worker: func(at workerConfig) (worker, error) {
			return newSyncWorker(at, newStreamAppend(st, w, at.conn))
		}}
	}
	if w.Kind == tailLoad {
		return s.streamTails(st, plain)
	}
	switch s.VsClient {
	case "plain":
		return []driver{plain}
	case "go":
		return []driver{golang}
	}
	return []driver{plain, golang}
}

// streamTails returns publishing clients with readers. The rate does not show
// which kind of consumer is faster, so the default is the pull consumer, which
// JetStream's documents recommend.
func (s *benchRun) streamTails(st *streams, publish driver) []driver {
	push := s.VsClient == "push"
	if publish.name += ", readers with the pull ordered consumer"; push {
		publish.name = "plain requests, readers with the push ordered consumer"
	}
	publish.readers = s.workload.Readers
	publish.reader = func(at workerConfig) (reader, error) { return newStreamTail(at, st, push) }
	return []driver{publish}
}

// fillStreams publishes the messages to read, and returns the last sequence of
// each stream.
func (s *benchRun) fillStreams(ctx context.Context, c *system, st *streams) ([]uint64, error) {
	w := s.workload
	plain := *st
	plain.expected = false
	filler := driver{name: "plain requests", worker: func(at workerConfig) (worker, error) {
		return newPlainWorker(at, newStreamAppend(&plain, w, at.conn))
	}}
	n := int64(len(st.names))
	fill := max(w.Fill/n, 1)
	t := task{"fill " + c.name, 8, loadLevel{InFlight: 256}, 0, limits{count: fill * n, duration: time.Hour}}
	if _, err := measure(ctx, t, c, filler, s.errOut); err != nil {
		return nil, fmt.Errorf("fill %s: %w", c.name, err)
	}
	return s.lastSequences(ctx, c.cluster, st)
}

// streamRead fills streams and returns reading them as a system.
func (s *benchRun) streamRead(ctx context.Context, c *cluster, sync string) (*system, error) {
	st, err := s.openStreams(ctx, c, streamKind{name: "read"}, pool{})
	if err != nil {
		return nil, err
	}
	c.leader = streamLeader(c, st)
	peer := &system{cluster: c, settings: peerSettings(s.workload.Nodes, sync)}
	last, err := s.fillStreams(ctx, peer, st)
	if err != nil {
		return nil, err
	}
	reader := func(name string, push bool) driver {
		return driver{name: name, worker: func(at workerConfig) (worker, error) {
			i := at.conn % len(st.names)
			return newStreamCatchUp(at, st.names[i], last[i], push)
		}}
	}
	pull, push := reader("pull ordered consumer", false), reader("push ordered consumer", true)
	switch s.VsClient {
	case "pull":
		peer.clients = []driver{pull}
	case "push":
		peer.clients = []driver{push}
	default:
		peer.clients = []driver{pull, push}
	}
	return peer, nil
}
